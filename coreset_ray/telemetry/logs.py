"""The log: one line an event, for people or as JSON, with the run and the stage it is of."""

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any

from coreset_ray.telemetry.run import current, stage_now

FORMATS = ("text", "json")
FORMAT_VARIABLE = "CORESET_LOG"
_WORKER_VARIABLE = "CORESET_WORKER_LOG"  # format and run id, for the workers of a run
_OURS = ("coreset_ray", "pipelines")
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "run", "stage"}


def choose_format(given: str | None) -> str:
    """The one given, else that of the environment, else text."""
    chosen = given or os.environ.get(FORMAT_VARIABLE) or FORMATS[0]
    if chosen not in FORMATS:
        raise ValueError(f"{FORMAT_VARIABLE}={chosen!r}: expected one of {', '.join(FORMATS)}")
    return chosen


def set_up(form: str) -> None:
    """Sends what we log, and the warnings of all libraries, to standard error in this format."""
    _handle(form)


def set_up_worker() -> None:
    """The same in a worker of a run, whose lines Ray keeps in its log files. Does nothing
    elsewhere."""
    if told := os.environ.get(_WORKER_VARIABLE):
        form, _, run = told.partition(" ")
        _handle(form, run)


def for_workers() -> dict[str, str]:
    """The environment by which workers learn of this run."""
    return {_WORKER_VARIABLE: f"{'json' if structured() else 'text'} {current().id}"}


def structured() -> bool:
    """Whether the log of this process is JSON."""
    return any(isinstance(handler.formatter, Json) for handler in logging.root.handlers)


def _handle(form: str, run: str = "") -> None:
    """run: of the worker that this is, if it is one."""
    handler = logging.StreamHandler()
    handler.addFilter(_Marks(run))
    handler.setFormatter(Json() if form == "json" else Text(run))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)


class _Marks(logging.Filter):
    """Adds run and stage to every record; a worker knows its run, and no stage."""

    def __init__(self, run: str):
        super().__init__()
        self.run = run

    def filter(self, record: logging.LogRecord) -> bool:
        record.run = self.run or current().id
        record.stage = "worker" if self.run else stage_now().name
        return True


def _text(record: logging.LogRecord) -> str:
    """The message without the name of its stage, which stands beside it."""
    return record.getMessage().removeprefix(f"{getattr(record, 'stage', '')}: ")


class Text(logging.Formatter):
    """02:04:25 embed  12 shards …; a line names the run only where lines of several runs meet."""

    def __init__(self, run: str = ""):
        super().__init__()
        self.run = f" {run}" if run else ""

    def format(self, record: logging.LogRecord) -> str:
        stage, loud = getattr(record, "stage", ""), record.levelno >= logging.WARNING
        told = f"{record.levelname.lower()}: {_text(record)}" if loud else _text(record)
        line = "  ".join(
            filter(None, [f"{self.formatTime(record, '%H:%M:%S')} {stage}{self.run}", told])
        )
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Json(logging.Formatter):
    """One object a line: time (UTC), level, run, stage, logger, message, and the fields that were
    given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "run": getattr(record, "run", ""),
            "stage": getattr(record, "stage", ""),
            "logger": record.name,
            "message": _text(record),
        }
        given = {name: value for name, value in vars(record).items() if name not in _PLAIN}
        line |= {name: value for name, value in given.items() if not name.startswith("_")}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)
