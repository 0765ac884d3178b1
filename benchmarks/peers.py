"""Facility location beside apricot and submodlib on the same rows: seconds, memory, objective.

    pip install apricot-select submodlib-py      (anywhere that Python finds them)
    python benchmarks/peers.py WORKSPACE [--n 5000] [--k 500] [--rounds 3]

The first n rows of a workspace's only embedding table. Dense: from embeddings to the rows chosen,
all similarities included. Sparse: given each row's 50 nearest neighbours, those that it is near to
and itself. Lazy greedy everywhere, each side a process of its own with one thread, in turn, after
a small choice that compiles. `peak`: the most that was resident beyond what it was before. The
objective of every side is computed alike: Σ_i max_{j ∈ S} max(cos_ij, 0), over its similarities.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from coreset_ray.core.alone import select_alone
from coreset_ray.core.directions import OfEmbeddings
from coreset_ray.core.maximize import maximize
from coreset_ray.core.pool import Pool, pool_of
from coreset_ray.core.similarity import Dense, Kernel, Sparse, neighbor_kernel
from coreset_ray.core.submodular import FacilityLocation as Function
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import matrix, read_table
from coreset_ray.selectors.facility_location import FacilityLocation

_NEIGHBORS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace")
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--k", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return run(options)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    alone = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    for _ in range(options.rounds):
        for side in SIDES:
            words = [sys.executable, __file__, *sys.argv[1:], "--one", side]
            told = subprocess.run(words, check=True, stdout=-1, env=os.environ | alone).stdout
            found[side].append(json.loads(told.splitlines()[-1]))
    print("| side | seconds | CPU seconds | peak MB | objective |\n|---|---:|---:|---:|---:|")
    for side, rounds in found.items():
        cells = [f"{np.mean(v):.2f} ± {np.std(v):.2f}" for v in (
            [r[name] for r in rounds] for name in ("seconds", "cpu", "peak"))]  # fmt: skip
        print(f"| {side} | {' | '.join(cells)} | {rounds[0]['objective']:.4f} |")


def run(options: argparse.Namespace) -> None:
    choose, make = SIDES[options.one]
    pool = rows_of(options.workspace, options.n)
    small = pool.take(np.arange(10 * _NEIGHBORS))
    choose(small["embedding"], make(small), 10)
    kernel = make(pool)
    with _Resident() as memory:
        start, cpu = time.perf_counter(), time.process_time()
        rows = choose(pool["embedding"], kernel, options.k)
        told = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    worth = Function(kernel or Dense(OfEmbeddings(pool["embedding"]))).after(rows).value()
    print(json.dumps(told | {"peak": memory.grown / 1e6, "objective": worth}))


def rows_of(workspace: str, n: int) -> Pool:
    (table,) = (Path(workspace) / "embeddings").glob("*/parts")
    blocks: list[np.ndarray] = []
    for part in sorted(table.glob("*.parquet")):
        if sum(map(len, blocks)) < n:
            blocks.append(matrix(read_table(locate(str(part)), ["embedding"])["embedding"]))
    return pool_of(np.concatenate(blocks)[:n])


def nearest(pool: Pool) -> Sparse:
    cosine = Dense(OfEmbeddings(pool["embedding"])).held
    assert cosine is not None
    order = np.argsort(-cosine, axis=1, kind="stable")
    own = order == np.arange(len(order))[:, None]
    near = order[~own].reshape(len(order), -1)[:, :_NEIGHBORS]
    similarity = np.take_along_axis(cosine, near, 1).astype(np.float32)
    told = {"knn.neighbor": near, "knn.similarity": similarity}
    return neighbor_kernel(Pool(pool.uid, told), "embeddings", _NEIGHBORS)


def ours_dense(embedding: np.ndarray, kernel: Kernel | None, k: int) -> np.ndarray:
    return select_alone(FacilityLocation(kernel="dense"), pool_of(embedding), k, 0).rows


def ours_sparse(embedding: np.ndarray, kernel: Any, k: int) -> np.ndarray:
    return maximize(Function(kernel), np.arange(kernel.clients), k, "lazy").rows


def cosines(embedding: np.ndarray) -> np.ndarray:
    unit = embedding.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.maximum(unit @ unit.T, 0)


def apricot_dense(embedding: np.ndarray, kernel: Kernel | None, k: int) -> np.ndarray:
    kind = import_module("apricot").FacilityLocationSelection
    return kind(k, "precomputed", optimizer="lazy").fit(cosines(embedding)).ranking


def apricot_sparse(embedding: np.ndarray, kernel: Any, k: int) -> np.ndarray:
    kind = import_module("apricot").FacilityLocationSelection
    told = (kernel.similarity.astype(np.float64), kernel.client, kernel.start)
    near = csr_matrix(told, shape=(kernel.clients, kernel.clients))
    return kind(k, "precomputed", optimizer="lazy").fit(near).ranking


def submodlib_dense(embedding: np.ndarray, kernel: Kernel | None, k: int) -> np.ndarray:
    kind = import_module("submodlib").FacilityLocationFunction
    function = kind(n=len(embedding), mode="dense", separate_rep=False, sijs=cosines(embedding))
    told = function.maximize(k, optimizer="LazyGreedy", show_progress=False)
    return np.array([row for row, _ in told])


def _none(pool: Pool) -> None:
    return None


SIDES: dict[str, tuple[Callable[..., Any], Callable[[Pool], Any]]] = {
    "ours, dense": (ours_dense, _none),
    "apricot, dense": (apricot_dense, _none),
    "submodlib, dense": (submodlib_dense, _none),
    "ours, sparse": (ours_sparse, nearest),
    "apricot, sparse": (apricot_sparse, nearest),
}


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
