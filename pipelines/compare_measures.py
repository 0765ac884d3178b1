"""Cells of a comparison → what needs no labels: coverage, duplicates, effective size, agreement."""

from collections.abc import Iterator, Sequence
from typing import Any

from coreset_ray.config import Config, fingerprint
from coreset_ray.core.measures import agreement, coverage
from coreset_ray.core.standings import BASELINE
from coreset_ray.distributed.coverage import measure_coresets
from coreset_ray.distributed.progress import Progress
from coreset_ray.io.filesystem import Location
from coreset_ray.io.tables import read_table
from coreset_ray.telemetry.run import as_stage, finished_before
from pipelines import signal_clusters
from pipelines.compare_cells import Cell, manifest_of
from pipelines.inputs import filled, key_of, pool_table, workspace_of

_AT_ONCE = 100_000  # images of coresets that the pool is read once for, about
_CLUSTERS = 100  # counted where signals.clusters.count says nothing else
_LEAST = 0.001  # radius


@as_stage("measure")
def measure_cells(config: Config, cells: Sequence[Cell]) -> dict[Cell, dict[str, Any]]:
    """The measures of all cells that were selected, each selection's a record of its own.

    Beside those of `measure_coresets`: radius, at which random's coreset of the same budget and
    seed covers half of what it leaves out, and coverage, the share this one covers at it.
    """
    chosen = [cell for cell in cells if not cell.failed]
    folder, clusters = _folder(config)
    sizes = {cell.selection: cell.images for cell in chosen}
    pending = {s: k for s, k in sizes.items() if not (folder / f"{s}.json").exists()}
    if not pending:
        finished_before()
    with Progress("compare", len(pending), "coresets measured") as progress:
        done = 0
        for batch in _batches(pending):
            for name, told in zip(batch, _measured(config, batch, clusters), strict=True):
                (folder / f"{name}.json").write_json(told)
            progress.update(done := done + len(batch))
    found = {name: (folder / f"{name}.json").read_json() for name in sizes}
    radius = {
        (cell.budget, cell.seed): max(_LEAST, found[cell.selection]["distances"]["median"])
        for cell in chosen
        if cell.label == BASELINE
    }
    return {
        cell: found[cell.selection]
        | _coverage(found[cell.selection], radius[cell.budget, cell.seed])
        for cell in chosen
    }


def agreements(config: Config, cells: Sequence[Cell], rows: int) -> dict[tuple[str, int], float]:
    """Mean share of images that the coresets of two seeds have in common, by label and images,
    where there are several."""
    found = {}
    for label, images in dict.fromkeys((c.label, c.images) for c in cells if not c.failed):
        names = {c.selection for c in cells if (c.label, c.images) == (label, images)} - {""}
        if len(names) > 1:
            tables = [read_table(manifest_of(config, name), ["uid"]) for name in sorted(names)]
            found[label, images] = agreement([t["uid"].to_pylist() for t in tables], rows).overlap
    return found


def _folder(config: Config) -> tuple[Location, Location]:
    """Where the records lie, and the clusters that are counted, by default a hundred."""
    snapshot, told = pool_table(config).snapshot(), config.signals.clusters
    count = told.count or min(_CLUSTERS, snapshot["rows"])
    config = config.replace("signals", clusters=told.model_copy(update={"count": count}))
    signal_clusters.run(config)
    clusters = signal_clusters.stage_of(config)[0].folder
    content = fingerprint([key_of(snapshot), clusters.path.rsplit("/", 1)[1]])
    return workspace_of(config).stage("cells", "measures", content).folder, clusters


def _measured(config: Config, selections: list[str], clusters: Location) -> list[dict[str, Any]]:
    table = pool_table(config)
    coresets = [read_table(manifest_of(config, name), ["uid", "weight"]) for name in selections]
    return measure_coresets(table.parts, filled(table.snapshot()), coresets, clusters=clusters)


def _coverage(told: dict[str, Any], radius: float) -> dict[str, float]:
    return {"radius": radius, "coverage": coverage(told["distances"]["histogram"], radius)}


def _batches(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Selections of about so many images together."""
    batch, images = [], 0
    for name, k in sizes.items():
        if batch and images + k > _AT_ONCE:
            yield batch
            batch, images = [], 0
        batch.append(name)
        images += k
    if batch:
        yield batch
