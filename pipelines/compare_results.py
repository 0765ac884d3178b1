"""Results of a comparison: a row for each cell and evaluator, and what rows come to over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from coreset_ray.core.standings import Runs
from pipelines.compare_cells import Cell

MEASURES = "measures"  # what takes the place of an evaluator where no labels are read
_FIXED = (MEASURES, "probe", "knn")  # a coreset has one value by these; others train with a seed

RESULTS = pa.schema(
    [
        ("evaluator", pa.string()),
        ("label", pa.string()),
        ("method", pa.string()),
        ("budget", pa.float64()),
        ("images", pa.int64()),
        ("seed", pa.uint64()),
        ("selection", pa.string()),
        ("weighted", pa.bool_()),  # what learned from it took its weights
        ("seconds_select", pa.float64()),  # embeddings → manifest, all stages
        ("memory_select", pa.int64()),  # bytes by which the process that chose grew at most
        ("failed", pa.string()),
        ("corrupt", pa.float64()),  # share of the labels learned that are wrong on purpose
        ("accuracy", pa.float64()),
        ("radius", pa.float64()),
        ("coverage", pa.float64()),
        ("mean_distance", pa.float64()),
        ("max_distance", pa.float64()),
        ("near_duplicates", pa.float64()),
        ("effective_size", pa.float64()),
        ("clusters_covered", pa.float64()),
        ("agreement", pa.float64()),
    ]
)


def results_of(
    cells: Sequence[Cell],
    accuracies: Sequence[tuple[str, Cell, float]],
    measures: Mapping[Cell, Mapping[str, Any]],
    agreements: Mapping[tuple[str, int], float],
    evaluators: Sequence[str],
    corrupt: float,
) -> pa.Table:
    """The rows of `RESULTS`; a cell that failed has one for each evaluator too."""
    rows = [
        _row(name, cell) | {"corrupt": corrupt, "accuracy": accuracy}
        for name, cell, accuracy in accuracies
    ]
    for cell, told in measures.items():
        covered = told["clusters_covered"]
        rows.append(
            _row(MEASURES, cell)
            | {name: told[name] for name in ("radius", "coverage", "effective_size")}
            | {
                "near_duplicates": told["near_duplicates"],
                "mean_distance": told["distances"]["mean"],
                "max_distance": told["distances"]["max"],
                "clusters_covered": covered and covered["clusters"],
                "agreement": agreements.get((cell.label, cell.images)),
            }
        )
    rows += [_row(name, cell) for name in evaluators for cell in cells if cell.failed]
    return pa.Table.from_pylist(rows, schema=RESULTS)


def runs_of(results: pa.Table, evaluator: str, column: str = "accuracy") -> list[Runs]:
    """What each method came to at each budget by one evaluator, without cells that failed."""
    values: dict[tuple[str, int], dict[int, float]] = {}
    chosen: dict[tuple[str, int], set[str]] = {}
    moved = evaluator not in _FIXED  # whether a coreset's value depends on the seed
    for row in results.to_pylist():
        if row["evaluator"] == evaluator and row["failed"] is None:
            place = row["label"], row["images"]
            values.setdefault(place, {})[row["seed"]] = row[column]
            chosen.setdefault(place, set()).add(row["selection"])
            moved = moved or bool(row["corrupt"])
    same = {place for place in values if len(values[place]) > 1 == len(chosen[place])}
    return [Runs(*place, found, place in same, moved) for place, found in values.items()]


def failures_of(results: pa.Table, evaluator: str) -> dict[tuple[str, int], str]:
    """Why cells failed, the first of each method and budget."""
    found: dict[tuple[str, int], str] = {}
    for row in results.to_pylist():
        if row["evaluator"] == evaluator and row["failed"] is not None:
            found.setdefault((row["label"], row["images"]), row["failed"])
    return found


def _row(evaluator: str, cell: Cell) -> dict[str, Any]:
    told = {name: getattr(cell, name) for name in ("label", "method", "budget", "images", "seed")}
    return told | {
        "evaluator": evaluator,
        "selection": cell.selection or None,
        "weighted": bool(cell.weighted),
        "seconds_select": cell.seconds,
        "memory_select": cell.memory,
        "failed": cell.failed,
    }
