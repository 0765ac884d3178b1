"""embedding table → score table, one part a shard."""

import logging
import time
from typing import Any

from coreset_ray.config import Config, fingerprint
from coreset_ray.distributed.score import score_table
from coreset_ray.distributed.session import cluster, session
from coreset_ray.io.workspace import Stage, Workspace
from coreset_ray.version import __version__
from pipelines.inputs import NotReady, filled, key_of, pool_table

_log = logging.getLogger(__name__)


def stage_of(config: Config) -> tuple[Stage, dict[str, Any]]:
    """Where this configuration's scores lie, and the snapshot they are of."""
    snapshot = pool_table(config).snapshot()
    method = config.score.build()
    content = [key_of(snapshot), config.score.method, method, config.score.seed]
    stage = Workspace(config.workspace).stage("scores", config.score.method, fingerprint(content))
    return stage, snapshot


def run(config: Config) -> dict[str, Any]:
    """Scores the pool; returns the stage's record."""
    stage, snapshot = stage_of(config)
    if (record := stage.done()) is not None:
        _log.info("score: nothing to do, %s is finished", stage.folder.uri)
        return record
    method = config.score.build()
    parts = filled(snapshot)
    start = time.monotonic()
    with session(config.compute.address):
        workers = config.compute.score_workers or max(1, int(cluster().cpus))
        outcome = score_table(
            method, config.score.seed, pool_table(config).parts, parts, stage.folder, workers
        )
    record = {
        "method": config.score.method,
        "params": vars(method),
        "seed": config.score.seed,
        "snapshot": key_of(snapshot),
        "table": snapshot["table"],
        "rows": snapshot["rows"],
        "parts": parts,
        **outcome,
        "seconds": round(time.monotonic() - start, 2),
        "version": __version__,
    }
    _log.info(
        "score: %s over %d images in %.1f s, in %s",
        *(config.score.method, snapshot["rows"], record["seconds"], stage.folder.uri),
    )
    dropped = outcome["facts"].get("constant_dimensions_dropped")
    if dropped:
        _log.warning(
            "score: %d of %d dimensions do not vary over this pool and are never drawn",
            *(len(dropped), outcome["facts"]["dimensions"]),
        )
    return stage.finish(record)


def finished(config: Config) -> tuple[Stage, dict[str, Any]]:
    """The finished stage and its record; `NotReady` when there is none."""
    stage, _ = stage_of(config)
    record = stage.done()
    if record is None:
        raise NotReady("this pool is not scored: run `coreset-ray score` with this configuration")
    return stage, record


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["score", *sys.argv[1:]])
