"""The main job: 50,000 real images from shards to an evaluated coreset at three budgets.

    python benchmarks/cifar10.py TRAIN TEST WORKSPACE [--budgets 0.01 0.1 0.3]

TRAIN and TEST are folders of shards with .cls members. Prints wall time by stage, the quarantine
count, and one table a budget: five seeds, each of which scores anew. What is finished is not
repeated; times are of what this call did.
"""

import argparse
import logging
import time
from pathlib import Path

import ray

from coreset_ray.config import load
from pipelines import embed, evaluate, export, score, select_coreset

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_blindcs.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("workspace")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.01, 0.1, 0.3])
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    for budget in options.budgets:
        places = [f"pool.shards={options.train}", f"evaluate.test.shards={options.test}"]
        extra = [f"workspace={options.workspace}", f"select.budget={budget}", *options.overrides]
        config = load(CONFIG, places + extra)
        for stage in (embed, score, select_coreset, export, evaluate):
            start = time.monotonic()
            outcome = stage.run(config)
            name = stage.__name__.rpartition(".")[2]
            print(f"budget {budget} {name}: {time.monotonic() - start:.1f} s", flush=True)
            if stage is embed:
                print(f"{outcome['rows']} images, {outcome['quarantined']} quarantined")
        print(outcome["report"], flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
