"""What each method of a comparison bought on a degraded pool, beside random: copies, classes, junk.

    python benchmarks/web_pool.py configs/compare_web.yaml data/web/truth.parquet [key=value ...]

The comparison must have ended; its selections are read, nothing is selected anew.
"""

import argparse
from typing import Any

import numpy as np
import ray

from coreset_ray.config import load
from coreset_ray.core.compare import paired_difference
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import read_table
from coreset_ray.io.truth import bought
from pipelines.compare_cells import make_cells, manifest_of
from pipelines.inputs import pool_table

_COLUMNS = ("distinct", "off_topic", "blank", "noise", "classes", "rare_classes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("truth")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=40)
    config = load(options.config, options.overrides)
    truth = read_table(locate(options.truth))
    cells = make_cells(config, pool_table(config).snapshot()["rows"])
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for cell in (c for c in cells if not c.failed):
        manifest = read_table(manifest_of(config, cell.selection), ["uid", "shard", "key"])
        told = bought(manifest, truth)
        row = {name: float(told[name]) for name in _COLUMNS}
        row["distinct"] /= told["images"]
        found.setdefault((cell.images, cell.label), []).append(row)
    print(
        "| images | method | distinct | beside random [95% CI] | off-topic | blank, noise "
        "| classes | rare ones |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for (images, label), told in found.items():
        mean = {name: float(np.mean([t[name] for t in told])) for name in told[0]}
        own, base = ([t["distinct"] for t in r] for r in (told, found[images, "random"]))
        gap = paired_difference(own, base)
        told_gap = f"{100 * gap.mean:+.1f}"
        if label == "random":
            told_gap = ""
        elif gap.low is not None and gap.high is not None:
            told_gap += f" [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        junk = 100 * (mean["blank"] + mean["noise"])
        print(
            f"| {images} | {label} | {100 * mean['distinct']:.1f}% | {told_gap} | "
            f"{100 * mean['off_topic']:.1f}% | {junk:.1f}% | {mean['classes']:.1f} | "
            f"{mean['rare_classes']:.1f} |"
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
