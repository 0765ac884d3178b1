"""BlindCS on one core: the compiled kernel against NumPy argpartition forms, in one run.

    python benchmarks/blindcs.py [TABLE] [--rows 50000] [--dims 1280] [--draws 4000] [--rounds 3]
    python benchmarks/blindcs.py [TABLE] --workers 2

TABLE is an embeddings folder of a workspace; without it, normal numbers. More rows than TABLE has
are made from its own by repeating them with jitter. --workers: threads that draw side by side.
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from coreset_ray.core.columns import Columns, spread_of, whole_columns
from coreset_ray.core.pool import pool_of
from coreset_ray.core.run import empty_total
from coreset_ray.core.slices import draw_points, draw_slices
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import matrix, read_table
from coreset_ray.scores.blindcs import BlindCS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dims", type=int, default=1280)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--slow", type=int, default=100, help="draws of the NumPy forms")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rowwise", action="store_true", help="also NumPy on the (n, m) table")
    options = parser.parse_args()
    value = pool(options.table, options.rows, options.dims)
    columns = laid_out(value)
    method = BlindCS()
    if options.workers > 1:
        return scaling(method, columns, options)
    method.tally(columns, 0, 0, 10, empty_total(method, columns))  # compiles
    forms = {"by column": value}
    if options.rowwise:
        forms["by row"] = np.ascontiguousarray(value.T).T
    ratios: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(options.rounds):
        first = number * options.draws
        total = empty_total(method, columns)
        ours = seconds(method.tally, columns, 0, first, first + options.draws, total)
        ours *= 1e6 / options.draws
        line = f"round {number}: kernel {ours:.1f} µs"
        for name, table in forms.items():
            theirs = seconds(argpartition_form, method, columns, table, first, options.slow)
            theirs *= 1e6 / options.slow
            ratios[name].append(theirs / ours)
            line += f", NumPy {name} {theirs:.0f} µs ({theirs / ours:.1f} x)"
        print(line, flush=True)
    for name, found in ratios.items():
        middle = statistics.median(found)
        print(f"{name}: median {middle:.1f} x, {min(found):.1f} to {max(found):.1f}")


def laid_out(value: np.ndarray) -> Columns:
    """value: (m, n). Prints what each part of the index costs."""
    uid = pool_of(value[:1].T).uid
    start = time.perf_counter()
    spread = spread_of(value)
    middle = time.perf_counter()
    columns = whole_columns(value, uid, spread)
    end = time.perf_counter()
    print(f"median, minimum, maximum {middle - start:.2f} s; codes and sample {end - middle:.2f} s")
    return columns


def scaling(method: BlindCS, columns: Columns, options: argparse.Namespace) -> None:
    """Draws per second of one thread and of several; the kernel holds no lock."""
    method.tally(columns, 0, 0, 10, empty_total(method, columns))
    for number in range(options.rounds):
        speeds = []
        for workers in (1, options.workers):
            totals = [empty_total(method, columns) for _ in range(workers)]
            starts = [(10 * number + w) * options.draws for w in range(workers)]
            with ThreadPoolExecutor(workers) as threads:
                start = time.perf_counter()
                list(
                    threads.map(
                        lambda first, total: method.tally(
                            columns, 0, first, first + options.draws, total
                        ),
                        *(starts, totals),
                    )
                )
                speeds.append(workers * options.draws / (time.perf_counter() - start))
        ratio = speeds[1] / speeds[0]
        print(f"round {number}: {speeds[0]:,.0f} draws/s, {options.workers} workers {ratio:.2f} x")


def argpartition_form(
    method: BlindCS, columns: Columns, value: np.ndarray, first: int, draws: int
) -> np.ndarray:
    """value: (m, n), of either memory order."""
    score = np.zeros(value.shape[1])
    dims = draw_slices(columns.spread, 0, first, draws, 2, 1)
    points = draw_points(columns.spread, method.sampling, 0, first, dims)
    for pair, point in zip(dims, points, strict=True):
        z = value[pair]
        k = np.abs(z - point[:, None]).sum(axis=0).argmin()
        score[k] += 1
        distance = np.abs(z - z[:, k][:, None]).sum(axis=0)
        distance[k] = np.inf
        near = np.argpartition(distance, method.neighbors)[: method.neighbors]
        penalty = np.maximum(distance[near], 1e-30) ** -method.exponent
        score[near] -= penalty / penalty.sum()
    return score


def pool(table: Path | None, rows: int, dims: int) -> np.ndarray:
    """(dims, rows) float32."""
    rng = np.random.default_rng(0)
    if table is None:
        return rng.normal(size=(dims, rows)).astype(np.float32)
    z = np.ascontiguousarray(embedding(table)[:, :dims].T)
    if rows <= z.shape[1]:
        return np.ascontiguousarray(z[:, :rows])
    again = rng.integers(0, z.shape[1], rows)
    out = np.empty((len(z), rows), np.float32)
    for column, result in zip(z, out, strict=True):
        jitter = rng.standard_normal(rows, np.float32) * np.float32(0.3 * column.std())
        result[:] = column[again]
        result += jitter * (result != 0)
    return out


def embedding(table: Path) -> np.ndarray:
    parts = sorted((table / "parts").glob("*.parquet"))
    columns = [read_table(locate(part), ["embedding"])["embedding"] for part in parts]
    return matrix(pa.chunked_array([chunk for column in columns for chunk in column.chunks]))


def seconds(work, *arguments) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
