"""Embedding: the pipeline against a bare loop of the same encoder, and memory against shards.

    python benchmarks/embedding.py throughput POOL [--shards 12] [--rounds 3]
    python benchmarks/embedding.py memory POOL --shards 10 50

POOL is a folder of shards. Throughput is taken in one run, all sides in turn: one loop whose
encoder uses all cores, a loop on each core at once, and the pipeline, which is held against the
faster loop. Start-up is left out: a loop's clock starts when its model is loaded and warm, the
pipeline's with its first committed shard.
"""

import argparse
import statistics
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import ray
import torch

from coreset_ray.config import load
from coreset_ray.io.images import decode
from coreset_ray.io.shards import IMAGE_EXTENSIONS, read_samples
from coreset_ray.models.encoders import Encoder, preprocess_of
from pipelines import embed
from pipelines.inputs import pool_table

CORES = psutil.cpu_count() or 1
CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_blindcs.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["throughput", "memory"])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--shards", type=int, nargs="+", default=[12])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    if options.what == "throughput":
        throughput(options.pool, options.shards[0], options.rounds)
    else:
        for count in options.shards:
            memory(options.pool, count)
    ray.shutdown()


def throughput(pool: Path, shards: int, rounds: int) -> None:
    files = sorted(pool.glob("*.tar"))[:shards]
    ratios = []
    for number in range(rounds):
        threads, processes = threaded_loop(files), parallel_loops(files)
        pipeline = run_pipeline(files)
        ratios.append(pipeline / max(threads, processes))
        print(
            f"round {number}: one loop on all cores {threads:.0f}/s, a loop a core "
            f"{processes:.0f}/s, pipeline {pipeline:.0f}/s, {ratios[-1]:.3f} of the faster loop",
            flush=True,
        )
    print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


def threaded_loop(files: list[Path]) -> float:
    """Images/s of one process whose encoder uses all cores."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        images, seconds = pool.submit(bare_loop, files, CORES).result()
    return images / seconds


def parallel_loops(files: list[Path]) -> float:
    """Images/s of a loop on each core, all at once."""
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        loops = [pool.submit(bare_loop, files[i::CORES], 1) for i in range(CORES)]
        return sum(images / seconds for images, seconds in (loop.result() for loop in loops))


def bare_loop(files: list[Path], threads: int) -> tuple[int, float]:
    """Reads, decodes and encodes in one process: images, and seconds without start-up."""
    torch.set_num_threads(threads)
    spec = load(CONFIG).embed.encoders[0]
    encoder, fit = Encoder([spec]), preprocess_of(spec)
    encoder([np.zeros((64, fit.size, fit.size, 3), np.uint8)])
    start, images = time.perf_counter(), 0
    for file in files:
        batch = []
        with file.open("rb") as stream:
            samples = read_samples(stream, file.stat().st_size, IMAGE_EXTENSIONS.__contains__)
            for sample in samples:
                member = sample.image()
                assert member is not None and member.data is not None
                batch.append(fit(decode(member.data, 10**8)))
                if len(batch) == 64:
                    encoder([np.stack(batch)])
                    images, batch = images + len(batch), []
        if batch:
            encoder([np.stack(batch)])
            images += len(batch)
    return images, time.perf_counter() - start


def run_pipeline(files: list[Path]) -> float:
    """Images/s between the first commit and the last, leaving out the shards that were under way
    at the first: one for each encoder actor."""
    with tempfile.TemporaryDirectory() as workspace:
        config = _config(files, workspace)
        embed.run(config)
        table = pool_table(config)
        parts = Path(table.parts.folder.path) / "parts"
        times = sorted(p.stat().st_mtime for p in parts.glob("*.done.json"))
        commits = sorted(table.parts.committed(table.shards).values(), key=lambda c: c.shard)
        return sum(c.rows for c in commits[CORES:]) / (times[-1] - times[0])


def memory(pool: Path, shards: int) -> None:
    """Peak resident memory of the driver and of each kind of worker."""
    peak: dict[str, int] = {}
    stop = threading.Event()

    def watch() -> None:
        driver = psutil.Process()
        while not stop.wait(0.25):
            for process in [driver, *driver.children(recursive=True)]:
                try:
                    name = "driver" if process == driver else process.cmdline()[0].split("(")[0]
                    used = anonymous_bytes(process.pid)
                except (psutil.Error, OSError, IndexError):
                    continue
                if name == "driver" or name.startswith("ray::"):
                    peak[name] = max(peak.get(name, 0), used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as workspace:
        embed.run(_config(sorted(pool.glob("*.tar"))[:shards], workspace))
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    figures = ", ".join(f"{name} {used / 2**20:.0f} MiB" for name, used in sorted(peak.items()))
    print(f"{shards} shards in {seconds:.0f} s: {figures}", flush=True)


def anonymous_bytes(pid: int) -> int:
    """Resident memory that is no file and not the object store's, which Ray bounds by itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def _config(files: list[Path], workspace: str):
    entries = ", ".join(str(file.absolute()) for file in files)
    return load(CONFIG, [f"pool.shards=[{entries}]", f"workspace={workspace}"])


if __name__ == "__main__":
    main()
