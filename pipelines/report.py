"""Results as one table: a row for each evaluator and method, random always beside it."""

import io
from typing import Any

import matplotlib
import pyarrow as pa
from matplotlib.figure import Figure

from coreset_ray.core.compare import Difference, paired_difference, spread

RESULTS = pa.schema(
    [
        ("evaluator", pa.string()),
        ("method", pa.string()),
        ("baseline", pa.string()),
        ("seed", pa.uint64()),
        ("images", pa.int64()),
        ("unlabeled", pa.int64()),  # of the images, left out of training
        ("corrupt", pa.float64()),  # share of the labels learned that are wrong on purpose
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
    is held against random carrying the same weights. Below it, the images without a label, and
    that labels are corrupted."""
    accuracy: dict[tuple[str, int, str], dict[int, float]] = {}
    baseline: dict[str, str] = {}
    for row in results.to_pylist():
        place = row["evaluator"], row["images"], row["method"]
        accuracy.setdefault(place, {})[row["seed"]] = row["accuracy"]
        baseline[row["method"]] = row["baseline"]
    lines: list[str] = [*_HEAD]
    for (evaluator, images, method), by_seed in accuracy.items():
        values = list(by_seed.values())
        cells = [evaluator, str(images), method, mean_text(values), str(len(values))]
        if method == baseline[method]:
            cells += ["", "baseline"]
        else:
            other = accuracy[evaluator, images, baseline[method]]
            cells += _difference(paired_difference(values, [other[s] for s in by_seed]))
        lines.append("| " + " | ".join(cells) + " |")
    wrong = corrupt_line(results)
    lines += [*_unlabeled(results.to_pylist()), *(["", wrong] if wrong else [])]
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


def classes_table(found: dict[str, Any]) -> str:
    """The evidence for a number of classes, best first."""
    lines = ["| classes | eigengap | agreement of halves |", "|---:|---:|---:|"]
    for line in found["evidence"][:8]:
        agreement = line.get("agreement")
        told = "" if agreement is None else f"{agreement:.2f}"
        lines.append(f"| {line['classes']} | {line['gap']:.4f} | {told} |")
    return "\n".join(lines) + "\n"


def curve_table(curve: list[dict[str, Any]], setting: str) -> str:
    """What each value of a searched setting came to."""
    best = {c["keep"]: max(d["mean"] for d in curve if d["keep"] == c["keep"]) for c in curve}
    lines = [
        f"Accuracy on pseudo-labels held out, by {setting}:",
        "",
        f"| kept | {setting} | accuracy | |",
        "|---:|---:|---:|---|",
    ]
    for c in curve:
        mark = "best" if c["mean"] == best[c["keep"]] else ""
        lines.append(f"| {c['keep']:.2%} | {c['value']:g} | {100 * c['mean']:.2f} | {mark} |")
    return "\n".join(lines) + "\n"


def curve_plot(curve: list[dict[str, Any]], setting: str) -> str:
    """The same as an SVG drawing, a line for each budget."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for keep in dict.fromkeys(c["keep"] for c in curve):
        points = sorted((c["value"], 100 * c["mean"]) for c in curve if c["keep"] == keep)
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{keep:.2%} kept")
    axes.set(xlabel=setting, ylabel="accuracy on held-out pseudo-labels (%)")
    axes.legend()
    return svg(figure)


def svg(figure: Figure) -> str:
    """The drawing, the same bytes for the same figure."""
    drawing = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "curve"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    return drawing.getvalue()


def _unlabeled(rows: list[dict[str, Any]]) -> list[str]:
    """One line on the images that were chosen and left out of training; none where all have a
    label. A row with weights has the images of its method."""
    shares: dict[str, dict[tuple[int, int], float]] = {}
    for row in rows:
        method = row["method"].removesuffix(" + weights")
        place = row["images"], row["seed"]
        shares.setdefault(method, {})[place] = (row["unlabeled"] or 0) / row["images"]
    if not any(any(each.values()) for each in shares.values()):
        return []
    told = ", ".join(
        f"{method} {100 * sum(each.values()) / len(each):.1f}%" for method, each in shares.items()
    )
    return ["", f"Chosen, without a label, left out of training (mean over seeds): {told}"]


def corrupt_line(results: pa.Table) -> str:
    """That labels are wrong on purpose; empty where none is. results: with a column corrupt."""
    share = max((share for share in results["corrupt"].to_pylist() if share), default=0.0)
    if not share:
        return ""
    return (
        f"Labels corrupted (evaluate.corrupt): {100 * share:g}% of those learned, by another class "
        "drawn at random; none of the test's"
    )


def interval_text(d: Difference) -> str:
    """A difference in percent, with its interval where it has one."""
    if d.low is None or d.high is None:
        return f"{100 * d.mean:+.2f}"
    return f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"


def mean_text(values: list[float]) -> str:
    """Mean ± standard deviation in percent."""
    mean, deviation = 100 * sum(values) / len(values), spread(values)
    return f"{mean:.2f} ± {100 * deviation:.2f}" if deviation is not None else f"{mean:.2f}"


def _difference(d: Difference) -> list[str]:
    verdict = d.verdict()
    told = f"{verdict} than random" if verdict in ("better", "worse") else verdict
    return [interval_text(d), told]
