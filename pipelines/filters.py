"""embedding table, signals → which images each filter drops, before anything is selected."""

import logging
from typing import Any

from coreset_ray.config import Config, FilterConfig, fingerprint
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.filter import write_dropped
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage, finished_before
from coreset_ray.version import __version__
from pipelines.inputs import NotReady, filled, key_of, on_cluster, pool_table, workspace_of
from pipelines.kept import kept_already
from pipelines.signals import signal_folders, signal_stages

_log = logging.getLogger(__name__)


def stage_of(config: Config, wanted: FilterConfig, snapshot: dict[str, Any]) -> Stage:
    """Where what this filter drops of a snapshot lies."""
    method = wanted.build()
    signals = signal_stages(config, method.needs)
    content = [key_of(snapshot), wanted.method, method.settings(), signals]
    if kept := kept_already(config):
        content.append(fingerprint(list(kept)))
    return workspace_of(config).stage("filters", wanted.method, fingerprint(content))


@as_stage("filters")
def run(config: Config) -> None:
    """Writes what the configuration's filters drop, where it is not there yet."""
    if not config.select.filters:
        finished_before()
        return
    table = pool_table(config)
    snapshot = table.snapshot()
    parts = filled(snapshot)
    stages = [(wanted, stage_of(config, wanted, snapshot)) for wanted in config.select.filters]
    pending = [(wanted, stage) for wanted, stage in stages if stage.done() is None]
    if not pending:
        finished_before()
    for wanted, stage in pending:
        method = wanted.build()
        with on_cluster(config, config.compute.wait_for.cpus_alone):
            files = PoolFiles(table.stage.folder.uri, signal_folders(config, method.needs))
            dropped = write_dropped(method, files, parts, stage.folder, kept_already(config))
        _log.info(
            "filters: %s drops %d of %d images, in %s",
            *(wanted.method, dropped, sum(parts.values()), stage.folder.uri),
        )
        told = {"method": wanted.method, "params": method.settings(), "dropped": dropped}
        of = {"snapshot": key_of(snapshot), "parts": parts}
        stage.finish({**of, **told, "version": __version__})


def finished(config: Config) -> dict[str, dict[str, Any]]:
    """The records of the configuration's filters by the names of their stages; `NotReady` when
    one is missing."""
    if not config.select.filters:
        return {}
    found, snapshot = {}, pool_table(config).snapshot()
    for wanted in config.select.filters:
        stage = stage_of(config, wanted, snapshot)
        if (record := stage.done()) is None:
            raise NotReady(
                f"the filter {wanted.method!r} has not run: run `coreset-ray select` with this "
                "configuration first"
            )
        found[stage.name] = record
    return found
