"""Results of continual learning as a page: accuracy and forgetting of each method beside random."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from coreset_ray.core.standings import BASELINE, Runs, Standing, standings
from pipelines.compare_report import p_text, share_text, verdict
from pipelines.report import interval_text, mean_text

RESULTS = pa.schema(
    [
        ("evaluator", pa.string()),
        ("label", pa.string()),
        ("method", pa.string()),
        ("budget", pa.float64()),
        ("images", pa.int64()),  # that the memory holds
        ("seed", pa.uint64()),
        ("selection", pa.string()),  # of each task, joined by +
        ("failed", pa.string()),
        ("average", pa.float64()),
        ("last", pa.float64()),
        ("forgetting", pa.float64()),
        ("seen", pa.list_(pa.float64())),  # accuracy after each task
    ]
)

_HEAD = (
    "| method | average accuracy (mean ± std) | seeds | difference to random [95% CI] | p (Holm) "
    "| verdict | last | forgetting |",
    "|---|---:|---:|---:|---:|---|---:|---:|",
)
_LEGEND = """Accuracy is on the test images of all classes seen so far: its mean over tasks, and
after the last one. Forgetting is how far accuracy on a task falls from its best, the mean over
all tasks but the last. Differences are of average accuracy, to random at the same seeds; p counts
all comparisons of an evaluator (Holm–Bonferroni).
"""


def markdown(
    name: str, results: pa.Table, tasks: Sequence[Sequence[str]], rows: int, coreset: bool
) -> str:
    """tasks: names of the classes of each; rows: images of the pool; coreset: whether the coreset
    alone is learned of a new task."""
    told = "; ".join(", ".join(classes) for classes in tasks)
    what = "its coreset alone" if coreset else "all its images"
    lines = [f"# {name}: {len(tasks)} tasks of {rows:,} images", ""]
    lines += [f"Classes by task: {told}. Learned of a new task: {what}, and the memory.", ""]
    for evaluator in dict.fromkeys(results["evaluator"].to_pylist()):
        own = [row for row in results.to_pylist() if row["evaluator"] == evaluator]
        lines += [f"## {evaluator}", "", *_tables(own, rows)]
    return "\n".join([*lines, _LEGEND])


def _tables(results: list[dict[str, Any]], rows: int) -> list[str]:
    """A table for each size of the memory, methods from the highest mean down, those that failed
    last."""
    places: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in results:
        places.setdefault((row["label"], row["images"]), []).append(row)
    ran = {place: [r for r in own if r["failed"] is None] for place, own in places.items()}
    found = standings([_runs(*place, own) for place, own in ran.items() if own])
    lines: list[str] = []
    for images in sorted({images for _, images in places}):
        lines += [f"### A memory of {share_text(images, rows)}", "", *_HEAD]
        here = [s for s in found if s.runs.images == images]
        lines += [_line(s, ran[s.runs.label, images]) for s in here]
        for (label, size), own in places.items():
            if size == images and not ran[label, size]:
                why = " ".join(own[0]["failed"].replace("|", "/").split())
                lines.append(f"| {label} | failed: {why} | | | | | | |")
        lines.append("")
    return lines


def _runs(label: str, images: int, own: list[dict[str, Any]]) -> Runs:
    same = len(own) > 1 == len({row["selection"] for row in own})
    return Runs(label, images, {row["seed"]: row["average"] for row in own}, same, trained=True)


def _line(standing: Standing, own: list[dict[str, Any]]) -> str:
    told = [
        f"**{BASELINE}**" if standing.difference is None else standing.runs.label,
        mean_text([row["average"] for row in own]),
        f"{len(own)}, one coreset" if standing.runs.same else str(len(own)),
        "" if standing.difference is None else interval_text(standing.difference),
        p_text(standing.adjusted),
        verdict(standing),
        *(mean_text([row[name] for row in own]) for name in ("last", "forgetting")),
    ]
    return f"| {' | '.join(told)} |"
