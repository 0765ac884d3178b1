"""What a stage reads: the pool's shards, the embedding table and the snapshot of a run."""

import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from coreset_ray.config import Config, PoolConfig, fingerprint
from coreset_ray.io.shards import Shard, list_shards
from coreset_ray.io.tables import PartedTable
from coreset_ray.io.workspace import Stage, Workspace, snapshot_key, snapshot_of
from coreset_ray.models.encoders import describe


class NotReady(ValueError):
    """A stage was asked for before the one it reads; the message names the command to run."""


@dataclass(frozen=True)
class Table:
    """The embedding table of some shards under a configuration: the pool's or the test set's."""

    config: Config
    pool: PoolConfig
    kind: str = "embeddings"

    @cached_property
    def shards(self) -> list[Shard]:
        return list_shards(self.pool.shards, self.pool.root)

    @cached_property
    def stage(self) -> Stage:
        embed = self.config.embed
        described = [describe(spec) for spec in embed.encoders]
        content = [described, embed.dtype, embed.precision, embed.max_pixels]
        name = "+".join(_short(spec.name) for spec in embed.encoders)
        return Workspace(self.config.workspace).stage(self.kind, name, fingerprint(content))

    @cached_property
    def parts(self) -> PartedTable:
        return PartedTable(self.stage.folder)

    def snapshot(self) -> dict[str, Any]:
        """Which parts make up these shards now; `NotReady` while some are not embedded."""
        commits = self.parts.committed(self.shards)
        missing = [s.name for s in self.shards if s.name not in commits]
        if missing:
            raise NotReady(
                f"{len(missing)} of {len(self.shards)} shards are not embedded ({missing[0]!r} "
                "first): run `coreset-ray embed` with this configuration first"
            )
        snapshot = snapshot_of(self.stage.name, commits.values())
        if not Workspace(self.config.workspace).snapshot(key_of(snapshot)).exists():
            raise NotReady(
                "embedding these shards did not end well: run `coreset-ray embed` with this "
                "configuration for the reason"
            )
        return snapshot

    def record(self) -> dict[str, Any]:
        """What determines the content of this table, for table.json."""
        embed = self.config.embed
        return {
            "encoders": [describe(spec) for spec in embed.encoders],
            "settings": [asdict(spec) for spec in embed.encoders],
            "dtype": embed.dtype,
            "precision": embed.precision,
            "max_pixels": embed.max_pixels,
        }


def pool_table(config: Config) -> Table:
    return Table(config, config.pool)


def key_of(snapshot: dict[str, Any]) -> str:
    return fingerprint(snapshot_key(snapshot))


def filled(snapshot: dict[str, Any]) -> dict[str, int]:
    """The parts that hold rows, and how many; `ValueError` when none does."""
    parts = {p["part"]: p["rows"] for p in snapshot["parts"] if p["rows"]}
    if not parts:
        raise ValueError("the pool holds no usable image: see the quarantine table for the reasons")
    return parts


def scratch_of(config: Config, kind: str) -> str:
    """A folder of each machine for what is laid out there: `compute.scratch`, else in the
    workspace where that is a local folder."""
    return f"{scratch_root(Workspace(config.workspace), config.compute.scratch)}/{kind}"


def scratch_root(workspace: Workspace, scratch: str | None) -> str:
    """The folder itself; scratch: what was configured."""
    root = workspace.root
    return scratch or (
        f"{root.path}/layouts" if root.local else f"{tempfile.gettempdir()}/coreset_ray/layouts"
    )


def _short(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-" else "-" for c in name.partition(":")[2])
