"""The chain again and again on three nodes of which something is killed every so often: each has to
end with the tables of an undisturbed run, bit for bit.

    python benchmarks/soak.py [--minutes 60] [--every 60] [--draws 1000000] [--seed 0]

Real Ray nodes on this machine; digits in 16 shards; embedding, neighbours, clusters, pseudo-labels,
dynamics, draws, selection, export. Killed at random times: a node, a process of Ray's, the driver.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from chains import pool_of, soak, undisturbed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=60, help="seconds, in the mean")
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pool, calm = pool_of(Path(folder)), Path(folder, "calm")
        calm.mkdir()
        start = time.monotonic()
        wanted = undisturbed(calm, pool, options.draws)
        print(f"undisturbed, one node: {time.monotonic() - start:.0f} s, {len(wanted)} tables")
        told = soak(
            *(Path(folder), pool, wanted),
            draws=options.draws,
            seconds=60 * options.minutes,
            every=options.every,
            seed=options.seed,
        )
    kills = ", ".join(f"{count} x {kind}" for kind, count in sorted(told.kills.items()))
    print(f"{told.chains} chains, all alike; killed: {kills}; commands given again: {told.again}")


if __name__ == "__main__":
    main()
