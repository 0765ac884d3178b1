"""How long a node that is killed holds a run up: three real Ray nodes on this machine, one of which
is killed in mid-embed and in mid-score, beside the same runs undisturbed.

    python benchmarks/recovery.py [--rounds 3] [--draws 2000000]

Prints seconds of both, and from the kill to the next commit.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from chains import committed, configuration, draws_kept, pool_of
from raylets import Nodes, nodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=2_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pool = pool_of(Path(folder))
        for number in range(options.rounds):
            for killed in (False, True):
                place = Path(folder, f"{number}-{killed}")
                place.mkdir()
                config = configuration(place, pool, options.draws)
                with nodes(3) as three:
                    for command, done in (("embed", committed), ("score", draws_kept)):
                        told = timed(three, command, config, done, killed)
                        print(f"round {number}, {command}, {told}", flush=True)


def timed(of: Nodes, command: str, config: Path, done: Callable[[Path], int], killed: bool) -> str:
    work, start = config.parent / "work", time.monotonic()
    driver = of.drive(command, config)
    told = ""
    if killed:
        driver.until(lambda: done(work) >= 1)
        of.kill(of.others[0])
        at, before = time.monotonic(), done(work)
        driver.until(lambda: done(work) > before)
        told = f", the next commit {time.monotonic() - at:.1f} s after the kill"
    driver.ends()
    whole = time.monotonic() - start
    if killed:
        of.start()
    return f"{'a node killed' if killed else 'undisturbed'}: {whole:.1f} s{told}"


if __name__ == "__main__":
    main()
