"""Waiting for the nodes that a run wants, which an autoscaling cluster starts when asked."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import ray
from ray.util.placement_group import placement_group, remove_placement_group

_log = logging.getLogger(__name__)
_SECONDS = 1.0  # between two looks


class Wanted(Protocol):
    """What a cluster is to have before anything runs; minutes: how long that may take."""

    @property
    def cpus(self) -> int: ...
    @property
    def gpus(self) -> int: ...
    @property
    def minutes(self) -> float: ...


def wait_for(wanted: Wanted) -> None:
    """Returns once the connected cluster has what is wanted.

    A job may be there before its workers: a head of its own on Kubernetes takes jobs as soon as
    it answers, and nodes that start on demand come only for something that waits. So the
    placement group asked for here holds nothing to run on: it is what the autoscaler sees, and it
    ends with this process if that is killed. Raises `RuntimeError` when the time is over.
    """
    if _lacking(wanted) is None:
        return
    _log.info("waiting for nodes: %s", _lacking(wanted))
    end = time.monotonic() + 60 * wanted.minutes
    with _asked(wanted):
        while (lacking := _lacking(wanted)) is not None:
            if time.monotonic() > end:
                raise RuntimeError(
                    f"{lacking}, after {wanted.minutes:g} minutes of waiting "
                    "(compute.wait_for.minutes). See that the cluster may start as many nodes and "
                    "that the cloud has them, or lower compute.wait_for"
                )
            time.sleep(_SECONDS)
    _log.info("the cluster has %s", _have())


@contextmanager
def _asked(wanted: Wanted) -> Iterator[None]:
    bundles = [{"GPU": 1.0}] * wanted.gpus + [{"CPU": 1.0}] * wanted.cpus
    group = placement_group(bundles)
    try:
        yield
    finally:
        remove_placement_group(group)


def _lacking(wanted: Wanted) -> str | None:
    """What is wanted and what there is, where that is less."""
    has = ray.cluster_resources()
    if has.get("CPU", 0) >= wanted.cpus and has.get("GPU", 0) >= wanted.gpus:
        return None
    return f"{wanted.cpus} CPUs and {wanted.gpus} GPUs are wanted and the cluster has {_have()}"


def _have() -> str:
    has = ray.cluster_resources()
    return f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
