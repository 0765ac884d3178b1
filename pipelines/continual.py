"""methods × memory sizes × seeds → what a classifier still knows that learned the pool's classes in
tasks, one after another, and replayed what each method chose of them; random among the methods."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from coreset_ray.config import Config, ContinualConfig, fingerprint, plain
from coreset_ray.core.continual import quotas, split_classes
from coreset_ray.distributed.continual import split_table
from coreset_ray.io.tables import read_table, write_table
from coreset_ray.version import __version__
from pipelines import embed, evaluate
from pipelines.compare_cells import Cell, counts, make_cells, warn_of_rest
from pipelines.continual_learn import Task, learn
from pipelines.continual_report import RESULTS, markdown
from pipelines.inputs import (
    NotReady,
    encoders,
    filled,
    key_of,
    listed_once,
    nothing_to_do,
    on_cluster,
    pool_table,
    workspace_of,
)
from pipelines.labeled import labeled_images
from pipelines.trainings import training_mark

_log = logging.getLogger(__name__)


@listed_once()
def run(config: Config) -> dict[str, Any]:
    """Selects from each task and learns what is not there yet; returns the stage's record."""
    told = _settings(config)
    warn_of_rest(config, "continual")
    evaluate.check(config)
    with on_cluster(config):
        embed.run(config)
        test = evaluate.test_table(config)
        embed.embed(config, test)
        snapshot = pool_table(config).snapshot()
        content = [key_of(snapshot), evaluate.marks(config), key_of(test.snapshot())]
        plan = [plain(config)[name] for name in ("continual", "compare", "signals")]
        plan.append(plain(config)["select"]["search"])
        mark = training_mark(config, [content, plan])
        stage = workspace_of(config).stage("continual", config.name, mark)
        if (record := stage.done()) is not None:
            nothing_to_do(stage)
            return record
        pool = pool_table(config)
        named = [read_table(pool.parts.part(p), ["uid", "shard", "key"]) for p in filled(snapshot)]
        images, truth, names = labeled_images(config, named, test)
        tasks = _tasks(config, told, images, truth, len(names), fingerprint(content))
        cells = _cells(config, tasks, len(images))
        results = learn(config, fingerprint(content), tasks, cells, images, truth)
    table = pa.Table.from_pylist(results, schema=RESULTS)
    write_table(stage.folder / "results.parquet", table)
    groups = [[names[c] for c in task.classes] for task in tasks]
    report = markdown(config.name, table, groups, len(images), told.learns == "coreset")
    with (stage.folder / "report.md").replacing() as sink:
        sink.write(report.encode())
    _log.info("continual: table and report in %s", stage.folder.uri)
    return stage.finish(
        {"tasks": groups, "config": plain(config), "version": __version__, "report": report}
    )


def _settings(config: Config) -> ContinualConfig:
    for section in ("continual", "compare", "evaluate"):
        if getattr(config, section) is None:
            raise NotReady(
                f"the configuration has no `{section}` section: `continual` says how classes "
                "arrive, `compare` names methods, memory sizes (budgets) and seeds, `evaluate` "
                "labeled test shards"
            )
    assert config.continual is not None and config.compare is not None
    if told := [c.label or c.method for c in config.compare.methods if c.weighted]:
        _log.warning("continual: a memory has no weights: `weighted` of %s is not read", told)
    return config.continual


def _tasks(
    config: Config, told: ContinualConfig, images: pa.Table, truth: pa.Table, c: int, content: str
) -> list[Task]:
    """Each task with a workspace of its own, which holds the embeddings of its images alone: what
    a method reads, signals included, knows of no other task."""
    split = split_classes(c, told.tasks)
    label, asked = images["label"].to_numpy(), truth["label"].to_numpy()
    number = np.empty(c, np.int64)
    for place, classes in enumerate(split):
        number[classes] = place
        if not np.isin(asked, classes).any() or not np.isin(label, classes).any():
            raise ValueError(
                f"continual.tasks={told.tasks}: task {place} has no image in the pool or in "
                "evaluate.test; take fewer tasks, or other test shards"
            )
    root = workspace_of(config).root / "tasks" / f"{config.name}-{content}-{told.tasks}"
    pool = pool_table(config)
    places = [root / str(place) for place in range(len(split))]
    task = dict(zip(images["uid"].to_pylist(), number[label].tolist(), strict=True))
    commits = list(pool.parts.committed(pool.shards).values())
    tables = [place / "embeddings" / pool.stage.name for place in places]
    split_table(pool.parts, commits, task, tables)
    found = []
    for place, classes in zip(places, split, strict=True):
        own = _own(config, place.uri, len(classes))
        found.append(Task(classes, own, embed.run(own)["rows"]))
    return found


def _own(config: Config, workspace: str, classes: int) -> Config:
    """The run on one task's images. A number of classes that was told is the task's."""
    own = config.replace("embed", encoders=tuple(encoders(config)))
    if own.signals.classes != "auto":
        own = own.replace("signals", classes=max(2, classes))
    changes = {"workspace": workspace, "pretrain": None, "evaluate": None, "continual": None}
    return own.model_copy(update=changes)


def _cells(config: Config, tasks: Sequence[Task], rows: int) -> dict[Cell, list[Cell]]:
    """For each method, memory size and seed what was selected of each task, as many as the memory
    takes of a task when it arrives."""
    assert config.compare is not None, "the caller checked"
    sizes = [task.rows for task in tasks]
    budgets = counts(config, rows)
    shares = {
        b: [int(quotas(k, sizes[: t + 1])[-1]) for t in range(len(tasks))]
        for b, k in budgets.items()
    }
    for budget, share in shares.items():
        if min(share) == 0:
            raise ValueError(
                f"compare.budgets: a memory of {budgets[budget]} images for {len(tasks)} tasks "
                "keeps none of some: raise it"
            )
    found: dict[Cell, list[Cell]] = {}
    for t, task in enumerate(tasks):
        wanted = tuple(sorted({share[t] for share in shares.values()}))
        compare = config.compare.model_copy(update={"budgets": wanted})
        made = make_cells(task.config.model_copy(update={"compare": compare}), task.rows)
        place = {(cell.label, cell.images, cell.seed): cell for cell in made}
        for budget, k in budgets.items():
            for cell in (c for c in made if c.images == shares[budget][t]):
                whole = Cell(cell.label, cell.method, float(budget), k, cell.seed)
                found.setdefault(whole, []).append(place[cell.label, cell.images, cell.seed])
    return found


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["continual", *sys.argv[1:]])
