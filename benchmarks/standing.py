"""Nights in a row: shards arrive a few at a time, `reselect` runs after each, and the coreset that
stands at the end is held against one chosen all at once, and against random.

    python benchmarks/standing.py CONFIG WORKSPACE [key=value ...] [--seeds 0 1 2 3 4]
        [--arrivals 49 1]

CONFIG has `evaluate` (labels of the pool and a test set). The pool's shards are copied, with their
times, into WORKSPACE/pool as they arrive, by default in ten nights. Says how many shards were
embedded each night, seconds of a night with new shards and of one with nothing new, and coverage
and probe accuracy at the end.
"""

import argparse
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.config import Config, load
from coreset_ray.core.compare import paired_difference
from coreset_ray.distributed.coverage import measure_coresets
from coreset_ray.distributed.probe import ProbeJob, probe_all
from coreset_ray.io.tables import read_table
from pipelines import evaluate, reselect, select_coreset
from pipelines.embed import embed
from pipelines.inputs import filled, pool_table, workspace_of
from pipelines.labeled import labeled_images

_METHODS: dict[str, dict[str, Any]] = {
    "random": {"score": {"method": "random"}},
    "blindcs": {},
    "k_center": {"select": {"method": "k_center"}},
}
_ALIKE = ("k_center",)  # the same for every seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arrivals", type=int, nargs="+", help="shards of each night")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=40)
    pool = options.workspace / "pool"
    pool.mkdir(parents=True)
    words = [*options.overrides, f"workspace={options.workspace}", f"pool.shards={pool}"]
    given = load(options.config, options.overrides)
    shards = [Path(shard.uri) for shard in pool_table(given).shards]
    config = load(options.config, words)
    nights = np.cumsum(options.arrivals)[:-1] if options.arrivals else 10
    for night, some in enumerate(np.array_split(np.array(shards, object), nights), 1):
        for shard in some:
            shutil.copy2(shard, pool)
        _night(config, night, options.seeds)
    start = time.monotonic()
    again = reselect.run(_named(config, "random", options.seeds[0]))
    assert again["report"].startswith("Nothing new"), again["report"]
    print(f"\nA night with nothing new: {time.monotonic() - start:.2f} s in this process\n")
    _judge(config, options.seeds)
    ray.shutdown()


def _night(config: Config, night: int, seeds: list[int]) -> None:
    """Every method and seed takes in what has arrived."""
    table, told = pool_table(config), []
    before = len(table.parts.committed(table.shards))
    seconds = []
    for label in _METHODS:
        for seed in _seeds(label, seeds):
            start = time.monotonic()
            told.append(reselect.run(_named(config, label, seed)))
            seconds.append(time.monotonic() - start)
    after = len(table.parts.committed(table.shards))
    print(
        f"night {night}: {after - before} of {len(table.shards)} shards embedded; "
        f"{told[0]['images']} images, {told[0]['added']} added; {seconds[0]:.0f} s with embedding, "
        f"then {np.median(seconds[1:]):.1f} s a selection",
        flush=True,
    )


def _seeds(label: str, seeds: list[int]) -> list[int]:
    return seeds[:1] if label in _ALIKE else seeds


def _named(config: Config, label: str, seed: int) -> Config:
    """A configuration of its own for a method and seed, on the same embeddings."""
    changes = _METHODS[label]
    if "score" in changes:
        config = config.replace("score", **changes["score"], params={})
    if "select" in changes:
        score = type(config.score)()
        config = config.model_copy(update={"score": score}).replace("select", **changes["select"])
    named = config.replace("score", seed=seed)
    return named.model_copy(update={"name": f"{label}-{seed}"})


def _judge(config: Config, seeds: list[int]) -> None:
    """Coverage and accuracy of what stands, and of what a choice all at once would be."""
    rows: dict[tuple[str, str], list[pa.Table]] = {}
    for label in _METHODS:
        for seed in _seeds(label, seeds):
            named = _named(config, label, seed)
            standing = workspace_of(named).published(named.name).current()
            assert standing is not None
            once = select_coreset.make(named).folder / "manifest.parquet"
            for how, place in (("nightly", standing.manifest), ("at once", once)):
                table = read_table(place, ["uid", "shard", "key"])
                ones = pa.array(np.ones(len(table)))
                rows.setdefault((label, how), []).append(table.append_column("weight", ones))
    every = [table for tables in rows.values() for table in tables]
    accuracy, outside = _accuracy(config, every), _distances(config, every)
    place, found = 0, {}
    for name, tables in rows.items():
        span = slice(place, place := place + len(tables))
        found[name] = accuracy[span], outside[span]
    print("| method | chosen | probe (mean ± std) | beside random at once | mean distance | q95 |")
    print("|---|---|---:|---:|---:|---:|")
    base = found["random", "at once"][0]
    for (label, how), (own, far) in found.items():
        gap = paired_difference(own, base) if len(own) == len(base) else None
        told = f"{100 * (np.mean(own) - np.mean(base)):+.2f}"
        if gap is not None and gap.low is not None and gap.high is not None and own != base:
            told += f" [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]"
        spread = f" ± {100 * np.std(own, ddof=1):.2f}" if len(own) > 1 else ""
        mean, q95 = (np.mean([f[key] for f in far]) for key in ("mean", "q95"))
        cells = [label, how, f"{100 * np.mean(own):.2f}{spread}", told, f"{mean:.4f}", f"{q95:.3f}"]
        print(f"| {' | '.join(cells)} |")


def _accuracy(config: Config, coresets: list[pa.Table]) -> list[float]:
    settings, test = config.evaluate, evaluate.test_table(config)
    assert settings is not None and settings.probe is not None, "the configuration evaluates"
    embed(config, test)
    images, truth, _ = labeled_images(config, coresets, test)
    label = dict(zip(images["uid"].to_pylist(), images["label"].to_pylist(), strict=True))
    jobs = []
    for table in coresets:
        labels = pa.array([label[uid] for uid in table["uid"].to_pylist()], pa.int32())
        jobs.append(ProbeJob(table.select(["uid", "weight"]).append_column("label", labels), False))
    pool, probe = pool_table(config), settings.probe
    told = probe_all(
        jobs,
        (pool.parts, list(filled(pool.snapshot()))),
        (test.parts, list(filled(test.snapshot()))),
        truth,
        l2=probe.l2,
        max_iterations=probe.max_iterations,
    )
    return [outcome["accuracy"] for outcome in told]


def _distances(config: Config, coresets: list[pa.Table]) -> list[dict[str, Any]]:
    table = pool_table(config)
    told = measure_coresets(table.parts, filled(table.snapshot()), coresets)
    return [each["distances"] for each in told]


if __name__ == "__main__":
    main()
