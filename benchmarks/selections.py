"""Coresets of a comparison chosen in tasks that hold the pool, against one after another over the
cluster's processes. Signals and scores are there beforehand; both sides run in turn, twice.

    python benchmarks/selections.py configs/compare_demo.yaml WORKSPACE

WORKSPACE is an empty folder: its selections are moved aside between the runs.
"""

import sys
import time
from pathlib import Path

from coreset_ray.config import Config, load
from coreset_ray.distributed import at_hand
from coreset_ray.distributed.session import session
from pipelines import compare_cells, embed, select_coreset, select_many


def main() -> None:
    path, workspace = sys.argv[1:3]
    config = load(path, [f"workspace={workspace}", "compare.signals=shared"])
    whole = at_hand.AT_HAND
    with session(config.compute.address):
        rows = embed.run(config)["rows"]
        images = compare_cells.counts(config, rows)
        configs = [
            one
            for label, candidate in config.candidates().items()
            for _, one in compare_cells._cells_of(config, label, candidate, images)
        ]
        for one in configs:
            select_coreset.make_inputs(one)
        _choose(configs, Path(workspace))  # processes and compiled code
        for size in (whole, 0, 0, whole):
            at_hand.AT_HAND = size
            count, seconds = _choose(configs, Path(workspace))
            side = "in tasks" if size else "over the cluster"
            print(f"{side}: {count} coresets in {seconds:.1f} s, {seconds / count:.2f} s each")


def _choose(configs: list[Config], workspace: Path) -> tuple[int, float]:
    """Distinct coresets, and the seconds that all of them took."""
    if (earlier := workspace / "selections").exists():
        earlier.rename(workspace / f"selections-{time.time_ns()}")
    start = time.monotonic()
    assert all(failed is None for _, failed in select_many.run(configs))
    seconds = time.monotonic() - start
    return len({select_coreset.finished(one)[0].name for one in configs}), seconds


if __name__ == "__main__":
    main()
