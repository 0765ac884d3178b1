"""Watches the nodes of the cluster while a run lasts, and says which come and go, and what a run
waits for that no node offers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from coreset_ray.distributed.lookout import Lookout

_log = logging.getLogger(__name__)
_SECONDS = 2.0  # between looks


@dataclass(frozen=True)
class Need:
    """Processes that have to run at once, and what each of them holds."""

    what: str
    cpus: float
    gpus: float
    count: int

    def fits(self, nodes: list[dict[str, Any]]) -> bool:
        """Whether these nodes have room, with nothing else on them."""
        return sum(self._room(node["Resources"]) for node in nodes) >= self.count

    def _room(self, offered: dict[str, float]) -> int:
        asked = {"CPU": self.cpus, "GPU": self.gpus}
        rooms = [int(offered.get(k, 0.0) / each + 1e-9) for k, each in asked.items() if each]
        return min(rooms, default=self.count)

    def __str__(self) -> str:
        held = [f"{n:g} {kind}" for kind, n in (("CPU", self.cpus), ("GPU", self.gpus)) if n]
        times = f" in each of {self.count} processes" if self.count > 1 else ""
        return f"{' and '.join(held)}{times}, which {self.what} takes"


_needs: list[Need] = []


@contextmanager
def needing(what: str, *, cpus: float = 0.0, gpus: float = 0.0, count: int = 1) -> Iterator[None]:
    """For the length of the block it is said loudly when the living nodes have no room for so
    many processes at once: what waits for them waits until a node joins."""
    need = Need(what, cpus, gpus, count)
    _needs.append(need)
    try:
        yield
    finally:
        _needs.remove(need)


class Watch(Lookout):
    """Says which nodes come and go, and what there is no room for."""

    def __init__(self) -> None:
        super().__init__(_SECONDS)
        self.before: dict[str, dict[str, Any]] = {}
        self.missed: set[Need] = set()

    def __enter__(self) -> "Watch":
        self.look(ray.nodes())
        return super().__enter__()

    def once(self) -> None:
        self.look(ray.nodes())

    def look(self, nodes: list[dict[str, Any]]) -> None:
        """Says what changed. nodes: as `ray.nodes` lists them."""
        alive = {node["NodeID"]: node for node in nodes if node["Alive"]}
        if self.before:
            for name in self.before.keys() - alive.keys():
                _log.warning("node %s was lost; %s", _named(self.before[name]), _offer(alive))
            for name in alive.keys() - self.before.keys():
                _log.info("node %s joined; %s", _named(alive[name]), _offer(alive))
        self.before = alive
        self._check([*alive.values()])

    def _check(self, nodes: list[dict[str, Any]]) -> None:
        missed = {need for need in [*_needs] if not need.fits(nodes)}
        for need in missed - self.missed:
            _log.warning(
                "no room among the living nodes for %s: waiting for a node to join. Without one, "
                "stop this run and give the same command with other `compute` settings: it goes "
                "on from what is done",
                need,
            )
        self.missed = missed


def _named(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def _offer(alive: dict[str, dict[str, Any]]) -> str:
    total = [sum(n["Resources"].get(k, 0.0) for n in alive.values()) for k in ("CPU", "GPU")]
    gpus = f", {total[1]:g} GPUs" if total[1] else ""
    return f"{len(alive)} nodes with {total[0]:g} CPUs{gpus} are there"
