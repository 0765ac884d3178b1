"""The cells of a comparison: what each method selects at each budget and seed."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from coreset_ray.config import Config
from coreset_ray.core.selection import resolve_budget
from coreset_ray.core.standings import BASELINE
from coreset_ray.distributed.progress import Progress
from coreset_ray.io.filesystem import Location
from pipelines import score, search, select_coreset, select_many, signals
from pipelines.inputs import workspace_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """A method at a budget and a seed. method: its name; budget: as configured, images: what that
    comes to; weighted: what learns from it takes the weights, as in `Recipe`; selection: the stage
    that holds its manifest; seconds: what embeddings → manifest took, None where a record does not
    say; memory: bytes by which the process that chose grew, None where it was not one process;
    failed: why there is no selection."""

    label: str
    method: str
    budget: float
    images: int
    seed: int
    weighted: bool | Literal["each"] = False
    selection: str = ""
    seconds: float | None = None
    memory: int | None = None
    failed: str | None = None


def warn_of_rest(config: Config, command: str) -> None:
    """Names what is configured and compared with nothing."""
    if left := config.not_compared():
        _log.warning(
            "%s: %s: not read here, where each of compare.methods says what it chooses by and from",
            *(command, ", ".join(left)),
        )


def counts(config: Config, rows: int) -> dict[int | float, int]:
    """Budgets as configured → images; `ValueError` for one the pool has not got or that is none,
    and for two that are the same."""
    assert config.compare is not None, "the caller checked"
    found: dict[int | float, int] = {}
    for budget in config.compare.budgets:
        try:
            k = resolve_budget(budget, rows)
        except ValueError as error:
            raise ValueError(f"compare.budgets: {error}") from None
        if k == 0 or k in found.values():
            why = "keeps none" if k == 0 else f"keeps {k}, as another does"
            raise ValueError(f"compare.budgets: {budget} of {rows} images {why}: change it")
        found[budget] = k
    return found


def make_cells(config: Config, rows: int) -> list[Cell]:
    """Selects at every cell; a method that cannot run on this pool has cells that say why.

    rows: images of the pool. Raises `ValueError` where random, or every other method, fails.
    """
    assert config.compare is not None, "the caller checked"
    images = counts(config, rows)
    planned = [
        pair
        for label, candidate in config.candidates().items()
        for pair in _cells_of(config, label, candidate, images)
    ]
    cells = [cell for cell, _ in planned]
    with Progress("compare", len(cells), "coresets") as progress:
        done = 0
        for first in (True, False):  # random first, without which nothing is compared
            places = [i for i, cell in enumerate(cells) if (cell.label == BASELINE) == first]
            for place, failed in select_many.run([planned[i][1] for i in places]):
                at = places[place]
                cell = cells[at] = _made(*planned[at], failed)
                progress.update(
                    done := done + 1, f"{cell.label}, {cell.images} images, seed {cell.seed}"
                )
            if broken := [c for c in cells if c.label == BASELINE and c.failed]:
                raise ValueError(f"random cannot be selected: {broken[0].failed}")
    others = [c for c in cells if c.label != BASELINE]
    if others and all(c.failed for c in others):
        raise ValueError(f"every method failed; {others[0].label}: {others[0].failed}")
    return cells


def manifest_of(config: Config, selection: str) -> Location:
    return workspace_of(config).root / "selections" / selection / "manifest.parquet"


def _cells_of(
    config: Config, label: str, candidate: Config, images: dict[int | float, int]
) -> Iterator[tuple[Cell, Config]]:
    """Each cell of a method before it is selected, with its configuration. The seed of a method
    that has no use for one is always the first: its signals alone tell its cells apart."""
    assert config.compare is not None, "the caller checked"
    seeds, own = config.compare.seeds, _seeded(candidate)
    name = candidate.score.method if candidate.scores else candidate.selector()[0]
    weighted = candidate.weighted and candidate.weighting()
    for seed in seeds:
        one = candidate.replace("score", seed=seed if own else seeds[0])
        if config.compare.signals == "anew":
            one = one.replace("signals", seed=seed)
        for budget, k in images.items():
            cell = Cell(label, name, float(budget), k, seed, weighted)
            yield cell, one.replace("select", budget=budget)


def _seeded(config: Config) -> bool:
    """Whether what is selected from given signals depends on the seed."""
    searched = config.selector()[2] is not None
    scorer = config.scores and config.score.build().seeded
    return bool(scorer or searched or config.rule().seeded)


def _made(cell: Cell, config: Config, failed: str | None) -> Cell:
    if failed is not None:
        _log.warning(
            "compare: %s at %d images, seed %d failed: %s",
            *(cell.label, cell.images, cell.seed, failed),
        )
        return replace(cell, failed=failed)
    stage, record = select_coreset.finished(config)
    seconds, memory = _seconds(config, record), record.get("memory")
    return replace(cell, selection=stage.name, seconds=seconds, memory=memory)


def _seconds(config: Config, record: dict[str, Any]) -> float | None:
    """Wall time of all stages from the embeddings to a finished selection."""
    made_of = [signals.finished(config, name)[0].name for name in signals.needed_by(config)]
    spent = [record.get("seconds"), signals.seconds(config, made_of)]
    if config.scores:
        spent.append(score.finished(config)[1]["seconds"])
    if config.selector()[2]:
        spent.append(search.finished(config)[1]["seconds"])
    known = [s for s in spent if s is not None]
    return sum(known) if len(known) == len(spent) else None
