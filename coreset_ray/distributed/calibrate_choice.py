"""A choice without scores, or a filter, of made-up rows on the cluster in hand, timed."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from coreset_ray.core.alone import Alone, select_alone
from coreset_ray.core.choice_costs import Trial
from coreset_ray.core.filter import Filter, dropped_by
from coreset_ray.core.greedy import Greedy, greedy_turns
from coreset_ray.core.made_up import Widths, made_up
from coreset_ray.core.threads import one_thread
from coreset_ray.distributed.session import Cluster

_FIRST = 1024  # rows of the first trial
_BYTES = 128 << 20  # of the largest one's columns
_FEWEST = 32  # that it chooses, where the budget is as large
_SECONDS = 0.5  # a trial that takes longer is not followed by a larger one
_CALLS = 50


def time_choice(method: Alone | Filter, n: int, k: int, widths: Widths, on: Cluster) -> Trial:
    """By trials of ever more rows, up to half a second, in a process of each CPU at once.

    n, k: of the choice that is foretold, which no trial exceeds; k is 0 of a filter.
    """
    told = ray.put((method, n, k, widths))
    trials: list[Trial] = ray.get([_try.remote(told) for _ in range(max(1, int(on.cpus)))])
    slowest = max(trials, key=lambda trial: trial.seconds / trial.n)
    trip = _round_trip() if isinstance(method, Greedy) else 0.0
    return replace(slowest, round_trip=trip)


@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def _try(told: tuple[Alone | Filter, int, int, Widths]) -> Trial:
    one_thread()
    method, n, k, widths = told
    _timed(method, min(n, 2 * _FEWEST), min(k, _FEWEST), widths)  # compiles
    each = sum(widths.bytes(column) for column in method.needs)
    most = min(n, max(_FIRST, _BYTES // each))
    rows = min(n, _FIRST)
    while True:
        trial = _timed(method, rows, min(k, max(_FEWEST, k * rows // n)), widths)
        if trial.seconds > _SECONDS or rows == most:
            return trial
        rows = min(4 * rows, most)


def _timed(method: Alone | Filter, n: int, k: int, widths: Widths) -> Trial:
    pool, turns = made_up(method.needs, n, widths), 0
    start = time.perf_counter()
    if isinstance(method, Filter):
        dropped_by(method, pool)
    elif isinstance(method, Greedy):
        turns = sum(1 for _ in greedy_turns(method, pool, np.arange(n), k, seed=0))
    else:
        select_alone(method, pool, k, 0)
    return Trial(n, k, time.perf_counter() - start, turns)


def _round_trip() -> float:
    """Seconds of a call of an actor that does nothing."""
    actor: Any = _Idle.remote()  # type: ignore[attr-defined]
    try:
        ray.get(actor.answer.remote())
        start = time.perf_counter()
        for _ in range(_CALLS):
            ray.get(actor.answer.remote())
        return (time.perf_counter() - start) / _CALLS
    finally:
        ray.kill(actor)


@ray.remote(num_cpus=0)
class _Idle:
    def answer(self) -> None:
        return None
