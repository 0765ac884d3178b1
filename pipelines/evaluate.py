"""coreset → accuracy beside random: probes and ResNet, over seeds, in one table."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from coreset_ray.config import Config, EvaluateConfig, ProbeConfig, fingerprint, plain
from coreset_ray.core.corrupt import Corruption
from coreset_ray.core.random import uid_uniform
from coreset_ray.distributed.evaluations import relative, training_rows
from coreset_ray.distributed.export import locate_members
from coreset_ray.distributed.probe import ProbeJob, probe_all
from coreset_ray.distributed.train import train_and_test
from coreset_ray.io.labels import label_mark
from coreset_ray.io.shards import list_shards
from coreset_ray.io.tables import read_table, uid_of, uid_words, write_table
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage
from pipelines import export, select_coreset
from pipelines.embed import embed
from pipelines.inputs import (
    NotReady,
    Table,
    filled,
    nothing_to_do,
    on_cluster,
    pool_table,
    uri_of,
    workspace_of,
)
from pipelines.labeled import labeled_images
from pipelines.report import markdown, results_table
from pipelines.trainings import running

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """One row of the report at one seed: who chose the images, and whether weights are used."""

    method: str
    seed: int
    weighted: bool
    rows: pa.Table  # uid, shard, key, weight

    @property
    def name(self) -> str:
        return f"{self.method} + weights" if self.weighted else self.method


@as_stage("evaluate")
def run(config: Config) -> dict[str, Any]:
    """Evaluates the selection of this configuration; returns the stage's record."""
    settings = _settings(config)
    selection, _ = select_coreset.finished(config)
    export.finished(config)
    test = test_table(config)
    # The number of training workers moves batch normalisation, and with it the accuracy.
    workers = config.compute.train_workers if settings.resnet is not None else None
    content = fingerprint([selection.name, plain(config)["evaluate"], marks(config), workers])
    stage = workspace_of(config).stage("evaluations", config.name, content)
    if (record := stage.done()) is not None:
        nothing_to_do(stage)
        return record
    with on_cluster(config, config.compute.wait_for):
        embed(config, test)
        arms = _arms(config, settings)
        pool, truth, names = labeled_images(config, [arm.rows for arm in arms], test)
        results = []
        if settings.probe is not None or settings.knn is not None:
            results += _probe(config, settings, arms, pool, test, truth, names)
        if settings.resnet is not None:
            results += _train(config, settings, arms, pool, truth, names, stage)
    table = results_table(results)
    write_table(stage.folder / "results.parquet", table)
    report = markdown(table)
    with (stage.folder / "report.md").replacing() as sink:
        sink.write(report.encode())
    record = {"selection": selection.name, "results": table.to_pylist(), "report": report}
    return stage.finish(record)


def check(config: Config) -> None:
    """Raises `ValueError` where the test shards or the file of labels are not there."""
    settings = _settings(config)
    assert test_table(config).shards, "list_shards refuses an entry that names nothing"
    label_mark(uri_of(config, settings.labels))


def test_table(config: Config) -> Table:
    """The embedding table of the test shards."""
    return Table(config, _settings(config).test, "test_embeddings")


def marks(config: Config) -> list[Any]:
    """What changes when labels do. They lie outside what was embedded: in the shards' other
    members, or in a file."""
    source = label_mark(uri_of(config, _settings(config).labels))
    return [_shard_marks(pool_table(config)), _shard_marks(test_table(config)), source]


def _settings(config: Config) -> EvaluateConfig:
    if config.evaluate is None:
        raise NotReady(
            "the configuration has no `evaluate` section: add one that names labeled test shards"
        )
    return config.evaluate


def _shard_marks(table: Table) -> list[Any]:
    return [[s.name, s.size, s.mtime_ns] for s in table.shards]


def _arms(config: Config, settings: EvaluateConfig) -> list[Arm]:
    """For each seed: the coreset, random of the same size, and both with loss weights; random
    alone where the coreset is random itself.

    The second random row carries the coreset's weights in random order: what scaling the loss
    does by itself, without the selection.
    """
    arms = []
    for seed in settings.seeds:
        baseline = _manifest(config.baseline(seed))
        if config.label == "random":
            arms.append(Arm("random", seed, False, baseline))
            continue
        coreset = _manifest(config.seeded(seed) if settings.reselect else config)
        arms += [
            Arm(config.label, seed, False, coreset),
            Arm("random", seed, False, baseline),
        ]
        weights = coreset["weight"].to_numpy()
        if settings.weighted and (weights != 1).any():
            shuffled = weights[np.argsort(uid_uniform(seed, uid_words(baseline["uid"]), use=2))]
            place = baseline.column_names.index("weight")
            control = baseline.set_column(place, "weight", pa.array(shuffled))
            arms += [
                Arm(config.label, seed, True, coreset),
                Arm("random", seed, True, control),
            ]
    return arms


def _manifest(config: Config) -> pa.Table:
    """The manifest of a configuration, scored and selected if it was not yet."""
    stage = select_coreset.make(config)
    columns = ["uid", "shard", "key", "weight"]
    return relative(read_table(stage.folder / "manifest.parquet", columns))


def _probe(
    config: Config,
    settings: EvaluateConfig,
    arms: list[Arm],
    images: pa.Table,
    test: Table,
    truth: pa.Table,
    names: list[str],
) -> list[dict[str, Any]]:
    pool = pool_table(config)
    linear, wanted = settings.probe or ProbeConfig(), []
    if settings.probe is not None:
        wanted += [("probe", arm, None) for arm in arms]
    if settings.knn is not None:
        wanted += [("knn", arm, settings.knn.k) for arm in arms if not arm.weighted]
    jobs = [
        ProbeJob(_learned(arm, images, settings, names), arm.weighted, k) for _, arm, k in wanted
    ]
    outcomes = probe_all(
        jobs,
        (pool.parts, list(filled(pool.snapshot()))),
        (test.parts, list(filled(test.snapshot()))),
        truth,
        l2=linear.l2,
        max_iterations=linear.max_iterations,
    )
    stuck = sum(not outcome["converged"] for outcome in outcomes)
    if stuck:
        _log.warning(
            "evaluate: %d of %d probes stopped at evaluate.probe.max_iterations = %d before the "
            "optimum",
            *(stuck, len(arms), linear.max_iterations),
        )
    return [
        _result(evaluator, arm, job.train, outcome["accuracy"], settings.corrupt)
        for (evaluator, arm, _), job, outcome in zip(wanted, jobs, outcomes, strict=True)
    ]


def _train(
    config: Config,
    settings: EvaluateConfig,
    arms: list[Arm],
    images: pa.Table,
    truth: pa.Table,
    names: list[str],
    stage: Stage,
) -> list[dict[str, Any]]:
    """One training for each arm; one that finished is not repeated."""
    assert settings.resnet is not None, "the caller checked"
    exported = _exported_images(config)
    results = []
    for arm in arms:
        ours = arm.method != "random" and (arm.seed == config.score.seed or not settings.reselect)
        rows = _learned(arm, _moved(images, exported) if ours else images, settings, names)
        method = arm.method.replace(" + ", "-")
        name = f"{method}-{arm.seed}{'-weighted' if arm.weighted else ''}"
        done = stage.folder / "training" / name / "result.json"
        if not done.exists():
            outcome = train_and_test(
                rows,
                truth,
                replace(settings.resnet, weighted=arm.weighted and config.weighting()),
                classes=len(names),
                seed=arm.seed,
                running=running(config, stage.folder, name),
            )
            _log.info(
                "evaluate: %s seed %d: accuracy %.4f", arm.name, arm.seed, outcome["accuracy"]
            )
            done.write_json(outcome)
        accuracy = done.read_json()["accuracy"]
        results.append(_result(settings.resnet.model, arm, rows, accuracy, settings.corrupt))
    return results


def _learned(arm: Arm, images: pa.Table, settings: EvaluateConfig, names: list[str]) -> pa.Table:
    """What is trained on in a row. names: of the classes."""
    corruption = Corruption(settings.corrupt, len(names), arm.seed)
    return training_rows(arm.rows, images, arm.name, corruption)


def _exported_images(config: Config) -> pa.Table:
    """Where the exported coreset's images lie: uid, path, offset, size."""
    stage, record = export.finished(config)
    index = read_table(stage.folder / "index.parquet")
    shards = {s.name: s for s in list_shards([(stage.folder / n).uri for n in record["shards"]])}
    wanted = index.select(["uid", "export_shard", "export_key"])
    wanted = wanted.rename_columns(["pool_uid", "shard", "key"])
    found = locate_members(shards, _with_uid(wanted))
    images = found.filter(found["image"]).select(["shard", "key", "path", "offset", "size"])
    joined = images.join(wanted, ["shard", "key"])
    return joined.select(["pool_uid", "path", "offset", "size"]).rename_columns(
        ["uid", "path", "offset", "size"]
    )


def _with_uid(rows: pa.Table) -> pa.Table:
    pairs = zip(rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True)
    return rows.append_column("uid", pa.array([uid_of(*pair) for pair in pairs]))


def _moved(images: pa.Table, exported: pa.Table) -> pa.Table:
    """The same images and labels, read from the exported shards."""
    return exported.join(images.select(["uid", "label"]), "uid", join_type="inner")


def _result(
    evaluator: str, arm: Arm, train: pa.Table, accuracy: float, corrupt: float
) -> dict[str, Any]:
    return {
        "evaluator": evaluator,
        "method": arm.name,
        "baseline": "random + weights" if arm.weighted else "random",
        "seed": arm.seed,
        "images": len(arm.rows),
        "unlabeled": len(arm.rows) - len(train),
        "corrupt": corrupt,
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["evaluate", *sys.argv[1:]])
