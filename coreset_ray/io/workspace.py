"""Where each stage's output lies: one directory a stage, named by what determines its content."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.published import Published
from coreset_ray.io.tables import Commit


@dataclass(frozen=True)
class Stage:
    """One stage's output directory; it counts once done.json, written last, is there."""

    folder: Location

    @property
    def name(self) -> str:
        return self.folder.path.rsplit("/", 1)[1]

    def done(self) -> dict[str, Any] | None:
        """The record that the finished stage left, or None."""
        record = self.folder / "done.json"
        return record.read_json() if record.exists() else None

    def finish(self, record: dict[str, Any]) -> dict[str, Any]:
        (self.folder / "done.json").write_json(record)
        return record


class Workspace:
    """The folder (or bucket prefix) that holds everything a run makes."""

    def __init__(self, uri: str):
        self.root = locate(uri)

    def stage(self, kind: str, name: str, fingerprint: str) -> Stage:
        """kind: embeddings, scores, selections, exports, evaluations."""
        return Stage(self.root / kind / f"{name}-{fingerprint}")

    def published(self, name: str) -> Published:
        """The versions of a standing selection."""
        return Published(self.root / "selections" / name)

    @property
    def lease(self) -> Location:
        """The folder of the lease that one run at a time holds."""
        return self.root / "lease"

    def summary(self, run: str) -> Location:
        """Where the record of a run lies. run: its id."""
        return self.root / "runs" / run / "summary.json"

    def snapshot(self, fingerprint: str) -> Location:
        return self.root / "snapshots" / f"{fingerprint}.json"


def snapshot_of(table: str, commits: Iterable[Commit]) -> dict[str, Any]:
    """Which parts make up the pool, in ascending order of shard name, with counts."""
    parts = sorted(commits, key=lambda c: c.shard)
    return {
        "table": table,
        "rows": sum(c.rows for c in parts),
        "quarantined": sum(c.quarantined for c in parts),
        "parts": [
            {"shard": c.shard, "part": c.part, "rows": c.rows, "content": c.content} for c in parts
        ],
    }


def snapshot_key(snapshot: dict[str, Any]) -> list[Any]:
    """What identifies a snapshot: the content of its parts, not when or where they were made."""
    return [snapshot["table"], [[p["shard"], p["content"]] for p in snapshot["parts"]]]
