"""The end of a run: where its time went and what limited it, in words and as a record."""

import resource
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from textwrap import wrap
from typing import Any

from coreset_ray.core.limits import in_bytes
from coreset_ray.telemetry.limits import judge
from coreset_ray.telemetry.run import Run, StageRecord

_WIDTH = 100
_PHASES = {"read": "reading", "decode": "decoding", "encode": "encoding", "write": "writing"}
_LIMITS = {
    "encoder": "the encoder",
    "store": "the store",
    "decode": "decoding",
    "draws": "the draws",
    "layout": "laying out the pool",
    "start": "starting up",
}


def summary(run: Run, status: str = "finished") -> dict[str, Any]:
    """The record of a run; status: finished, failed or interrupted. Times in seconds."""
    started = datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds")
    return {
        "run": run.id,
        "command": run.command,
        "status": status,
        "started": started.replace("+00:00", "Z"),
        "seconds": round(run.seconds, 2),
        "peak_memory": peak_memory(),
        "stages": [_stage(record) for _, record in sorted(run.stages.items(), key=_in_order(run))],
    }


def peak_memory() -> int:
    """Bytes that this process held at its largest."""
    told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return told if sys.platform == "darwin" else 1024 * told


def in_words(told: Mapping[str, Any]) -> str:
    """A summary as a reader wants it: a line or two a stage, outermost stages first."""
    head = f"Run {told['run']} {told['status']} in {told['seconds']:.1f} s"
    stages = told["stages"]
    outer = [s for s in stages if len(s["path"]) == 1]
    if told["status"] == "finished" and not any(s["worked"] for s in stages):
        return f"{head}. {'Every stage was finished before' if outer else 'No stage was begun'}."
    width = max(len(s["stage"]) for s in outer)
    lines = [f"{head}; the driver held {in_bytes(told['peak_memory'])} at most:"]
    for stage in outer:
        inner = [s for s in stages if _within(s, stage)]
        lead = f"  {stage['stage']:<{width}} {stage['seconds']:7.1f} s  "
        lines += wrap(
            _words(stage, inner), _WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead)
        ) or [lead.rstrip()]
    rest = told["seconds"] - sum(s["seconds"] for s in outer)
    lines.append(f"  {'rest':<{width}} {max(0.0, rest):7.1f} s  starting, and between the stages")
    return "\n".join(lines)


def _in_order(run: Run) -> Any:
    """Each stage behind the one it lies in; else as they were begun."""
    begun = {path: i for i, path in enumerate(run.stages)}
    return lambda item: [begun[item[0][: i + 1]] for i in range(len(item[0]))]


def _stage(record: StageRecord) -> dict[str, Any]:
    verdict = judge(record.amounts)
    return {
        "stage": record.name,
        "path": list(record.path),
        "seconds": round(record.seconds, 2),
        "calls": record.calls,
        "failed": record.failed,
        "worked": record.worked,
        "amounts": {name: round(value, 3) for name, value in sorted(record.amounts.items())},
        "peaks": dict(sorted(record.peaks.items())),
        "limited_by": verdict.limit if verdict else None,
        "because": verdict.because if verdict else None,
    }


def _within(inner: Mapping[str, Any], stage: Mapping[str, Any]) -> bool:
    """Whether a stage lies right in another and is worth a word."""
    return inner["path"][:-1] == stage["path"] and inner["worked"] and inner["seconds"] >= 0.1


def _words(stage: Mapping[str, Any], inner: list[Mapping[str, Any]]) -> str:
    told, amounts = [], stage["amounts"]
    if not stage["worked"]:
        told.append("failed" if stage["failed"] else "finished before")
    seconds = max(stage["seconds"], 1e-9)
    if images := amounts.get("images"):
        bytes_ = amounts.get("bytes", 0.0)
        told.append(
            f"{images:,.0f} images, {images / seconds:,.0f}/s; {in_bytes(bytes_)} read, "
            f"{in_bytes(bytes_ / seconds)}/s"
        )
        told.append(f"the first after {amounts.get('start', 0.0):.1f} s")
    if amounts.get("encode"):
        spent = sum(amounts.get(phase, 0.0) for phase in _PHASES)
        shares = [f"{word} {amounts.get(p, 0.0) / spent:.0%}" for p, word in _PHASES.items()]
        told.append(f"workers' time: {', '.join(shares)}")
    if draws := amounts.get("draws"):
        scanned = amounts.get("scanned", 0.0)
        rate = f", {in_bytes(scanned / seconds)}/s of columns" if scanned else ""
        told.append(f"{draws:,.0f} draws, {draws / seconds:,.0f}/s{rate}")
    if stage["limited_by"]:
        told.append(f"limited by {_LIMITS[stage['limited_by']]}: {stage['because']}")
    if memory := stage["peaks"].get("encoder_memory"):
        told.append(f"an encoder held {in_bytes(memory)} at most")
    within = [f"{s['stage']} {s['seconds']:.1f} s" for s in inner]
    told += [f"of which {', '.join(within)}"] if within else []
    return ". ".join(text[0].upper() + text[1:] for text in told)
