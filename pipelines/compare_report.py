"""Results of a comparison as a page: for each evaluator and budget a table with random in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from coreset_ray.core.limits import in_bytes
from coreset_ray.core.standings import BASELINE, Standing, standings
from pipelines.compare_results import MEASURES, failures_of, runs_of
from pipelines.report import corrupt_line, interval_text, mean_text

_HEAD = (
    "| method | {0} (mean ± std) | seeds | difference to random [95% CI] | p (Holm) | verdict |",
    "|---|---:|---:|---:|---:|---|",
)
_LEGEND = """Differences are to random at the same seeds. p counts all {tests} comparisons of the
tables above (Holm–Bonferroni); "taken alone" marks a row whose own interval leaves out zero and
whose p does not stand up to that count. "one coreset": no seed moves what is chosen, so the row has
no spread but a training's, and its interval says nothing of another choice.
"""
_COST = """Means over seeds. Seconds: from the embeddings to the manifest, with the signals and
scores that a method reads. Memory: the most that was resident beyond what the process that chose
held before it read the pool. The interpreter, signals and scores are not in it, compiled code that
it loads is, and a selection by several processes has none. Budgets that a method chooses in one run
each show all of that run.
"""
_MEASURED = {
    "mean_distance": "mean distance",
    "max_distance": "largest",
    "near_duplicates": "near-duplicates",
    "effective_size": "effective size",
    "clusters_covered": "clusters",
    "agreement": "two seeds share",
}


def markdown(results: pa.Table, evaluators: Sequence[str], rows: int, shared: bool) -> str:
    """All tables. rows: images of the pool; shared: whether one seed's signals serve all."""
    lines: list[str] = []
    for evaluator in evaluators:
        found = standings(runs_of(results, evaluator, column_of(evaluator)))
        failed = failures_of(results, evaluator)
        lines += [f"## {_title(evaluator)}", ""]
        for images in sorted({*(s.runs.images for s in found), *(k for _, k in failed)}):
            lines += [
                f"### {share_text(images, rows)}",
                "",
                *_table(found, failed, evaluator, images),
            ]
            if evaluator == MEASURES:
                lines += ["", *_measures(results, images, rows)]
            lines.append("")
        tests = sum(s.adjusted is not None for s in found)
        lines.append(_LEGEND.format(tests=tests))
    if wrong := corrupt_line(results):
        lines.append(f"{wrong}.\n")
    if shared:
        lines.append(
            "Signals are shared: those of one seed serve all, so spreads leave out what another "
            "clustering and another training would add.\n"
        )
    return "\n".join(lines)


def cost_table(results: pa.Table, rows: int) -> str:
    """What each method's coresets cost, means over seeds. rows: images of the pool."""
    cells: dict[tuple[int, str], dict[int, tuple[float | None, int | None]]] = {}
    for row in results.to_pylist():
        if row["failed"] is None:
            spent = row["seconds_select"], row["memory_select"]
            cells.setdefault((row["images"], row["label"]), {})[row["seed"]] = spent
    lines = ["## Cost", "", "| images | method | seconds | memory |", "|---|---|---:|---:|"]
    for (images, label), found in sorted(cells.items()):
        seconds, memory = (_mean(values) for values in zip(*found.values(), strict=True))
        told = (
            "" if seconds is None else f"{seconds:.2f}",
            "" if memory is None else in_bytes(memory),
        )
        lines.append(f"| {share_text(images, rows)} | {label} | {' | '.join(told)} |")
    return "\n".join([*lines, "", _COST])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def column_of(evaluator: str) -> str:
    """The column that an evaluator's methods stand by."""
    return "coverage" if evaluator == MEASURES else "accuracy"


def share_text(images: int, rows: int) -> str:
    return f"{images:,} images ({100 * images / rows:.3g}%)"


def verdict(standing: Standing) -> str:
    """How a row stands to random, losing marked."""
    if standing.difference is None:
        return "baseline"
    alone = "" if standing.told_apart else ", taken alone"
    told = standing.difference.verdict()
    if told == "worse":
        return f"**LOSES** to random{alone}"
    return f"better than random{alone}" if told == "better" else told


def p_text(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _title(evaluator: str) -> str:
    if evaluator != MEASURES:
        return evaluator
    return "Without labels: coverage where random's covers half of what it leaves out"


def _table(
    found: Sequence[Standing],
    failed: Mapping[tuple[str, int], str],
    evaluator: str,
    images: int,
) -> list[str]:
    """Methods from the highest mean down, those that failed last."""
    lines = [line.format(column_of(evaluator)) for line in _HEAD]
    for s in (s for s in found if s.runs.images == images):
        values = list(s.runs.values.values())
        told = [
            f"**{BASELINE}**" if s.difference is None else s.runs.label,
            mean_text([s.runs.mean] if s.runs.single else values),
            f"{len(values)}, one coreset" if s.runs.same else str(len(values)),
            "" if s.difference is None else interval_text(s.difference),
            p_text(s.adjusted),
            verdict(s),
        ]
        if reason := failed.get((s.runs.label, images)):
            told[-1] += f"; other seeds failed: {_cell(reason)}"
        lines.append(f"| {' | '.join(told)} |")
    ran = {(s.runs.label, s.runs.images) for s in found}
    for (label, k), reason in failed.items():
        if k == images and (label, k) not in ran:
            lines.append(f"| {label} | failed: {_cell(reason)} | | | | |")
    return lines


def _measures(results: pa.Table, images: int, rows: int) -> list[str]:
    """Means over seeds of what else is measured."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in results.to_pylist():
        if (row["evaluator"], row["images"], row["failed"]) == (MEASURES, images, None):
            found.setdefault(row["label"], []).append(row)
    lines = [f"| method | {' | '.join(_MEASURED.values())} |", "|---|" + "---:|" * len(_MEASURED)]
    for label, cells in found.items():
        told = [_measure(name, [row[name] for row in cells]) for name in _MEASURED]
        lines.append(f"| {label} | {' | '.join(told)} |")
    return [*lines, "", f"By chance two seeds share {100 * images / rows:.3g}%."]


def _measure(name: str, values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return ""
    mean = sum(known) / len(known)
    if name == "effective_size":
        return f"{mean:,.1f}"
    return f"{mean:.3f}" if name.endswith("distance") else f"{100 * mean:.1f}%"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
