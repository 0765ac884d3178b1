"""How the stages of ELFS grow with the pool, on made-up rows.

    python benchmarks/elfs_stages.py FOLDER [--rows 10000 50000 200000] [--dims 128]

Rows around 10 centres, no images. What does not grow with the pool is kept small: TEMI of 3 heads
for 5 epochs, an MLP's dynamics over 10, one budget of 10%, every hard rate tried. Ends with the
seconds of each stage by the size of the pool, start-ups included.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import ray

from coreset_ray.config import Config, load
from coreset_ray.distributed.trial import made_up
from coreset_ray.io.tables import QUARANTINE, Commit, content_hash, part_name
from pipelines import embed, score, select_coreset, signals
from pipelines.inputs import pool_table

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_blindcs.yaml"
_SHARD = 1000  # rows
_CENTRES = 10
_SETTINGS = [
    *("score.method=elfs", "score.params={}", "select.budget=0.1", "evaluate=null"),
    *("signals.classes=10", "signals.dynamics.params={epochs: 10}"),
    "signals.pseudo_labels.params={heads: 3, epochs: 5, warmup_epochs: 1, lr: 1e-3}",
    "select.search={stop: grid}",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--dims", type=int, default=128)
    options = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=40)
    spent: dict[str, dict[int, float]] = {}
    for rows in options.rows:
        folder = options.folder / f"{rows}"
        config = written(folder, rows, options.dims)
        embed.run(config)  # all is there: takes the snapshot
        signals.make(config)
        score.run(config)
        select_coreset.run(config)
        for done in Path(folder, "work").glob("*/*/done.json"):
            name = f"{done.parent.parent.name}/{done.parent.name.rsplit('-', 1)[0]}"
            if (seconds := json.loads(done.read_text()).get("seconds")) is not None:
                spent.setdefault(name, {})[rows] = seconds
        print({name: found.get(rows) for name, found in spent.items()}, flush=True)
    print("| stage | " + " | ".join(f"{rows:,}" for rows in options.rows) + " |")
    for name, found in sorted(spent.items(), key=lambda stage: -max(stage[1].values())):
        print(f"| {name} | " + " | ".join(f"{found[rows]:.0f}" for rows in options.rows) + " |")
    ray.shutdown()


def written(folder: Path, rows: int, dims: int) -> Config:
    """A pool of shards that hold no image, whose embeddings are there already."""
    rng, shards = np.random.default_rng(0), folder / "shards"
    centres = rng.normal(size=(_CENTRES, dims)).astype(np.float32)
    shards.mkdir(parents=True, exist_ok=True)
    for first in range(0, rows, _SHARD):
        (shards / f"{first:08d}.tar").write_bytes(b"none")
    config = load(CONFIG, [f"pool.shards={shards}", f"workspace={folder}/work", *_SETTINGS])
    table = pool_table(config)
    (table.stage.folder / "table.json").write_json(table.record())
    for shard in table.shards:
        count = min(_SHARD, rows - int(Path(shard.name).stem))
        block = centres[rng.integers(0, _CENTRES, count)]
        block = block + 2 * rng.standard_normal((count, dims), dtype=np.float32)
        told = made_up(shard.name, block)
        committed = Commit(
            *(shard.name, part_name(shard), count, 0, 0, "", content_hash(told), "float32")
        )
        table.parts.commit(committed, told, QUARANTINE.empty_table())
    return config


if __name__ == "__main__":
    main()
