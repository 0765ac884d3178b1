"""Does a BlindCS order that has converged further select better? On a clean pool and on one with
near-duplicates, by linear probe, random beside it.

    python benchmarks/convergence.py duplicates TRAIN OUT
    python benchmarks/convergence.py run POOL TEST WORKSPACE [--budgets 0.01 0.05 0.1 0.3]

duplicates: as many images as TRAIN has, in groups whose sizes fall as 1/rank (of 50,000 images:
12,600 groups, the largest 4,351); the others of a group are the first one moved by a pixel,
brightened or darkened by up to a tenth, and encoded again. run: four levels of convergence, five
seeds that each score anew; also how alike the choices of two seeds are, and how many groups they
hold (images whose keys agree up to the first "-" are of one group).
"""

import argparse
import io
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image, ImageChops, ImageEnhance

from coreset_ray.config import Config, load
from coreset_ray.distributed.export import locate_members
from coreset_ray.distributed.probe import ProbeJob, probe_all
from coreset_ray.io.labels import attach_labels
from coreset_ray.io.shards import list_shards, read_samples
from coreset_ray.io.source_writer import write_shards
from coreset_ray.io.sources import Sample
from coreset_ray.io.tables import read_table
from pipelines import embed, evaluate, score, select_coreset
from pipelines.inputs import Table, filled, pool_table
from pipelines.report import markdown, results_table

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_blindcs.yaml"
LEVELS: dict[str, dict[str, Any]] = {
    "T = 100,000": {"draws": 100_000},
    "T = 1,000,000 (the paper)": {"draws": 1_000_000},
    "T = 5,000,000, 400 x 4": {
        **{"draws": 5_000_000, "draws_per_slice": 400, "points_per_draw": 4}
    },
}
LARGEST = 4351 / 50_000  # part of the pool that the largest group is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("duplicates")
    making.add_argument("train")
    making.add_argument("out", type=Path)
    making.set_defaults(run=lambda o: write_shards(repeated(o.train), o.out, per_shard=1000))
    running = commands.add_parser("run")
    running.add_argument("pool")
    running.add_argument("test")
    running.add_argument("workspace")
    running.add_argument("--budgets", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.3])
    running.add_argument("--seeds", type=int, default=5)
    running.add_argument("--levels", type=int, nargs="+", default=[0, 1, 2], help="which of them")
    running.set_defaults(run=compare)
    options = parser.parse_args()
    options.run(options)


def repeated(train: str) -> Iterator[Sample]:
    """Samples of the pool with near-duplicates, in random order."""
    images = []
    for shard in list_shards([f"{train}/*.tar"]):
        with open(shard.uri.removeprefix("file://"), "rb") as stream:
            for sample in read_samples(stream, shard.size, {"jpg", "cls"}.__contains__):
                members = {name: member.data or b"" for name, member in sample.members.items()}
                images.append(members)
    n = len(images)
    rng = np.random.default_rng(0)
    images = [images[i] for i in rng.permutation(n)]
    sizes = np.ceil(LARGEST * n / np.arange(1, n + 1)).astype(int)
    groups = np.repeat(np.arange(n), sizes)[:n]
    place = np.concatenate([np.arange(s) for s in sizes])[:n]
    for i in rng.permutation(n):
        members = images[groups[i]]
        jpeg = members["jpg"] if place[i] == 0 else altered(members["jpg"], rng)
        key = f"g{groups[i]:05}-{place[i]:04}"
        yield Sample(key, {"jpg": jpeg, "cls": members["cls"]})


def altered(jpeg: bytes, rng: np.random.Generator) -> bytes:
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    image = ImageChops.offset(image, *rng.integers(-1, 2, 2).tolist())
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.9, 1.1))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=int(rng.integers(75, 96)))
    return out.getvalue()


def compare(options: argparse.Namespace) -> None:
    config = load(
        CONFIG,
        [
            *(f"pool.shards={options.pool}", f"evaluate.test.shards={options.test}"),
            *(f"workspace={options.workspace}", "compute.score_workers=2"),
        ],
    )
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=40)
    embed.run(config)
    test = evaluate.test_table(config)
    embed.embed(config, test)
    table = pool_table(config)
    labels = labeled(table)
    truth = labeled(test)
    results, jobs = [], []
    levels = dict(list(LEVELS.items())[i] for i in options.levels)
    for name, params in {**levels, "random": None}.items():
        for budget in options.budgets:
            kept = [chosen(config, params, budget, seed) for seed in range(options.seeds)]
            describe(name, kept)
            jobs += [ProbeJob(rows.join(labels, "uid"), False) for rows in kept]
            results += [
                {
                    **{"evaluator": "probe", "method": name, "baseline": "random"},
                    **{"seed": seed, "images": len(rows)},
                }
                for seed, rows in enumerate(kept)
            ]
    assert config.evaluate is not None and config.evaluate.probe is not None
    outcomes = probe_all(
        *(jobs, (table.parts, list(filled(table.snapshot())))),
        *((test.parts, list(filled(test.snapshot()))), truth),
        **config.evaluate.probe.model_dump(),
    )
    both = zip(results, outcomes, strict=True)
    print(markdown(results_table([r | {"accuracy": o["accuracy"]} for r, o in both])))
    ray.shutdown()


def chosen(config: Config, params: dict[str, Any] | None, budget: float, seed: int) -> pa.Table:
    """uid, key and weight of what is kept; says how long scoring took and how steady it is."""
    method = {"method": "random", "params": {}} if params is None else {"params": params}
    config = config.replace("score", seed=seed, **method).replace("select", budget=budget)
    start = time.perf_counter()
    told = score.run(config)
    if params is not None and (spent := time.perf_counter() - start) > 2:
        noise = told["stability"]
        print(f"{params} seed {seed}: {spent:.0f} s, halves repeat {noise['repeat']}", flush=True)
    select_coreset.run(config)
    stage, _ = select_coreset.finished(config)
    return read_table(stage.folder / "manifest.parquet", ["uid", "key", "weight"])


def describe(name: str, kept: list[pa.Table]) -> None:
    uids = [set(rows["uid"].to_pylist()) for rows in kept]
    shared = [len(a & b) / len(a) for a, b in itertools.combinations(uids, 2)]
    groups = [len({k.split("-")[0] for k in rows["key"].to_pylist()}) / len(rows) for rows in kept]
    print(
        f"{name}: {len(kept[0])} images, shared by two seeds {np.mean(shared):.1%}, "
        f"groups {np.mean(groups):.1%}",
        flush=True,
    )


def labeled(table: Table) -> pa.Table:
    """uid and label, a whole number, of every image."""
    parts = [table.parts.part(part) for part in filled(table.snapshot())]
    rows = pa.concat_tables([read_table(part, ["uid", "shard", "key"]) for part in parts])
    images = attach_labels(locate_members({s.name: s for s in table.shards}, rows), "cls")
    label = pa.array([int(text) for text in images["label"].to_pylist()], pa.int32())
    return images.select(["uid"]).append_column("label", label)


if __name__ == "__main__":
    main()
