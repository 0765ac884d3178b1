"""BlindCS: variance × time of the steadier estimators against the paper's, in one run.

    python benchmarks/variance.py TABLE [--settings 200x8 400x8] [--runs 8] [--draws 6400]

TABLE is an embeddings folder of a workspace, or an .npy file of shape (dims, rows). A setting is
draws_per_slice x points_per_draw; 1x1 is the paper. Variance: of a row's score a draw, over runs
of their own seeds with equally many draws, mean over rows, times draws and rows (1 is that of
coverage with one point). Time: of the least disturbed runs, plain and setting in turns. Both fall
together where the same error is reached in less time.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from blindcs import embedding

from coreset_ray.core.columns import Columns, columns_of
from coreset_ray.core.pool import pool_of
from coreset_ray.core.run import empty_total
from coreset_ray.scores.blindcs import BlindCS

_SETTINGS = ["100x4", "100x8", "200x4", "200x8", "200x16", "400x4", "400x8", "800x8"]
_NAMES = "score", "coverage", "redundancy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--settings", nargs="+", default=_SETTINGS)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--draws", type=int, default=6_400)
    options = parser.parse_args()
    columns = pool(options.table)
    methods = {"1x1": BlindCS()}
    for setting in options.settings:
        per_slice, points = map(int, setting.split("x"))
        methods[setting] = BlindCS(draws_per_slice=per_slice, points_per_draw=points)
    for method in methods.values():  # compiles
        method.tally(columns, 0, 0, 20, empty_total(method, columns))
    spent: dict[str, list[float]] = {name: [] for name in methods}
    found: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    for seed in range(options.runs):
        for name, method in methods.items():
            draws = whole_slices(method, options.draws)
            score, seconds = one_run(method, columns, seed, draws)
            spent[name].append(seconds / draws * 1e6)
            found[name].append(score * np.sqrt(draws * len(columns)))
    report(spent, found)


def report(spent: dict[str, list[float]], found: dict[str, list[np.ndarray]]) -> None:
    """Prints a line a setting, and the best."""
    print("setting   µs a draw (median)   variance: score  coverage  redundancy   gain (median)")
    gains = {}
    variance = {name: np.var(found[name], axis=0, ddof=1).mean(axis=-1) for name in found}
    for name in spent:
        least, middle = min(spent[name]), np.median(spent[name])
        fall = variance["1x1"][0] / variance[name][0]
        gains[name] = fall * min(spent["1x1"]) / least
        typical = fall * np.median(np.array(spent["1x1"]) / np.array(spent[name]))
        score, coverage, redundancy = variance[name]
        print(
            f"{name:9s} {least:9.1f} ({middle:6.1f})   {score:15.3f} {coverage:9.3f} "
            f"{redundancy:11.3f} {gains[name]:7.1f} ({typical:.1f})"
        )
    best = max(gains, key=lambda name: gains[name])
    print(f"best: {best}, variance × time {gains[best]:.1f} times lower than the paper's")


def one_run(method: BlindCS, columns: Columns, seed: int, draws: int) -> tuple[np.ndarray, float]:
    """(3, n) score, coverage and redundancy a draw; seconds."""
    total = empty_total(method, columns)
    start = time.perf_counter()
    method.tally(columns, seed, 0, draws, total)
    seconds = time.perf_counter() - start
    named = method.columns(total.sum(axis=0))
    return np.stack([named[name] for name in _NAMES]) / draws, seconds


def whole_slices(method: BlindCS, draws: int) -> int:
    """About so many draws, of slices that are whole, four or more."""
    each = method.draws_per_slice
    return max(4, draws // each) * each


def pool(table: Path) -> Columns:
    if table.suffix != ".npy":
        return columns_of(pool_of(embedding(table)))
    return columns_of(pool_of(np.load(table).T))


if __name__ == "__main__":
    main()
