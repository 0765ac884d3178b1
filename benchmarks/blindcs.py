"""BlindCS on one core: the compiled kernel against a NumPy argpartition form, in one run.

    python benchmarks/blindcs.py [TABLE] [--rows 50000] [--draws 2000] [--rounds 3]

TABLE is an embeddings folder of a workspace; without it, normal numbers of 1,280 dimensions.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from coreset_ray.core.pool import pool_of
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import matrix, read_table
from coreset_ray.scores.blindcs import BlindCS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--draws", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    method = BlindCS()
    slices = method.prepare(pool_of(embedding(options.table, options.rows)))
    method.tally(slices, 0, 0, 10)  # compiles
    ratios = []
    for number in range(options.rounds):
        first = number * options.draws
        slow = max(20, options.draws // 20)
        ours = seconds(method.tally, slices, 0, first, first + options.draws)
        theirs = seconds(argpartition_form, method, slices, first, slow)
        ours, theirs = 1e6 * ours / options.draws, 1e6 * theirs / slow
        ratios.append(theirs / ours)
        print(f"round {number}: kernel {ours:.0f} µs, NumPy {theirs:.0f} µs, {ratios[-1]:.1f} x")
    print(f"ratio: median {statistics.median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}")


def argpartition_form(method: BlindCS, slices, first: int, draws: int) -> np.ndarray:
    score = np.zeros(slices.column.shape[1])
    for dims, point in zip(*method._points(slices, 0, first, draws), strict=True):
        z = slices.column[dims]
        k = np.abs(z - point[:, None]).sum(axis=0).argmin()
        score[k] += 1
        distance = np.abs(z - z[:, k][:, None]).sum(axis=0)
        distance[k] = np.inf
        near = np.argpartition(distance, method.neighbors)[: method.neighbors]
        penalty = np.maximum(distance[near], 1e-30) ** -method.exponent
        score[near] -= penalty / penalty.sum()
    return score


def embedding(table: Path | None, rows: int) -> np.ndarray:
    if table is None:
        return np.random.default_rng(0).normal(size=(rows, 1280)).astype(np.float32)
    parts = sorted((table / "parts").glob("*.parquet"))
    columns = [read_table(locate(part), ["embedding"])["embedding"] for part in parts]
    chunks = [chunk for column in columns for chunk in column.chunks]
    return matrix(pa.chunked_array(chunks))[:rows]


def seconds(work, *arguments) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
