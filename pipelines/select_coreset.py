"""score table → manifest of what is kept."""

import logging
from typing import Any

from coreset_ray.config import Config, fingerprint, plain
from coreset_ray.core.selection import resolve_budget
from coreset_ray.core.stability import expected_overlap
from coreset_ray.distributed.choose import choose_top
from coreset_ray.distributed.session import session
from coreset_ray.io.workspace import Stage, Workspace
from coreset_ray.version import __version__
from coreset_ray.versions import versions
from pipelines import score
from pipelines.inputs import NotReady

_log = logging.getLogger(__name__)

_TOLD = (
    *("method", "params", "seed", "columns", "rounding", "draws", "facts"),
    *("lowest", "highest", "stability"),
)


def stage_of(config: Config) -> tuple[Stage, Stage, dict[str, Any]]:
    """Where this configuration's manifest lies, the scores it ranks, and their record."""
    scores, record = score.finished(config)
    k = resolve_budget(config.select.budget, record["rows"])
    if k == 0:
        raise ValueError(
            f"select.budget={config.select.budget} of {record['rows']} images keeps none: raise it"
        )
    stage = Workspace(config.workspace).stage(
        "selections", config.name, fingerprint([scores.name, k])
    )
    return stage, scores, record | {"kept": k}


def run(config: Config) -> dict[str, Any]:
    """Writes manifest.parquet and selection.json; returns the stage's record."""
    stage, scores, record = stage_of(config)
    if (done := stage.done()) is not None:
        _log.info("select: nothing to do, %s is finished", stage.folder.uri)
        return done
    parts = [scores.folder / f"part-{part}.parquet" for part in record["parts"]]
    span = record["lowest"], record["highest"]
    manifest = stage.folder / "manifest.parquet"
    method = config.score.build()
    with session(config.compute.address):
        choose_top(method, config.score.seed, parts, span, record["kept"], manifest)
    selection: dict[str, Any] = {
        "name": config.name,
        "manifest": "manifest.parquet",
        "kept": record["kept"],
        "pool": record["rows"],
        "inputs": {"scores": scores.name, "table": record["table"], "snapshot": record["snapshot"]},
        "score": {k: record[k] for k in _TOLD if k in record},
        "config": plain(config),
        "versions": {"coreset_ray": __version__, **versions()},
    }
    if noise := record.get("stability"):
        fraction = record["kept"] / record["rows"]
        selection["score"]["overlap_of_two_such_selections"] = {
            "expected": expected_overlap(noise, fraction),
            "by_chance": fraction,
        }
    (stage.folder / "selection.json").write_json(selection)
    _log.info("select: kept %d of %d, in %s", record["kept"], record["rows"], manifest.uri)
    return stage.finish({"kept": record["kept"], "pool": record["rows"]})


def finished(config: Config) -> tuple[Stage, dict[str, Any]]:
    """The finished stage and its record; `NotReady` when there is none."""
    stage, _, _ = stage_of(config)
    record = stage.done()
    if record is None:
        raise NotReady("nothing is selected: run `coreset-ray select` with this configuration")
    return stage, record


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["select", *sys.argv[1:]])
