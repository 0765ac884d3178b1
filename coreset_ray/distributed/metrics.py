"""The metrics of a run at Ray's Prometheus endpoint, and in the record of its stages.

What workers measure travels with the messages that they send anyway, and only the driver of a run
reports it: a block or a second at a time, never an image. So the last figures are not lost with a
worker that ends, and there is one series for each stage of a run, however large the cluster. Ray
sends them on at an interval (RAY_metrics_report_interval_ms), and once more when the driver ends.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util import metrics

from coreset_ray.telemetry import run as telemetry

_log = logging.getLogger(__name__)

_REFRESH = 1.0  # seconds; Ray drops a gauge that is not set again for two of its intervals
_TAGS = ("stage", "run")


@dataclass(frozen=True)
class Metric:
    """name: Ray puts `ray_` before it, and `_total` behind a counter's; amount: what it counts, as
    in `add`; phase: of the work its seconds are of."""

    name: str
    meaning: str
    amount: str
    phase: str = ""


_SECONDS = "Seconds that workers spent on one phase of a stage's work, summed over them"
_PHASES = ("read", "decode", "encode", "write", "draw")
COUNTERS = (
    Metric("coreset_images_embedded", "Images whose embedding was committed", "images"),
    Metric("coreset_images_quarantined", "Images refused, with the reason kept", "quarantined"),
    Metric("coreset_bytes_read", "Bytes of shards read from their store", "bytes"),
    Metric("coreset_draws", "Draws made; those of a lost worker are made again", "draws"),
    *(Metric("coreset_stage_seconds", _SECONDS, phase, phase) for phase in _PHASES),
)
PROGRESS = Metric("coreset_stage_progress", "Part of a stage's work that is done, 0 to 1", "")

_made: dict[str, Any] = {}
_failed = False


def add(**amounts: float) -> None:
    """Counts these amounts in the stage under way, and at the endpoint those that have a metric."""
    telemetry.count(**amounts)
    for metric in COUNTERS:
        if (amount := amounts.get(metric.amount, 0)) > 0:
            tags = {"phase": metric.phase} if metric.phase else {}
            _report(metrics.Counter, metric, tags, lambda made, t, a=amount: made.inc(a, tags=t))


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Adds the seconds of the block under this name."""
    start = time.monotonic()
    try:
        yield
    finally:
        add(**{name: time.monotonic() - start})


class Totals:
    """Running totals of which each increase is added once, whatever is told how often."""

    def __init__(self) -> None:
        self._sources: dict[str, Mapping[str, float]] = {}
        self._told: Counter[str] = Counter()

    def tell(self, source: str, totals: Mapping[str, float]) -> None:
        """What one of several sources counted since its beginning; one that is lost and tells no
        more stays counted."""
        self._sources[source] = totals
        whole: Counter[str] = Counter()
        for each in self._sources.values():
            whole.update(each)  # type: ignore[arg-type]
        self.reach(whole)

    def reach(self, totals: Mapping[str, float]) -> None:
        """What all counted; a total that is lower than before is passed over."""
        more = {name: now - self._told[name] for name, now in totals.items()}
        more = {name: amount for name, amount in more.items() if amount > 0}
        self._told.update(more)  # type: ignore[arg-type]
        add(**more)


class ProgressGauge:
    """Shows how far a stage is for as long as the block lasts, however seldom it is told.

    share: done, 0 to 1.
    """

    def __init__(self, stage: str):
        self.share = 0.0
        self._tags = {"stage": stage, "run": telemetry.current().id}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="progress-gauge", daemon=True)

    def __enter__(self) -> "ProgressGauge":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _refresh(self) -> None:
        while not self._closed.wait(_REFRESH):
            self._show()
        self._show()

    def _show(self) -> None:
        _report(metrics.Gauge, PROGRESS, self._tags, lambda made, t: made.set(self.share, t))


def _report(kind: Any, metric: Metric, tags: dict[str, str], tell: Any) -> None:
    """Tells Ray; a run is worth more than its metrics, so what goes wrong here is only logged."""
    global _failed
    try:
        if not ray.is_initialized():
            return
        if metric.name not in _made:
            keys = (*_TAGS, "phase") if metric.phase else _TAGS
            _made[metric.name] = kind(metric.name, metric.meaning, keys)
        own = {"stage": telemetry.stage_now().name, "run": telemetry.current().id}
        tell(_made[metric.name], own | tags)
    except Exception as error:
        if not _failed:
            _failed = True
            _log.warning("metrics are not reported: %s: %s", type(error).__name__, error)
