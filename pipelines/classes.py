"""embedding table → how many classes there seem to be, where the configuration does not say."""

import logging
import time
from typing import Any

from coreset_ray.clustering.kmeans_fit import Clustering
from coreset_ray.config import Config, fingerprint
from coreset_ray.distributed.classes import propose_classes
from coreset_ray.distributed.session import cluster
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage, finished_before
from coreset_ray.version import __version__
from pipelines.inputs import NotReady, filled, key_of, on_cluster, pool_table, workspace_of
from pipelines.report import classes_table

_log = logging.getLogger(__name__)


def count(config: Config) -> int:
    """Classes: as configured, else as proposed; `NotReady` before they are."""
    if config.signals.classes != "auto":
        return config.signals.classes
    record = _stage(config)[0].done()
    if record is None:
        raise NotReady(
            "signals.classes=auto: no number is proposed yet: run `coreset-ray signals` with this "
            "configuration first, or set it"
        )
    return record["classes"]


def made_of(config: Config) -> list[str]:
    """The name of the stage that proposed the number, if one did."""
    return [_stage(config)[0].name] if config.signals.classes == "auto" else []


@as_stage("classes")
def run(config: Config) -> None:
    """Proposes a number of classes where it is `auto` and not proposed yet, and says so."""
    if config.signals.classes != "auto":
        finished_before()
        return
    stage, snapshot, wanted = _stage(config)
    if stage.done() is not None:
        finished_before()
        return
    start = time.monotonic()
    with on_cluster(config, config.compute.wait_for):
        facts = propose_classes(
            *(pool_table(config).parts, filled(snapshot), wanted),
            actors=max(1, int(cluster().cpus)),
        )
    _log.info("classes: %d proposed\n\n%s", facts["classes"], classes_table(facts))
    if not facts["stands_out"]:
        _log.warning(
            "classes: no number stands out in this pool; %d is the best of those tried. If you "
            "know how many classes will be labeled, set signals.classes",
            facts["classes"],
        )
    seconds = round(time.monotonic() - start, 2)
    stage.finish(
        {
            "snapshot": key_of(snapshot),
            "made_of": [],
            **facts,
            "seconds": seconds,
            "version": __version__,
        }
    )


def _stage(config: Config) -> tuple[Stage, dict[str, Any], Clustering]:
    snapshot, seen = pool_table(config).snapshot(), config.signals.clusters
    wanted = Clustering(
        2, spherical=seen.spherical, standardize=seen.standardize, seed=config.signals.seed
    )
    content = fingerprint([key_of(snapshot), wanted])
    return workspace_of(config).stage("signals", "classes", content), snapshot, wanted
