"""Courses of tasks → what is still known after each; each outcome is a record of its own, kept at
once."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from coreset_ray.config import Config, ContinualConfig, fingerprint
from coreset_ray.distributed.continual import Course, learn_each
from coreset_ray.distributed.progress import Progress
from coreset_ray.distributed.session import choose_device
from coreset_ray.io.filesystem import Location
from coreset_ray.io.tables import read_table
from coreset_ray.models.mlp import MlpRecipe
from coreset_ray.models.recipe import Recipe
from coreset_ray.telemetry.run import as_stage, finished_before
from pipelines.compare_cells import Cell, manifest_of
from pipelines.evaluate import test_table
from pipelines.inputs import filled, pool_table, workspace_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """classes: their numbers; config: the same run on a pool of its images alone; rows: images."""

    classes: np.ndarray
    config: Config
    rows: int


@as_stage("learn")
def learn(
    config: Config,
    content: str,
    tasks: Sequence[Task],
    cells: Mapping[Cell, Sequence[Cell]],
    images: pa.Table,
    truth: pa.Table,
) -> list[dict[str, Any]]:
    """Rows of `continual_report.RESULTS`, of all cells by each evaluator.

    content: what determines pool, test set and labels; cells: of each the tasks' own; images,
    truth: labeled, of the whole pool and of the test images.
    """
    told = config.continual
    assert told is not None, "the caller checked"
    ran = [cell for cell, own in cells.items() if not any(c.failed for c in own)]
    records: dict[tuple[str, Cell], Location] = {}
    pending: dict[str, list[Cell]] = {}
    for evaluator, recipe in _recipes(told).items():
        how = [content, told.tasks, told.learns, asdict(recipe)]
        folder = workspace_of(config).stage("cells", f"continual-{evaluator}", fingerprint(how))
        for cell in ran:
            course = fingerprint([[c.selection for c in cells[cell]], cell.images, cell.seed])
            records[evaluator, cell] = folder.folder / f"{course}.json"
        missing = [cell for cell in ran if not records[evaluator, cell].exists()]
        pending |= {evaluator: missing} if missing else {}
    if not pending:
        finished_before()
    for evaluator, missing in pending.items():
        _log.info(
            "continual: %d of %d courses of %s to learn, each of %d tasks",
            *(len(missing), len(ran), evaluator, len(tasks)),
        )
        courses = [
            Course(_ranked(tasks, cells[c]), c.images, c.seed, told.learns == "coreset")
            for c in missing
        ]
        pool, test = pool_table(config), test_table(config)
        outcomes = learn_each(
            *(courses, _recipes(told)[evaluator], [t.classes for t in tasks], images, truth),
            *((side.parts, list(filled(side.snapshot()))) for side in (pool, test)),
            use_gpu=choose_device(config.compute.device) == "cuda",
        )
        with Progress("continual", len(missing), f"courses of {evaluator}") as progress:
            for done, (place, outcome) in enumerate(outcomes, start=1):
                records[evaluator, missing[place]].write_json(outcome)
                progress.update(done)
    return [
        _row(evaluator, cell, own)
        | (records[evaluator, cell].read_json() if (evaluator, cell) in records else {})
        for evaluator in _recipes(told)
        for cell, own in cells.items()
    ]


def _recipes(told: ContinualConfig) -> dict[str, MlpRecipe | Recipe]:
    """By the name that tables have each under."""
    found: dict[str, MlpRecipe | Recipe] = {}
    found |= {"mlp": told.mlp} if told.mlp is not None else {}
    return found | ({told.network.model: told.network} if told.network is not None else {})


def _ranked(tasks: Sequence[Task], own: Sequence[Cell]) -> tuple[tuple[str, ...], ...]:
    """uids chosen of each task, best first."""
    manifests = [manifest_of(t.config, c.selection) for t, c in zip(tasks, own, strict=True)]
    tables = [read_table(manifest, ["uid", "rank"]).sort_by("rank") for manifest in manifests]
    return tuple(tuple(table["uid"].to_pylist()) for table in tables)


def _row(evaluator: str, cell: Cell, own: Sequence[Cell]) -> dict[str, Any]:
    failed = next((c.failed for c in own if c.failed), None)
    chosen = "+".join(c.selection for c in own) if failed is None else None
    told = replace(cell, selection=chosen or "", failed=failed)
    names = ("label", "method", "budget", "images", "seed", "selection", "failed")
    return {"evaluator": evaluator} | {name: getattr(told, name) for name in names}
