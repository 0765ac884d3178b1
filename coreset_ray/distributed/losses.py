"""Processes and machines that are lost while a stage runs.

What tasks and stateless actors had under way Ray repeats by itself. Where an actor's state is part
of the work, the stage catches `LOST`, makes new actors and goes on from what it keeps elsewhere.
"""

import logging
import time

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

# An object is lost with the machine that holds the only copy, or with the process that owns it.
LOST = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)

_log = logging.getLogger(__name__)
_MOST = 20
_PAUSES = 0.05, 5.0  # seconds after the first loss, twice as long after each further one, at most


class Losses:
    """Counts what a stage lost since it last got on. A stage that loses and gets on may lose as
    often as it likes; one that only loses waits longer each time, for what fails at once may work
    a minute later, and is ended."""

    def __init__(self, stage: str, most: int = _MOST):
        self.stage, self.most, self.count = stage, most, 0

    def got_on(self) -> None:
        self.count = 0

    def met(self, error: BaseException) -> None:
        """Says what was lost. Raises `RuntimeError` where too much was, with nothing between."""
        told = reason(error)
        if getattr(error, "actor_init_failed", False):  # it would again
            raise RuntimeError(f"{self.stage}: {told}") from error
        self.count += 1
        if self.count >= self.most:
            raise RuntimeError(
                f"{self.stage}: {self.count} processes were lost one after another and nothing got "
                f"done; what is committed is kept, and the same command goes on from there. The "
                f"last one: {told}"
            ) from error
        _log.warning("%s: a process was lost and its work is done again: %s", self.stage, told)
        first, longest = _PAUSES
        time.sleep(min(longest, first * 2 ** (self.count - 1)))


def reason(error: BaseException) -> str:
    """What Ray says of a loss, in a line: not the ids and pids, but why and where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if getattr(error, "actor_init_failed", False):  # its last line is the error's own
        return lines[-1]
    place = next((f" on {x.removeprefix('ip: ')}" for x in lines if x.startswith("ip: ")), "")
    said = [x for x in lines if "died" in x or "lost" in x or "unavailable" in x] or lines[:1]
    return (said[-1] if said else type(error).__name__)[:300] + place
