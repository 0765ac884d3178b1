"""methods × budgets × seeds on one embedding table → which of them to take, beside random."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from coreset_ray.config import CompareConfig, Config, plain
from coreset_ray.io.tables import write_table
from coreset_ray.io.workspace import Stage
from coreset_ray.version import __version__
from coreset_ray.versions import versions
from pipelines import embed, evaluate
from pipelines.compare_advice import recommendation
from pipelines.compare_cells import Cell, make_cells, warn_of_rest
from pipelines.compare_evaluate import evaluate_cells, labels_told, settings_by_evaluator
from pipelines.compare_measures import agreements, measure_cells
from pipelines.compare_plots import accuracy_plot, coverage_plot, memory_plot, seconds_plot
from pipelines.compare_report import cost_table, markdown
from pipelines.compare_results import MEASURES, results_of, runs_of
from pipelines.inputs import (
    NotReady,
    key_of,
    listed_once,
    on_cluster,
    pool_table,
    workspace_of,
)
from pipelines.trainings import training_mark

_log = logging.getLogger(__name__)


@listed_once()
def run(config: Config) -> dict[str, Any]:
    """Embeds, selects and evaluates what is not there yet; returns the stage's record."""
    wanted = _settings(config)
    warn_of_rest(config, "compare")
    if config.evaluate is not None:
        evaluate.check(config)  # before hours are spent on the way there
    with on_cluster(config, config.compute.wait_for):
        rows = embed.run(config)["rows"]
        if config.evaluate is not None:
            embed.embed(config, evaluate.test_table(config))
        stage = stage_of(config)
        if (record := stage.done()) is not None:
            _log.info("compare: nothing to do, %s is finished", stage.folder.uri)
            return record
        cells = make_cells(config, rows)
        measures = measure_cells(config, cells) if wanted.measures else {}
        together = agreements(config, cells, rows) if wanted.measures else {}
        accuracies = evaluate_cells(config, cells) if config.evaluate is not None else []
    evaluators = _evaluators(config)
    corrupt = config.evaluate.corrupt if config.evaluate is not None else 0.0
    results = results_of(cells, accuracies, measures, together, evaluators, corrupt)
    write_table(stage.folder / "results.parquet", results)
    _draw(stage, results, cells, measures)
    report = "\n".join(
        [
            f"# {config.name}: {len(config.candidates())} methods on {rows:,} images\n",
            markdown(results, evaluators, rows, wanted.signals == "shared"),
            _labels_read(config),
            cost_table(results, rows),
            recommendation(results, evaluators, rows),
        ]
    )
    _write(stage, "report.md", report)
    _log.info("compare: tables and drawings in %s", stage.folder.uri)
    told = {"rows": rows, "cells": len(cells), "failed": sum(bool(c.failed) for c in cells)}
    made_by = {"config": plain(config), "versions": {"coreset_ray": __version__, **versions()}}
    return stage.finish(told | made_by | {"report": report})


def _labels_read(config: Config) -> str:
    """That methods saw labels of the pool; empty where they saw none."""
    told = config.signals
    if told.labels == "pseudo":
        return ""
    wrong = f"; {100 * told.corrupt:g}% of them made wrong" if told.corrupt else ""
    return (
        f"Methods that read labels READ THOSE OF THE WHOLE POOL (signals.labels={told.labels}"
        f"{wrong}), which a pool that is to be labeled has not.\n"
    )


def stage_of(config: Config) -> Stage:
    """Where this comparison's results lie, by all that they depend on."""
    told = plain(config)
    content = [key_of(pool_table(config).snapshot()), told["compare"], told["signals"]]
    content.append(told["select"]["search"])
    if config.evaluate is not None:
        test = key_of(evaluate.test_table(config).snapshot())
        content += [settings_by_evaluator(config.evaluate), evaluate.marks(config), test]
        content += labels_told(config.evaluate)
    mark = training_mark(config, content)
    return workspace_of(config).stage("comparisons", config.name, mark)


def _settings(config: Config) -> CompareConfig:
    if config.compare is None:
        raise NotReady(
            "the configuration has no `compare` section: add one with methods and budgets"
        )
    if config.evaluate is None and not config.compare.measures:
        raise ValueError(
            "compare.measures=false and no `evaluate` section: nothing would be reported; set one"
        )
    return config.compare


def _evaluators(config: Config) -> list[str]:
    found = [] if config.evaluate is None else [*settings_by_evaluator(config.evaluate)]
    return [*found, *([MEASURES] if _settings(config).measures else [])]


def _draw(
    stage: Stage,
    results: pa.Table,
    cells: Sequence[Cell],
    measures: Mapping[Cell, Mapping[str, Any]],
) -> None:
    for name in dict.fromkeys(results["evaluator"].to_pylist()):
        if name != MEASURES:
            _write(stage, f"accuracy-{name}.svg", accuracy_plot(runs_of(results, name), name))
    _write(stage, "seconds.svg", seconds_plot(cells))
    if any(cell.memory is not None for cell in cells):
        _write(stage, "memory.svg", memory_plot(cells))
    if measures:
        _write(stage, "coverage.svg", coverage_plot(measures))


def _write(stage: Stage, name: str, text: str) -> None:
    with (stage.folder / name).replacing() as sink:
        sink.write(text.encode())


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["compare", *sys.argv[1:]])
