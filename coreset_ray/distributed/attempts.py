"""How often a piece of work was begun.

Ray begins anew whatever a killed process was at, as often as it takes. What kills every process
that touches it (mostly for want of memory) would so be begun for ever; whoever begins it once too
often gives it up instead.
"""

from collections import Counter
from typing import Any

import ray

MOST = 5  # in one pass over the pool


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3)
class Attempts:
    """Counts by name; lost with its node, it counts from nothing."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        """How often this has been begun now."""
        self._begun[name] += 1
        return self._begun[name]

    def succeeded(self, name: str) -> None:
        """Forgets the attempts."""
        del self._begun[name]


def given_up(attempts: Any, name: str, what: str, remedy: str) -> str:
    """Begins a piece of work; the reason why not, where it was begun too often before."""
    begun: Any = ray.get(attempts.begin.remote(name))
    if begun <= MOST:
        return ""
    return (
        f"{what} was killed or lost {begun - 1} times, which is mostly for want of memory: {remedy}"
    )
