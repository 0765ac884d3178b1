"""Results as one table: a row for each evaluator and method, random always beside it."""

from typing import Any

import pyarrow as pa

from coreset_ray.core.compare import Difference, paired_difference, spread

RESULTS = pa.schema(
    [
        ("evaluator", pa.string()),
        ("method", pa.string()),
        ("baseline", pa.string()),
        ("seed", pa.uint64()),
        ("images", pa.int64()),
        ("accuracy", pa.float64()),
    ]
)

_COLUMNS = (
    "evaluator",
    "images",
    "method",
    "accuracy (mean ± std)",
    "seeds",
    "difference [95% CI]",
    "verdict",
)
_HEAD = ("| " + " | ".join(_COLUMNS) + " |", "|---|---:|---|---:|---:|---:|---|")


def results_table(results: list[dict[str, Any]]) -> pa.Table:
    """One row for each evaluator, method and seed."""
    return pa.Table.from_pylist(results, schema=RESULTS)


def markdown(results: pa.Table) -> str:
    """The table a person reads. Differences are to random at the same seeds; a row with weights
    is held against random carrying the same weights."""
    accuracy: dict[tuple[str, int, str], dict[int, float]] = {}
    baseline: dict[str, str] = {}
    for row in results.to_pylist():
        place = row["evaluator"], row["images"], row["method"]
        accuracy.setdefault(place, {})[row["seed"]] = row["accuracy"]
        baseline[row["method"]] = row["baseline"]
    lines: list[str] = [*_HEAD]
    for (evaluator, images, method), by_seed in accuracy.items():
        values = list(by_seed.values())
        cells = [evaluator, str(images), method, _mean(values), str(len(values))]
        if method == baseline[method]:
            cells += ["", "baseline"]
        else:
            other = accuracy[evaluator, images, baseline[method]]
            cells += _difference(paired_difference(values, [other[s] for s in by_seed]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def noise_table(noise: dict[str, Any]) -> str:
    """How far a ranking can be trusted: what two halves of its draws say of a repeated run."""
    lines = [
        f"Stability after {noise['draws']:,} draws; {noise['untouched']:.1%} of images untouched:",
        "",
        "| column | correlation of its halves | of two such runs |",
        "|---|---:|---:|",
        *(
            f"| {name} | {halves:.3f} | {noise['repeat'][name]:.3f} |"
            for name, halves in noise["halves"].items()
        ),
        "",
        "| top | halves share | two such runs would share | by chance | draws for half |",
        "|---:|---:|---:|---:|---:|",
    ]
    for fraction, top in noise["top"].items():
        price = noise["draws_for"][fraction]["draws"]
        shares = " | ".join(f"{100 * top[k]:.1f}%" for k in ("halves", "repeat", "chance"))
        more = f"{price:,.3g}" if price is not None else "no signal seen"
        lines.append(f"| {100 * float(fraction):g}% | {shares} | {more} |")
    return "\n".join(lines) + "\n"


def rounding_line(record: dict[str, Any]) -> str:
    """What rounding embeddings did to a method's columns, from a score stage's record."""
    effect = record["rounding"]
    alike = ", ".join(f"{name} {value:.4f}" for name, value in effect["correlation"].items())
    return (
        f"Columns held as {record['columns']}: over {effect['draws']:,} draws on "
        f"{effect['rows']:,} images, correlation with the unrounded: {alike}\n"
    )


def _mean(values: list[float]) -> str:
    mean, deviation = 100 * sum(values) / len(values), spread(values)
    return f"{mean:.2f} ± {100 * deviation:.2f}" if deviation is not None else f"{mean:.2f}"


def _difference(d: Difference) -> list[str]:
    if d.low is None or d.high is None:
        return [f"{100 * d.mean:+.2f}", d.verdict()]
    text = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
    verdict = d.verdict()
    return [text, f"{verdict} than random" if verdict in ("better", "worse") else verdict]
