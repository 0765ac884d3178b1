"""Embedding through an S3 server over HTTP, shards and workspace, against local files.

    python benchmarks/store.py POOL [--shards 12] [--rounds 3] [KEY=VALUE …]

POOL is a folder of shards; KEY=VALUE overrides configs/cifar10_blindcs.yaml. Both sides in turn in
one run, each into an empty workspace; the clock runs from the first committed shard to the end. The
server (moto, one Python process) shares the machine's cores with the encoders: its own CPU time is
printed beside, and is part of what the ratio holds against the store.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil
import ray

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import store_server

from coreset_ray.config import Config, load
from pipelines import embed
from pipelines.inputs import pool_table

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_blindcs.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    files = sorted(options.pool.glob("*.tar"))[: options.shards]
    ratios = []
    with store_server.running() as store:
        store.bucket("pool")
        for file in files:
            with store.fs.open_output_stream(f"pool/{file.name}") as sink:
                sink.write(file.read_bytes())
        there = [f"s3://pool/{file.name}" for file in files]
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                local = rate(_config([str(f.absolute()) for f in files], folder, options.overrides))
            work, before = store.bucket(f"work-{uuid.uuid4().hex}"), _server_seconds()
            told = [*options.overrides, f"storage.endpoint={store.endpoint}"]
            remote = rate(_config(there, f"s3://{work}/run", told))
            ratios.append(remote / local)
            print(
                f"round {number}: local {local:.1f} images/s, through the store {remote:.1f} "
                f"({_server_seconds() - before:.1f} s of the server's CPU), {ratios[-1]:.3f}",
                flush=True,
            )
    print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    ray.shutdown()


def rate(config: Config) -> float:
    """Images/s from the first commit on, by those committed after it."""
    table, found, stop = pool_table(config), [], threading.Event()

    def watch() -> None:
        while not found and not stop.wait(0.1):
            if done := table.parts.committed(table.shards):
                found.append((time.perf_counter(), sum(c.rows for c in done.values())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    rows = embed.run(config)["rows"]
    end = time.perf_counter()
    stop.set()
    watcher.join()
    assert found, "too few shards to tell"
    first, before = found[0]
    return (rows - before) / (end - first)


def _server_seconds() -> float:
    children = psutil.Process().children()
    servers = [c for c in children if "moto.server" in c.cmdline()]
    return sum(sum(server.cpu_times()[:2]) for server in servers)


def _config(shards: list[str], workspace: str, overrides: list[str]) -> Config:
    entries = ", ".join(shards)
    return load(CONFIG, [f"pool.shards=[{entries}]", f"workspace={workspace}", *overrides])


if __name__ == "__main__":
    main()
