"""A comparison drawn as SVG: accuracy and time against budget, coverage against radius."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coreset_ray.core.measures import EDGES, coverage_curve
from coreset_ray.core.standings import BASELINE, Runs
from pipelines.compare_cells import Cell
from pipelines.report import svg

_ONE_RUN = "budgets that a method chooses in one run each show all of that run"


def accuracy_plot(runs: Sequence[Runs], evaluator: str) -> str:
    """Mean against budget, a line a method with a band of one standard deviation; random on top."""
    figure, axes = _figure(f"accuracy of the {evaluator} (%)")
    for label, style in _styles([r.label for r in runs]).items():
        points = sorted((r for r in runs if r.label == label), key=lambda r: r.images)
        images, mean = [r.images for r in points], np.array([100 * r.mean for r in points])
        band = np.array([100 * (r.deviation or 0.0) for r in points])
        axes.plot(images, mean, marker="o", markersize=3, label=label, **style)
        axes.fill_between(images, mean - band, mean + band, alpha=0.15, linewidth=0, **style)
    return _finished(figure, axes, (r.images for r in runs))


def seconds_plot(cells: Sequence[Cell]) -> str:
    """Mean wall time from embeddings to manifest against budget."""
    return _cost_plot(cells, {c: c.seconds for c in cells}, "embeddings → manifest (s)")


def memory_plot(cells: Sequence[Cell]) -> str:
    """Mean growth of the process that chose against budget."""
    sizes = {c: None if c.memory is None else max(c.memory, 1) / 1e6 for c in cells}
    return _cost_plot(cells, sizes, "memory while choosing (MB)")


def _cost_plot(cells: Sequence[Cell], cost: Mapping[Cell, float | None], what: str) -> str:
    figure, axes = _figure(what)
    axes.set_title(_ONE_RUN, fontsize="x-small")
    known = [c for c in cells if cost[c] is not None]
    for label, style in _styles([c.label for c in known]).items():
        spent: dict[int, list[float]] = {}
        for cell in known:
            if cell.label == label:
                spent.setdefault(cell.images, []).append(cost[cell] or 0.0)
        points = sorted((k, sum(s) / len(s)) for k, s in spent.items())
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, **style)
    axes.set_yscale("log")
    return _finished(figure, axes, (cell.images for cell in known))


def coverage_plot(measures: Mapping[Cell, Mapping[str, Any]]) -> str:
    """Share of the images left out that lie within a radius of one kept, a panel a budget, over all
    seeds."""
    budgets = sorted({cell.images for cell in measures})
    figure = Figure(figsize=(4 * len(budgets), 3.6), layout="constrained")
    panels = figure.subplots(1, len(budgets), squeeze=False)[0]
    for axes, images in zip(panels, budgets, strict=True):
        cells = [cell for cell in measures if cell.images == images]
        for label, style in _styles([cell.label for cell in cells]).items():
            found = [measures[c]["distances"]["histogram"] for c in cells if c.label == label]
            curve = coverage_curve(np.sum(found, axis=0))
            axes.plot(EDGES, 100 * curve, label=label, **style)
        axes.set(title=f"{images:,} images", xlabel="distance (chord)", ylabel="covered (%)")
    panels[0].legend(fontsize="x-small")
    return svg(figure)


def _styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each method's colour; random black, and last so that it is drawn on top."""
    names = list(dict.fromkeys(label for label in labels if label != BASELINE))
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    found = {name: {"color": colours[i % len(colours)]} for i, name in enumerate(names)}
    return found | ({BASELINE: {"color": "black", "zorder": 5}} if BASELINE in labels else {})


def _figure(ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="images kept", ylabel=ylabel, xscale="log")
    return figure, axes


def _finished(figure: Figure, axes: Axes, budgets: Iterable[int]) -> str:
    ticks = sorted(set(budgets))
    axes.set_xticks(ticks, [f"{k:,}" for k in ticks])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.legend(fontsize="x-small")
    return svg(figure)
