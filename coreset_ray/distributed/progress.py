"""Progress of a stage: a bar on a terminal, a line now and then in a log, and a gauge."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

from coreset_ray.distributed.metrics import ProgressGauge
from coreset_ray.telemetry.logs import structured

_log = logging.getLogger("coreset_ray.progress")
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts units of work done out of a total; `note` adds words beside the count.

    steps: how often anything got on in this process.
    """

    steps = 0

    def __init__(self, stage: str, total: int, unit: str):
        self.stage, self.total, self.unit = stage, total, unit
        self.done = 0
        self._start = self._last = time.monotonic()
        self._bar = (
            tqdm(total=total, desc=stage, unit=f" {unit}", unit_scale=total > 10_000)
            if sys.stderr.isatty() and not structured()
            else None
        )
        self._gauge = ProgressGauge(stage)

    def __enter__(self) -> "Progress":
        self._gauge.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._gauge.__exit__()
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, note: str = "") -> None:
        """done: units finished so far."""
        now = time.monotonic()
        Progress.steps += done > self.done
        self._gauge.share = done / self.total if self.total else 1.0
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self.done)
        elif now - self._last >= _SECONDS_BETWEEN_LINES or (
            done == self.total and done > self.done
        ):
            self._last = now
            spent = now - self._start
            left = f", {spent / done * (self.total - done):.0f} s left" if done else ""
            _log.info(
                "%s: %d of %d %s%s, %.0f s spent%s",
                *(self.stage, done, self.total, self.unit),
                *(f", {note}" if note else "", spent, left),
                extra={"progress": self.stage, "done": done, "total": self.total},
            )
        self.done = done
