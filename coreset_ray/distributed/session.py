"""Connecting to Ray, and what the cluster offers."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.exceptions import RayTaskError


@contextmanager
def session(address: str | None = None) -> Iterator[None]:
    """A connection to Ray for the length of the block.

    An error of a remote task leaves the block as what it was there: a `ValueError` stays one.
    An existing connection is used as it is. Otherwise: `address`, else RAY_ADDRESS, else a
    cluster running on this machine, else a local Ray with what the machine has. Leaves running
    what it did not start.
    """
    if ray.is_initialized():
        with _plain_errors():
            yield
        return
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster answers at {address or os.environ.get('RAY_ADDRESS')!r}: {error}; "
            "start one with `ray start --head`, or unset compute.address and RAY_ADDRESS to use "
            "a local Ray"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # we show our own
    try:
        with _plain_errors():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError) and cause.cause is not None:
            cause = cause.cause
        raise cause from error


@dataclass(frozen=True)
class Cluster:
    """What the living nodes offer. nodes: CPUs and bytes of memory of each that has CPUs."""

    nodes: tuple[tuple[float, float], ...]
    gpus: float

    @property
    def cpus(self) -> float:
        return sum(cpus for cpus, _ in self.nodes)


def cluster() -> Cluster:
    """The cluster this process is connected to, as it stands now."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = tuple((node["CPU"], node["memory"]) for node in nodes if node.get("CPU", 0) > 0)
    return Cluster(cpus, sum(node.get("GPU", 0) for node in nodes))


def choose_device(wanted: str) -> str:
    """`auto` → cuda where the cluster has a GPU, else cpu.

    Raises `ValueError` when cuda is asked for and the cluster has none.
    """
    gpus = cluster().gpus
    if wanted == "cuda" and not gpus:
        raise ValueError(
            "compute.device=cuda: this Ray cluster has no GPU; use device: auto or cpu, or add "
            "GPU nodes"
        )
    return "cuda" if gpus and wanted != "cpu" else "cpu"
