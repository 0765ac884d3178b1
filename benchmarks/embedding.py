"""Embedding: the pipeline against a bare loop of the same encoder, and memory against shards.

    python benchmarks/embedding.py throughput POOL [--shards 8] [--rounds 3]
    python benchmarks/embedding.py memory POOL --shards 10 50

POOL is a folder of shards. Throughput is taken in one run, the two in turn. Both sides leave out
start-up: the loop starts when the model is loaded and warm, the pipeline's clock runs from its
first committed shard to its last.
"""

import argparse
import statistics
import tempfile
import threading
import time
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

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_blindcs.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["throughput", "memory"])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--shards", type=int, nargs="+", default=[8])
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
        loop, pipeline = bare_loop(files[1:]), run_pipeline(files)
        ratios.append(pipeline / loop)
        print(f"round {number}: loop {loop:.0f}/s, pipeline {pipeline:.0f}/s, {ratios[-1]:.3f}")
    print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


def bare_loop(files: list[Path]) -> float:
    """Images/s of one process that reads, decodes and encodes with all cores."""
    torch.set_num_threads(psutil.cpu_count() or 1)
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
    return images / (time.perf_counter() - start)


def run_pipeline(files: list[Path]) -> float:
    """Images/s from the first commit to the last."""
    with tempfile.TemporaryDirectory() as workspace:
        config = _config(files, workspace)
        embed.run(config)
        table = pool_table(config)
        parts = Path(table.parts.folder.path) / "parts"
        times = sorted(p.stat().st_mtime for p in parts.glob("*.done.json"))
        commits = sorted(table.parts.committed(table.shards).values(), key=lambda c: c.shard)
        return sum(c.rows for c in commits[1:]) / (times[-1] - times[0])


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
                    used = process.memory_full_info().uss
                except (psutil.Error, IndexError):
                    continue
                if name == "driver" or name.startswith("ray::"):
                    peak[name] = max(peak.get(name, 0), used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as workspace:
        embed.run(_config(sorted(pool.glob("*.tar"))[:shards], workspace))
    stop.set()
    watcher.join()
    figures = ", ".join(f"{name} {used / 2**20:.0f} MiB" for name, used in sorted(peak.items()))
    print(f"{shards} shards: {figures}")


def _config(files: list[Path], workspace: str):
    entries = ", ".join(str(file.absolute()) for file in files)
    return load(CONFIG, [f"pool.shards=[{entries}]", f"workspace={workspace}"])


if __name__ == "__main__":
    main()
