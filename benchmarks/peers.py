"""Methods beside apricot, submodlib and DeepCore's own form on the same rows: seconds, memory,
objective.

    pip install apricot-select submodlib-py      (anywhere that Python finds them, as a clone of
    https://github.com/PatrickZH/DeepCore)
    python benchmarks/peers.py WORKSPACE [--n 5000] [--k 500] [--rounds 3] [--works k_center ...]

The first n rows of a workspace's only embedding table, and its only classifier (`proxy`). Each side
is a process of its own with one thread, in turn, after a small choice that compiles. `peak`: the
most that was resident beyond what it was before. The objective of every side is computed alike, see
`peer_works`.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from peer_works import WORKS, rows_of

_SMALL = 500  # rows of the choice that compiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace")
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--k", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--works", nargs="+", default=list(WORKS))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return run(options)
    alone = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    print("| work | side | seconds | peak MB | objective |\n|---|---|---:|---:|---:|")
    for work in options.works:
        found: dict[str, list[dict[str, float]]] = {side: [] for side in WORKS[work].sides}
        for _ in range(options.rounds):
            for side in found:
                words = [sys.executable, __file__, *sys.argv[1:], "--one", work, side]
                done = subprocess.run(words, check=True, stdout=-1, env=os.environ | alone)
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
        for side, rounds in found.items():
            cells = [f"{np.mean(v):.2f} ± {np.std(v):.2f}" for v in (
                [r[name] for r in rounds] for name in ("seconds", "peak"))]  # fmt: skip
            told = f"{work} | {side} | {' | '.join(cells)} | {rounds[0]['objective']:.6g}"
            print(f"| {told} |", flush=True)


def run(options: argparse.Namespace) -> None:
    name, side = options.one
    work = WORKS[name]
    choose = work.sides[side]
    pool = rows_of(options.workspace, options.n, work.needs)
    choose(work.given(pool.take(np.arange(_SMALL))), 20)
    given = work.given(pool)
    with _Resident() as memory:
        start = time.perf_counter()
        found = choose(given, options.k)
        seconds = time.perf_counter() - start
    told = {"seconds": seconds, "peak": memory.grown / 1e6, "objective": work.worth(pool, found)}
    print(json.dumps(told))


class _Resident:
    """grown: bytes that were resident at most beyond those at the beginning, looked at every
    2 ms."""

    def __enter__(self) -> "_Resident":
        self.first = self.most = _resident()
        self.ended = threading.Event()
        self.watch = threading.Thread(target=self._look)
        self.watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.watch.join()

    @property
    def grown(self) -> int:
        return self.most - self.first

    def _look(self) -> None:
        while not self.ended.wait(0.002):
            self.most = max(self.most, _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
