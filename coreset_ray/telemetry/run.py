"""What this process is doing: the run, its id, the stage under way, and what each stage took.

with recording("embed") as run:     a command
    with as_stage("embed"):         a stage; stages may nest, and `as_stage` also decorates
        count(images=100)           amounts of the stage under way, which add up
"""

import json
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass
class StageRecord:
    """A stage, by its path from the outermost; a stage that was entered several times adds up.

    seconds: wall time, with that of the stages inside it; finished_before: entries that found
    everything done; failed: that raised; amounts: what was counted; peaks: the largest that was
    told.
    """

    path: tuple[str, ...]
    seconds: float = 0.0
    calls: int = 0
    finished_before: int = 0
    failed: int = 0
    amounts: Counter[str] = field(default_factory=Counter)
    peaks: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path[-1] if self.path else ""

    @property
    def worked(self) -> bool:
        """Whether anything was done here to its end."""
        return self.calls > self.finished_before + self.failed


class Run:
    """One command, or all that a process does outside of any."""

    def __init__(self, command: str = ""):
        self.id, self.command = _new_id(), command
        self.started, self._start = time.time(), time.monotonic()
        self.outside = StageRecord((command,) if command else ())
        self.stages: dict[tuple[str, ...], StageRecord] = {}
        self.lock = Lock()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def worked(self) -> bool:
        """Whether any stage did anything to its end."""
        return any(record.worked for record in self.stages.values())

    def at(self, path: tuple[str, ...]) -> StageRecord:
        with self.lock:
            return self.stages.setdefault(path, StageRecord(path))


_run: Run | None = None
_path: ContextVar[tuple[str, ...]] = ContextVar("path", default=())


@contextmanager
def recording(command: str) -> Iterator[Run]:
    """A run of its own for the length of the block."""
    global _run
    before, _run = _run, Run(command)
    token = _path.set(())
    try:
        yield _run
    finally:
        _path.reset(token)
        _run = before


@contextmanager
def as_stage(name: str) -> Iterator[StageRecord]:
    """A stage of the run for the length of the block. Threads start outside of any stage."""
    path = _path.get()
    record = current().at((*path, name))
    token, start = _path.set(record.path), time.monotonic()
    try:
        yield record
    except BaseException:
        record.failed += 1
        raise
    finally:
        _path.reset(token)
        with current().lock:
            record.seconds += time.monotonic() - start
            record.calls += 1


def current() -> Run:
    """The run of this process; one without a command where none is being recorded."""
    global _run
    if _run is None:
        _run = Run()
    return _run


def stage_now() -> StageRecord:
    """The record of the stage under way, else the run's own."""
    path = _path.get()
    return current().at(path) if path else current().outside


def count(**amounts: float) -> None:
    """Adds to what was counted in the stage under way."""
    record = stage_now()
    with current().lock:
        for name, amount in amounts.items():
            record.amounts[name] += amount  # type: ignore[assignment]


def peak(**amounts: float) -> None:
    """Keeps the largest that was told in the stage under way."""
    record = stage_now()
    with current().lock:
        for name, amount in amounts.items():
            record.peaks[name] = max(record.peaks.get(name, 0), amount)


def finished_before() -> None:
    """Says that the stage under way had nothing to do."""
    stage_now().finished_before += 1


def _new_id() -> str:
    """CORESET_RUN_ID, else the submission id of the Ray job this is, else 12 hex digits."""
    given = os.environ.get("CORESET_RUN_ID")
    if given is None:
        return _submission() or uuid.uuid4().hex[:12]
    if not _ID.fullmatch(given):
        raise ValueError(
            f"CORESET_RUN_ID={given!r}: it names a folder; use letters, digits, '.', '_' and '-', "
            "at most 128"
        )
    return given


def _submission() -> str | None:
    """The id that `ray job submit` gave, which Ray tells a driver by its environment."""
    try:
        told = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]
        return told["job_submission_id"] if _ID.fullmatch(told["job_submission_id"]) else None
    except (KeyError, TypeError, ValueError):
        return None
