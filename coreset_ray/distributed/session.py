"""Connecting to Ray, and what the cluster offers."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.exceptions import RayError, RayTaskError

from coreset_ray.distributed.address import find_ray
from coreset_ray.distributed.capacity import Wanted, wait_for
from coreset_ray.distributed.losses import reason
from coreset_ray.distributed.memory_kills import MemoryKills
from coreset_ray.distributed.watch import Watch
from coreset_ray.telemetry.logs import for_workers

# What listens at an address and is no Ray is asked once, for 40 s, not twenty times.
_ONE_TRY = {"RAY_gcs_server_port_wait_time_s": "1"}


@contextmanager
def session(address: str | None = None, wanted: Wanted | None = None) -> Iterator[None]:
    """A connection to Ray for the length of the block, which starts once the cluster has what is
    wanted.

    An error of a remote task leaves the block as what it was there: a `ValueError` stays one; a
    loss that the work within does not get over leaves it as a `RuntimeError`.
    An existing connection is used as it is. Otherwise: `address`, else RAY_ADDRESS, else a
    cluster running on this machine, else a local Ray with what the machine has (`find_ray`).
    Leaves running what it did not start. Raises `ValueError` where no Ray answers.
    """
    if ray.is_initialized():
        if wanted is not None:
            wait_for(wanted)
        with _plain_errors():
            yield
        return
    _connect(address)
    _log_with_ours()
    try:
        if wanted is not None:
            wait_for(wanted)
        with _plain_errors(), Watch(), MemoryKills():
            yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    """Workers learn of the run by their environment: a Ray that is started here hands ours down,
    which costs nothing; one that runs already is told what to set, and starts processes anew."""
    told, ours = for_workers(), signal.getsignal(signal.SIGTERM)
    where = address or os.environ.get("RAY_ADDRESS") or "the latest on this machine"
    try:
        found = find_ray(address)
        local = found == "local"
        with _environment(told if local else told | _ONE_TRY):
            ray.init(
                address=found,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env=None if local else {"env_vars": told},
            )
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster answers at {where}: {_last_line(error.__cause__ or error)}; start one "
            "with `ray start --head`, or set compute.address=local for a Ray of the run's own"
        ) from error
    if callable(ours) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)  # Ray put one in its place


def _last_line(error: BaseException) -> str:
    """Of Ray's account of a connection, which holds a traceback, what went wrong."""
    return str(error).strip().splitlines()[-1]


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _log_with_ours() -> None:
    """What Ray itself has to say goes where our own lines go, if they go anywhere."""
    root = logging.getLogger("ray")
    if logging.root.handlers:
        root.handlers, root.propagate = [], True
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # we show our own


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except RayError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError) and cause.cause is not None:
            cause = cause.cause
        if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
            raise RuntimeError(
                "a process or node of the cluster was lost, more often than is made up for; what "
                f"is finished is kept, and the same command goes on from there: {reason(cause)}"
            ) from error
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
            "compute.device=cuda: this Ray cluster has no GPU; use device: auto or cpu, add GPU "
            "nodes, or set compute.wait_for.gpus where the cluster starts them on demand"
        )
    return "cuda" if gpus and wanted != "cpu" else "cpu"
