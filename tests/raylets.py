"""A Ray cluster of several nodes on this machine, of Ray's own processes, and drivers on it."""

import gc
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster


class Nodes:
    """A head and further nodes of one CPU each. head: further arguments of the head's."""

    def __init__(self, count: int, **head: Any):
        head = {"num_cpus": 1, "include_dashboard": False} | head
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(count - 1):
            self.start()

    @property
    def others(self) -> list[Any]:
        """All but the head."""
        return sorted(self.cluster.worker_nodes, key=lambda node: node.node_id)

    def start(self) -> None:
        self.cluster.add_node(num_cpus=1)

    def kill(self, node: Any) -> None:
        """As when its machine is gone: no process of it is told before."""
        self.cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        """Ray leaves its nodes' sockets to the garbage collector, which would tell some later test
        of them."""
        self.cluster.shutdown()
        del self.cluster
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def drive(self, command: str, config: Path, *words: str) -> "Driver":
        """A command of ours as a driver on the head."""
        line = [sys.executable, "-m", "coreset_ray.cli", command, str(config), *words]
        log = config.parent / f"{command}-{time.monotonic_ns()}.log"
        environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
        with log.open("w") as sink:
            process = subprocess.Popen(line, env=environment, stdout=sink, stderr=sink)
        return Driver(process, log)


@dataclass(frozen=True)
class Driver:
    """A command under way. log: what it says."""

    process: subprocess.Popen
    log: Path

    def ends(self, seconds: float = 300) -> str:
        """What it said, once it has ended well."""
        code = self.process.wait(seconds)
        assert code == 0, self.log.read_text()
        return self.log.read_text()

    def until(self, happens: Callable[[], bool], seconds: float = 180) -> None:
        """Returns as soon as something has happened that it does."""
        deadline = time.monotonic() + seconds
        while not happens():
            assert self.process.poll() is None, f"it ended before: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.log.read_text()}"
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def nodes(count: int, **head: Any) -> Iterator[Nodes]:
    """So many, for the length of the block."""
    made = Nodes(count, **head)
    try:
        yield made
    finally:
        made.end()
