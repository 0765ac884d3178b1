"""BlindCS against the size of the pool: its cost, and a pool larger than the memory it may use.

    python benchmarks/scale.py cost [--rows 50000 200000 1000000 5000000 20000000] [--dims 64]
    python benchmarks/scale.py capped FOLDER [--rows 1500000] [--dims 320] [--limit 600]

cost: µs a draw on one core, and the exponent. capped: processes that hold rows are put into a
memory cgroup (version 1, needs root) of --limit MiB in all, page cache included; the pool's
columns must be at least four times that.
"""

import argparse
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import ray
from blindcs import laid_out, seconds
from embedding import anonymous_bytes

from coreset_ray.core.run import empty_total
from coreset_ray.distributed.choose import Ranking, Scored, choose_kept
from coreset_ray.distributed.score import Layout, score_draws
from coreset_ray.distributed.trial import write_rows
from coreset_ray.io.filesystem import locate
from coreset_ray.io.ledger import Ledger
from coreset_ray.io.tables import PartedTable
from coreset_ray.scores.blindcs import BlindCS
from coreset_ray.selectors.top import Top

_PART = 50_000  # rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    cost = commands.add_parser("cost")
    sizes = [50_000, 200_000, 1_000_000, 5_000_000, 20_000_000]
    cost.add_argument("--rows", type=int, nargs="+", default=sizes)
    cost.add_argument("--dims", type=int, default=64)
    cost.add_argument("--seconds", type=float, default=5.0)
    cost.set_defaults(run=run_cost)
    capped = commands.add_parser("capped")
    capped.add_argument("folder", type=Path)
    capped.add_argument("--rows", type=int, default=1_500_000)
    capped.add_argument("--dims", type=int, default=320)
    capped.add_argument("--limit", type=int, default=600)
    capped.add_argument("--draws", type=int, default=2000)
    capped.add_argument("--workers", type=int, default=1)
    capped.add_argument("--shards", type=int, default=2)
    capped.set_defaults(run=run_capped)
    options = parser.parse_args()
    options.run(options)


def run_cost(options: argparse.Namespace) -> None:
    method, spent = BlindCS(), []
    for rows in options.rows:
        rng = np.random.default_rng(0)
        value = np.stack(
            [rng.gamma(2.0, size=rows).astype(np.float32) for _ in range(options.dims)]
        )
        columns = laid_out(value)
        total = empty_total(method, columns)
        method.tally(columns, 0, 0, 10, total)
        draws, taken = 64, 0.0
        while taken < options.seconds:
            draws *= 2
            taken = seconds(method.tally, columns, 1, 0, draws, total)
        spent.append(1e6 * taken / draws)
        print(f"{rows:>11,} rows: {spent[-1]:9.1f} µs a draw ({draws} draws)", flush=True)
    sizes = np.log(options.rows)
    print(f"exponent {np.polyfit(sizes, np.log(spent), 1)[0]:.2f} over all;", end=" ")
    steps = np.diff(np.log(spent)) / np.diff(sizes)
    print("by step " + ", ".join(f"{s:.2f}" for s in steps))


def run_capped(options: argparse.Namespace) -> None:
    size = 5 * options.rows * options.dims
    assert size >= 4 * options.limit << 20, f"columns are {size >> 20} MiB: less than four limits"
    table, parts = made(options.folder / "table", options.rows, options.dims)
    group = Path("/sys/fs/cgroup/memory/coreset_scale")
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(str(options.limit << 20))
    for counter in ("memory.failcnt", "memory.max_usage_in_bytes"):  # of an earlier call
        (group / counter).write_text("0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    peaks: dict[str, int] = {}
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(group, peaks, stop))
    watcher.start()
    method = BlindCS(draws=options.draws)
    layout = Layout(options.workers, options.shards, 0.0, str(options.folder / "layout"))
    out, ledger = locate(options.folder / "scores"), Ledger(locate(options.folder / "sums"))
    start = time.perf_counter()
    outcome = score_draws(method, 0, table, parts, out, ledger, layout)
    scored = time.perf_counter()
    files = [out / f"part-{part}.parquet" for part in parts]
    span = outcome["lowest"], outcome["highest"]
    kept = options.rows // 100
    ranking = Ranking(method, Top(), 0)
    scored_parts = [Scored(file.uri) for file in files]
    choose_kept(ranking, scored_parts, span, kept, locate(options.folder / "manifest.parquet"))
    print(f"{options.rows:,} rows x {options.dims}: columns {size / 2**20:,.0f} MiB")
    print(f"limit {options.limit} MiB for all processes that hold rows")
    print(f"scored in {scored - start:.0f} s, selected in {time.perf_counter() - scored:.1f} s")
    stop.set()
    watcher.join()
    most = int((group / "memory.max_usage_in_bytes").read_text())
    failed = int((group / "memory.failcnt").read_text())
    print(f"cgroup: at most {most / 2**20:.0f} MiB, {failed:,} times pages had to be given up")
    for kind, peak in sorted(peaks.items()):
        print(f"  {kind:<24} {peak / 2**20:7.0f} MiB of its own")
    ray.shutdown()


def made(folder: Path, rows: int, dims: int) -> tuple[PartedTable, dict[str, int]]:
    """A table of gamma numbers, in parts."""
    table, parts = PartedTable(locate(folder)), {}
    for i in range(-(-rows // _PART)):
        count = min(_PART, rows - i * _PART)
        parts[f"p{i:05}"] = count
        if table.part(f"p{i:05}").exists():
            continue
        numbers = np.random.default_rng(i).standard_gamma(2.0, (count, dims), np.float32)
        write_rows(table, f"p{i:05}", numbers)
    return table, parts


def watch(group: Path, peaks: dict[str, int], stop: threading.Event) -> None:
    """Puts processes that hold rows into the cgroup, and notes every process's peak."""
    driver = psutil.Process()
    held: set[int] = set()
    while not stop.wait(0.05):
        peaks["driver"] = max(peaks.get("driver", 0), anonymous_bytes(driver.pid))
        for process in driver.children(recursive=True):
            try:
                kind = process.cmdline()[0].split(".")[0]
                if not kind.startswith("ray::") or kind.startswith("ray::IDLE"):
                    continue
                if kind == "ray::Shard" and process.pid not in held:
                    (group / "cgroup.procs").write_text(str(process.pid))
                    held.add(process.pid)
                name = f"{kind} {process.pid}" if kind == "ray::Shard" else kind
                peaks[name] = max(peaks.get(name, 0), anonymous_bytes(process.pid))
            except (psutil.Error, OSError, IndexError):
                continue


if __name__ == "__main__":
    main()
