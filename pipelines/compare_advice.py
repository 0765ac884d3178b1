"""What a comparison comes to in plain words: what to take at each budget, and how sure that is."""

from collections.abc import Sequence

import pyarrow as pa

from coreset_ray.core.standings import BASELINE, LEVEL, Advice, Standing, advise, standings
from pipelines.compare_report import column_of, p_text, share_text
from pipelines.compare_results import MEASURES, failures_of, runs_of
from pipelines.report import interval_text, mean_text

_CAUTION = """These measures read no labels and prove no accuracy: a coreset that covers more of the
pool may still train worse. Label a small test set, add `evaluate`, and compare again before relying
on them.
"""


def recommendation(results: pa.Table, evaluators: Sequence[str], rows: int) -> str:
    """By each evaluator that reads labels; by what needs none where there is no such."""
    lines = ["## Recommendation", ""]
    for evaluator in [e for e in evaluators if e != MEASURES] or evaluators:
        found = standings(runs_of(results, evaluator, column_of(evaluator)))
        lines += [_basis(found, evaluator), ""]
        for advice in advise(found):
            lines.append(f"- {share_text(advice.images, rows)}: {_taken(advice)}.")
        lines += [f"- {text}" for text in (_losing(found), _failed(results, evaluator)) if text]
        if evaluator == MEASURES:
            lines += [*_duplicates(results, rows), "", _CAUTION]
        lines.append("")
    return "\n".join(lines)


def _basis(found: Sequence[Standing], evaluator: str) -> str:
    seeds = max(len(s.runs.values) for s in found)
    tests = sum(s.adjusted is not None for s in found)
    what = "coverage" if evaluator == MEASURES else f"accuracy of the {evaluator}"
    if seeds == 1:
        return f"By {what}, one seed: nothing can be told apart; give `compare.seeds` several."
    return (
        f"By {what}, {seeds} seeds; a method is taken where it beats random with p ≤ {LEVEL} after "
        f"Holm–Bonferroni over {tests} comparisons:"
    )


def _taken(advice: Advice) -> str:
    if not advice.tried:
        return "take **random**: nothing else ran"
    if advice.best is None:
        nearest = advice.nearest
        assert nearest is not None and nearest.difference is not None, "another method ran"
        return (
            f"take **random**: none of {advice.tried} methods is told apart from it as better; the "
            f"nearest is {nearest.runs.label}, {interval_text(nearest.difference)} points"
        )
    best = advice.best
    assert best.difference is not None, "random is not held against itself"
    values = [best.runs.mean] if best.runs.single else list(best.runs.values.values())
    alike = f"; not told apart from it: {', '.join(advice.alike)}" if advice.alike else ""
    same = "; one coreset, which no seed moved" if best.runs.same else ""
    return (
        f"take **{best.runs.label}**: {mean_text(values)}, {interval_text(best.difference)} points "
        f"beside random, p {_equals(best.adjusted)}{same}{alike}"
    )


def _duplicates(results: pa.Table, rows: int) -> list[str]:
    """Who keeps the fewest near-duplicates at each budget, beside random."""
    runs, lines = runs_of(results, MEASURES, "near_duplicates"), []
    for random in sorted((r for r in runs if r.label == BASELINE), key=lambda r: r.images):
        here = [r for r in runs if r.images == random.images]
        least = min(here, key=lambda r: (r.mean, r.label != BASELINE, r.label))
        lines.append(
            f"- {share_text(random.images, rows)}: near-duplicates make up {random.mean:.1%} of "
            f"what random keeps, and least, {least.mean:.1%}, of what {least.label} keeps."
        )
    return lines


def _equals(p: float | None) -> str:
    return p_text(p) if p is not None and p < 0.001 else f"= {p_text(p)}"


def _losing(found: Sequence[Standing]) -> str:
    """Who loses to random, all comparisons considered, and where."""
    places: dict[str, list[str]] = {}
    for s in found:
        if s.told_apart and not s.better:
            places.setdefault(s.runs.label, []).append(f"{s.runs.images:,}")
    told = [f"{label} (at {', '.join(images)} images)" for label, images in places.items()]
    return f"**LOSES** to random: {'; '.join(told)}." if told else ""


def _failed(results: pa.Table, evaluator: str) -> str:
    reasons: dict[str, str] = {}
    for (label, _), reason in failures_of(results, evaluator).items():
        reasons.setdefault(label, " ".join(reason.split()))
    told = [f"{label} ({reason})" for label, reason in reasons.items()]
    return f"Failed, in some cells or all: {'; '.join(told)}." if told else ""
