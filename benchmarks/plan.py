"""What `coreset-ray plan` foretells against what the same configuration then takes.

    python benchmarks/plan.py CONFIG [key=value ...]

Plans, then runs embed, score, select and export one after another in the same Ray session, and
prints predicted / actual for each stage that was not finished before.
"""

import argparse
import time

import ray

from coreset_ray.config import load
from pipelines import embed, export, plan, score, select_coreset

STAGES = (("embed", embed), ("score", score), ("select", select_coreset), ("export", export))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load(options.config, options.overrides)
    address = config.compute.address or "local"  # never a Ray that others use
    ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=40)
    start = time.perf_counter()
    foretold = plan.run(config)
    print(foretold["report"])
    print(f"\nThe plan itself took {time.perf_counter() - start:.1f} s.\n")
    print("| stage | predicted s | actual s | predicted / actual |\n|---|---:|---:|---:|")
    for name, module in STAGES:
        told = foretold["stages"][name]
        if told["note"] in ("finished", "no scores"):
            print(f"| {name} | {told['note']} | | |", flush=True)
            continue
        start = time.perf_counter()
        module.run(config)
        actual = time.perf_counter() - start
        ratio = told["seconds"] / actual
        print(f"| {name} | {told['seconds']:.2f} | {actual:.2f} | {ratio:.2f} |", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
