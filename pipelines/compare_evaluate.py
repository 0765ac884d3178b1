"""Cells of a comparison → their accuracy; each outcome is a record of its own, kept at once."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from coreset_ray.config import Config, EvaluateConfig, fingerprint
from coreset_ray.core.corrupt import Corruption
from coreset_ray.distributed.evaluations import (
    Coreset,
    Training,
    evaluate_each,
    knn,
    probe,
    train_each,
)
from coreset_ray.distributed.progress import Progress
from coreset_ray.distributed.session import cluster
from coreset_ray.io.filesystem import Location
from coreset_ray.io.tables import read_table
from coreset_ray.telemetry.run import as_stage, finished_before
from pipelines.compare_cells import Cell, manifest_of
from pipelines.evaluate import marks, test_table
from pipelines.inputs import filled, key_of, pool_table, workspace_of
from pipelines.labeled import labeled_images
from pipelines.trainings import running, trains_on_gpu

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One evaluation of one selection. seed: of the training and of wrong labels, None where there
    are neither; weighted: with its weights, as in `Recipe`."""

    evaluator: str
    selection: str
    seed: int | None
    weighted: bool | Literal["each"] = False

    @property
    def name(self) -> str:
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return f"{self.selection}{seed}{'-weighted' if self.weighted else ''}"


def settings_by_evaluator(settings: EvaluateConfig) -> dict[str, Any]:
    """What determines each evaluator's outcomes, JSON-able, by the name that tables have it
    under."""
    found: dict[str, Any] = {}
    if settings.probe is not None:
        found["probe"] = settings.probe.model_dump()
    if settings.knn is not None:
        found["knn"] = settings.knn.model_dump()
    if settings.resnet is not None:
        found[settings.resnet.model] = asdict(settings.resnet)
    return found


def labels_told(settings: EvaluateConfig) -> list[Any]:
    """What says which labels are learned, JSON-able."""
    return [settings.labels, *([settings.corrupt] if settings.corrupt else [])]


@as_stage("evaluate")
def evaluate_cells(config: Config, cells: Sequence[Cell]) -> list[tuple[str, Cell, float]]:
    """Evaluator, cell and accuracy of all cells that were selected. A coreset that several cells
    share is evaluated once, but where training or wrong labels have the cell's seed."""
    assert config.evaluate is not None, "the caller checked"
    folders = _folders(config, config.evaluate)
    jobs = {
        (name, cell): Job(
            *(name, cell.selection),
            seed=cell.seed if _seeded(config.evaluate, name) else None,
            weighted=name != "knn" and cell.weighted,
        )
        for name in folders
        for cell in cells
        if not cell.failed
    }
    records = {job: folders[job.evaluator] / f"{job.name}.json" for job in jobs.values()}
    pending = [job for job, record in records.items() if not record.exists()]
    if not pending:
        finished_before()
    else:
        _log.info("compare: %d of %d evaluations to do", len(pending), len(records))
        with Progress("compare", len(pending), "evaluations") as progress:
            selections = sorted({job.selection for job in records})
            outcomes = _outcomes(config, config.evaluate, pending, selections)
            for done, (job, outcome) in enumerate(outcomes, start=1):
                records[job].write_json(outcome | vars(job))
                progress.update(done, f"{job.evaluator}: {outcome['accuracy']:.3f}")
    found = {job: record.read_json() for job, record in records.items()}
    stuck = sum(not outcome.get("converged", True) for outcome in found.values())
    if stuck:
        _log.warning(
            "compare: %d of %d evaluations are probes that stopped at "
            "evaluate.probe.max_iterations before the optimum",
            *(stuck, len(found)),
        )
    return [(name, cell, found[job]["accuracy"]) for (name, cell), job in jobs.items()]


def _folders(config: Config, settings: EvaluateConfig) -> dict[str, Location]:
    """Where each evaluator's records lie: by all that determines them but the selection."""
    told = [key_of(pool_table(config).snapshot()), key_of(test_table(config).snapshot())]
    told += [marks(config), *labels_told(settings)]
    found = {}
    for name, own in settings_by_evaluator(settings).items():
        workers = config.compute.train_workers if _trains(settings, name) else None
        stage = workspace_of(config).stage("cells", name, fingerprint([*told, own, workers]))
        found[name] = stage.folder
    return found


def _trains(settings: EvaluateConfig, evaluator: str) -> bool:
    return settings.resnet is not None and evaluator == settings.resnet.model


def _seeded(settings: EvaluateConfig, evaluator: str) -> bool:
    return settings.corrupt > 0 or _trains(settings, evaluator)


def _outcomes(
    config: Config, settings: EvaluateConfig, jobs: list[Job], selections: list[str]
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Jobs as they finish. selections: of finished jobs too, so that classes are the same."""
    test, columns = test_table(config), ["uid", "shard", "key"]
    coresets = [read_table(manifest_of(config, name), columns) for name in selections]
    images, truth, names = labeled_images(config, coresets, test)
    del coresets
    trained = [job for job in jobs if _trains(settings, job.evaluator)]
    fitted = [job for job in jobs if not _trains(settings, job.evaluator)]
    if fitted:
        pool = pool_table(config)
        found = evaluate_each(
            [_coreset(config, settings, job, len(names)) for job in fitted],
            (pool.parts, list(filled(pool.snapshot()))),
            images,
            (test.parts, list(filled(test.snapshot()))),
            truth,
        )
        yield from ((fitted[place], outcome) for place, outcome in found)
    if trained:
        for place, outcome in _trainings(config, settings, trained, images, truth, len(names)):
            yield trained[place], outcome


def _coreset(config: Config, settings: EvaluateConfig, job: Job, classes: int) -> Coreset:
    evaluate = {"probe": probe, "knn": knn}[job.evaluator]
    own = settings_by_evaluator(settings)[job.evaluator]
    manifest = manifest_of(config, job.selection).uri
    corruption = _corruption(settings, job, classes)
    by_uid, weighted = job.evaluator == "knn", bool(job.weighted)
    return Coreset(manifest, partial(evaluate, **own), by_uid, weighted, corruption)


def _corruption(settings: EvaluateConfig, job: Job, classes: int) -> Corruption | None:
    if job.seed is None or not settings.corrupt:
        return None
    return Corruption(settings.corrupt, classes, job.seed)


def _trainings(
    config: Config,
    settings: EvaluateConfig,
    jobs: list[Job],
    images: pa.Table,
    truth: pa.Table,
    classes: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
    assert settings.resnet is not None, "the caller checked"
    folder, on = _folders(config, settings)[settings.resnet.model], cluster()
    devices = on.gpus if trains_on_gpu(config) else on.cpus
    trainings = [
        Training(
            *(manifest_of(config, job.selection).uri, running(config, folder, job.name)),
            *(job.seed, job.weighted),
            corruption=_corruption(settings, job, classes),
        )
        for job in jobs
        if job.seed is not None
    ]
    yield from train_each(
        *(trainings, images, truth, settings.resnet),
        at_once=max(1, int(devices // config.compute.train_workers)),
        classes=classes,
    )
