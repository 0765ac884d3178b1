"""The sharded search for neighbours beside one FAISS index on the same cores, in one run.

    python benchmarks/neighbors.py FOLDER [--rows 50000] [--dims 1280] [--rounds 3]
    python benchmarks/neighbors.py FOLDER --rows 1000000 --dims 256 --alone

Rows around 1,000 centres are written to FOLDER first. Ours starts its actors, reads the table,
searches for every row and writes its parts: queries a second of all of that, and from the first
part written to the last. FAISS holds all rows in memory and searches for them with a thread a
core, neither reading nor writing. The two take turns; alone: ours only, once. Ends with the ratios;
memory is the most that the driver and its workers held between them, the object store apart.
"""

import argparse
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import ray
from embedding import anonymous_bytes

from coreset_ray.clustering.neighbors import choose_kind
from coreset_ray.config import KnnConfig
from coreset_ray.core.cosine import unit_rows
from coreset_ray.distributed.neighbors import Search, find_neighbors
from coreset_ray.distributed.trial import first_rows, write_rows
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable

CORES = psutil.cpu_count() or 1
_PART = 1000  # rows
_BATCH = 10_000  # queries that FAISS is given at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dims", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=CORES, help="of ours")
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    table = PartedTable(locate(str(options.folder / "table")))
    parts = written(table, options.rows, options.dims)
    kind, wanted = choose_kind(options.rows), KnnConfig()
    inverted = (1, 1) if kind == "flat" else (wanted.lists, wanted.probes)
    search = Search(wanted.k, options.dims, kind, *inverted)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=40)
    ratios: dict[str, list[float]] = {"all": [], "under way": []}
    for number in range(1 if options.alone else options.rounds):
        out, peak, start = options.folder / f"out-{number}", [0], time.perf_counter()
        with watched(peak):
            facts = find_neighbors(
                table, parts, search, locate(str(out)), actors=1, threads=options.threads
            )
        seconds = time.perf_counter() - start
        ours = {"all": options.rows / seconds, "under way": under_way(out)}
        print(
            f"{kind}: {ours['all']:.0f} queries/s in {seconds:.0f} s, under way "
            f"{ours['under way']:.0f}, recall {facts['recall']:.3f}, at most "
            f"{peak[0] / 2**30:.2f} GiB",
            flush=True,
        )
        shutil.rmtree(out)
        if not options.alone:
            theirs = one_index(unit_rows(first_rows(table.folder.uri, parts, options.rows)), search)
            for name, rate in ours.items():
                ratios[name].append(rate / theirs)
            print(f"one index, {CORES} threads: {theirs:.0f} queries/s", flush=True)
    for name, found in ratios.items():
        if found:
            told = f"{statistics.median(found):.3f}, {min(found):.3f} to {max(found):.3f}"
            print(f"ratio, {name}: median {told}")
    ray.shutdown()


def written(table: PartedTable, rows: int, dims: int) -> dict[str, int]:
    """Rows of each part, made up around 1,000 centres and written where they are not there yet."""
    rng, parts = np.random.default_rng(0), {}
    centres = rng.normal(size=(1000, dims)).astype(np.float32)
    for first in range(0, rows, _PART):
        name, count = f"p{first:08d}", min(_PART, rows - first)
        block = centres[rng.integers(0, 1000, count)]
        block = block + rng.standard_normal((count, dims), dtype=np.float32)
        if not table.part(name).exists():
            write_rows(table, name, block)
        parts[name] = count
    return parts


def under_way(out: Path) -> float:
    """Queries a second between the first part written and the last."""
    times = sorted(file.stat().st_mtime for file in out.glob("*.parquet"))
    return _PART * (len(times) - 1) / (times[-1] - times[0])


def one_index(unit: np.ndarray, search: Search) -> float:
    """Queries a second of one index of all rows, asked for k + 1 neighbours as a row finds
    itself; what it takes to train and fill it is counted."""
    faiss.omp_set_num_threads(CORES)
    index: Any = faiss.IndexFlatIP(unit.shape[1])
    start = time.perf_counter()
    if search.kind == "ivf":
        index = faiss.index_factory(
            unit.shape[1], f"IVF{search.lists},Flat", faiss.METRIC_INNER_PRODUCT
        )
        index.nprobe = search.probes
        index.train(unit[np.linspace(0, len(unit) - 1, 64 * search.lists).astype(int)])
    index.add(unit)
    for first in range(0, len(unit), _BATCH):
        index.search(unit[first : first + _BATCH], search.k + 1)
    return len(unit) / (time.perf_counter() - start)


@contextmanager
def watched(peak: list[int]) -> Iterator[None]:
    """For the length of the block, the most that driver and workers hold between them."""
    stop = threading.Event()

    def watch() -> None:
        driver = psutil.Process()
        while not stop.wait(0.25):
            held = 0
            for process in driver.children(recursive=True):
                try:
                    if process.cmdline()[0].startswith("ray::"):
                        held += anonymous_bytes(process.pid)
                except (psutil.Error, OSError, IndexError):
                    continue
            peak[0] = max(peak[0], held + anonymous_bytes(driver.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


if __name__ == "__main__":
    main()
