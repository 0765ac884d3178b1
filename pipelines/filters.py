"""embedding table, signals → which images each filter drops, before anything is selected."""

import logging
from typing import Any

from coreset_ray.config import Config, FilterConfig, fingerprint
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.filter import write_dropped
from coreset_ray.distributed.session import session
from coreset_ray.io.workspace import Stage, Workspace
from coreset_ray.version import __version__
from pipelines.inputs import NotReady, filled, key_of, pool_table
from pipelines.signals import signal_folders, signal_stages

_log = logging.getLogger(__name__)


def stage_of(config: Config, wanted: FilterConfig) -> Stage:
    """Where what this filter drops lies."""
    method = wanted.build()
    signals = signal_stages(config, method.needs)
    content = [key_of(pool_table(config).snapshot()), wanted.method, vars(method), signals]
    return Workspace(config.workspace).stage("filters", wanted.method, fingerprint(content))


def run(config: Config) -> None:
    """Writes what the configuration's filters drop, where it is not there yet."""
    for wanted in config.select.filters:
        stage, method = stage_of(config, wanted), wanted.build()
        if stage.done() is not None:
            _log.info("filters: nothing to do, %s is finished", stage.folder.uri)
            continue
        table, folders = pool_table(config), signal_folders(config, method.needs)
        parts, snapshot = filled(table.snapshot()), key_of(table.snapshot())
        with session(config.compute.address):
            files = PoolFiles(table.stage.folder.uri, folders)
            dropped = write_dropped(method, files, parts, stage.folder)
        _log.info(
            "filters: %s drops %d of %d images, in %s",
            *(wanted.method, dropped, sum(parts.values()), stage.folder.uri),
        )
        told = {"method": wanted.method, "params": vars(method), "dropped": dropped}
        stage.finish({"snapshot": snapshot, "parts": parts, **told, "version": __version__})


def finished(config: Config) -> dict[str, dict[str, Any]]:
    """The records of the configuration's filters by the names of their stages; `NotReady` when
    one is missing."""
    found = {}
    for wanted in config.select.filters:
        stage = stage_of(config, wanted)
        if (record := stage.done()) is None:
            raise NotReady(
                f"the filter {wanted.method!r} has not run: run `coreset-ray select` with this "
                "configuration first"
            )
        found[stage.name] = record
    return found
