"""What a stage reads: the pool's shards, the embedding table and the snapshot of a run."""

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from coreset_ray.config import Config, PoolConfig, fingerprint
from coreset_ray.core.address import with_options
from coreset_ray.distributed.capacity import Wanted
from coreset_ray.distributed.session import session
from coreset_ray.distributed.shared import check_shared
from coreset_ray.distributed.weights import at_hand
from coreset_ray.io.shards import Shard, list_shards
from coreset_ray.io.tables import PartedTable
from coreset_ray.io.workspace import Stage, Workspace, snapshot_key, snapshot_of
from coreset_ray.models.encoders import describe
from coreset_ray.models.spec import PRETRAINED, EncoderSpec, absolute
from coreset_ray.telemetry.run import finished_before
from coreset_ray.version import __version__
from pipelines.trainings import training_mark

WEIGHTS = "weights.safetensors"  # of an encoder that was trained on the pool

_log = logging.getLogger(__name__)

_listed: ContextVar[dict[str, list[Shard]] | None] = ContextVar("listed", default=None)


class NotReady(ValueError):
    """A stage was asked for before the one it reads; the message names the command to run."""


def workspace_of(config: Config) -> Workspace:
    """Everything that its runs make."""
    return Workspace(uri_of(config, config.workspace))


def uri_of(config: Config, path: str) -> str:
    """A path of the configuration as workers take it: in a store, with the options of `storage`."""
    return with_options(path, config.storage.options())


def encoder_of(config: Config, spec: EncoderSpec) -> EncoderSpec:
    """An encoder of the configuration as workers take it."""
    weights = spec.weights and uri_of(config, spec.weights)
    return absolute(replace(spec, weights=weights))


def describe_encoder(config: Config, spec: EncoderSpec) -> dict[str, Any]:
    """What determines its answer, for a content hash."""
    return describe(at_hand(encoder_of(config, spec)))


@dataclass(frozen=True)
class Table:
    """The embedding table of some shards under a configuration: the pool's or the test set's."""

    config: Config
    pool: PoolConfig
    kind: str = "embeddings"

    @cached_property
    def shards(self) -> list[Shard]:
        return shards_of(self.config, self.pool)

    @cached_property
    def stage(self) -> Stage:
        embed = self.config.embed
        described = [describe(at_hand(spec)) for spec in encoders(self.config)]
        content = [described, embed.dtype, embed.precision, embed.max_pixels]
        name = "+".join(_short(spec.name) for spec in embed.encoders)
        return workspace_of(self.config).stage(self.kind, name, fingerprint(content))

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
        if not workspace_of(self.config).snapshot(key_of(snapshot)).exists():
            raise NotReady(
                "embedding these shards did not end well: run `coreset-ray embed` with this "
                "configuration for the reason"
            )
        return snapshot

    def record(self) -> dict[str, Any]:
        """What determines the content of this table, for table.json."""
        embed = self.config.embed
        return {
            "encoders": [describe(at_hand(spec)) for spec in encoders(self.config)],
            "settings": [asdict(spec) for spec in embed.encoders],
            "dtype": embed.dtype,
            "precision": embed.precision,
            "max_pixels": embed.max_pixels,
        }


def nothing_to_do(stage: Stage) -> None:
    """Says that this stage was finished by an earlier run."""
    finished_before()
    _log.info("nothing to do, %s is finished", stage.folder.uri)


def encoders(config: Config) -> list[EncoderSpec]:
    """As workers take them, the weights that the pool taught named by their file; `NotReady` while
    that is not there."""
    found = list(config.embed.encoders)
    if (own := config.embed.own()) is not None:
        stage = pretrain_stage(config)
        if stage.done() is None:
            raise NotReady(
                f"embed.encoders: {own.name!r} is not trained on the pool yet: run `coreset-ray "
                "pretrain` with this configuration first (`coreset-ray run` does)"
            )
        found[found.index(own)] = replace(own, weights=(stage.folder / WEIGHTS).uri)
    return [encoder_of(config, spec) for spec in found]


def pretrain_stage(config: Config) -> Stage:
    """Where the encoder that is trained on the pool lies."""
    own, told = config.embed.own(), config.pretrain
    if own is None or told is None:
        raise ValueError(
            f"nothing to train: no encoder under embed.encoders has weights: {PRETRAINED}"
        )
    marks = [[s.name, s.size, s.mtime_ns] for s in pretrain_shards(config)]
    how = [own.name, own.input_size, told.method, told.recipe(), told.seed, config.embed.max_pixels]
    content = training_mark(config, [*how, marks])
    return workspace_of(config).stage("encoders", _short(own.name), content)


def pretrain_shards(config: Config) -> list[Shard]:
    """What the encoder is trained on."""
    assert config.pretrain is not None, "the caller checked"
    return shards_of(config, config.pretrain.pool or config.pool)


@contextmanager
def on_cluster(config: Config, wanted: Wanted | None = None) -> Iterator[None]:
    """A connection to the configuration's cluster (`session`), whose nodes all see the workspace;
    it starts once the cluster has what is wanted."""
    with session(config.compute.address, wanted):
        check_shared(workspace_of(config).root)
        yield


@contextmanager
def listed_once() -> Iterator[None]:
    """For the length of the block, every pool is what it is when it is first looked at: a shard
    that arrives during a run waits for the next one. Also decorates. Blocks may nest."""
    if _listed.get() is not None:
        yield
        return
    token = _listed.set({})
    try:
        yield
    finally:
        _listed.reset(token)


def shards_of(config: Config, pool: PoolConfig) -> list[Shard]:
    """The shards of a pool now, or as they were when `listed_once` first saw them."""
    options, known = config.storage.options(), _listed.get()
    of = fingerprint([pool.shards, pool.root, options])
    if known is not None and of in known:
        return known[of]
    try:
        found = list_shards(pool.shards, pool.root, options)
    except ValueError as error:
        key = next((key for key, one in config.pools().items() if one is pool), "pool")
        raise ValueError(re.sub(r"\bpool\.(?=shards|root)", f"{key}.", str(error))) from error
    if known is not None:
        known[of] = found
    return found


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


def finish_signal(
    stage: Stage, snapshot: dict[str, Any], seconds: float, facts: dict[str, Any]
) -> dict[str, Any]:
    """The record of a finished signal: what it is of, what is told of it, how long it took."""
    of = {"snapshot": key_of(snapshot), "table": snapshot["table"], "parts": filled(snapshot)}
    return stage.finish({**of, **facts, "seconds": seconds, "version": __version__})


def scratch_of(config: Config, kind: str) -> str:
    """A folder of each machine for what is laid out there: `compute.scratch`, else in the
    workspace where that is a local folder."""
    return f"{scratch_root(workspace_of(config), config.compute.scratch)}/{kind}"


def scratch_root(workspace: Workspace, scratch: str | None) -> str:
    """The folder itself; scratch: what was configured."""
    root = workspace.root
    return scratch or (
        f"{root.path}/layouts" if root.local else f"{tempfile.gettempdir()}/coreset_ray/layouts"
    )


def _short(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-" else "-" for c in name.partition(":")[2])
