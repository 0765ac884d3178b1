"""shards → embedding table and snapshot. Embeds only shards that have no part yet."""

import logging
from typing import Any

from coreset_ray.config import Config
from coreset_ray.distributed.embed import embed_shards, plan_embedding
from coreset_ray.distributed.session import choose_device, cluster
from coreset_ray.io.tables import Commit
from coreset_ray.io.workspace import snapshot_of
from coreset_ray.telemetry.run import as_stage, finished_before
from pipelines.inputs import Table, encoders, key_of, on_cluster, pool_table, workspace_of

_log = logging.getLogger(__name__)


def run(config: Config) -> dict[str, Any]:
    """Embeds the pool; returns its snapshot."""
    return embed(config, pool_table(config))


@as_stage("embed")
def embed(config: Config, table: Table) -> dict[str, Any]:
    commits = table.parts.committed(table.shards)
    before = len(commits)
    if before < len(table.shards):
        if not (table.stage.folder / "table.json").exists():
            _tell_difference(table)
            (table.stage.folder / "table.json").write_json(table.record())
        with on_cluster(config, config.compute.wait_for):
            _embed_missing(config, table)
        commits = table.parts.committed(table.shards)
    else:
        finished_before()
    snapshot = snapshot_of(table.stage.name, commits.values())
    _log.info(
        "%s: %d shards (%d new), %d images, %d quarantined, in %s",
        *(table.kind, len(commits), len(commits) - before),
        *(snapshot["rows"], snapshot["quarantined"], table.stage.folder.uri),
    )
    _judge(config.embed.max_bad, list(commits.values()), table)
    workspace_of(config).snapshot(key_of(snapshot)).write_json(snapshot)
    return snapshot


def _embed_missing(config: Config, table: Table) -> None:
    compute, on = config.compute, cluster()
    device = choose_device(compute.device)
    if device == "cpu" and compute.encoder_gpus != 1.0:
        _log.warning("compute.encoder_gpus=%s is ignored: no GPU is used", compute.encoder_gpus)
    plan = plan_embedding(on, device, compute.batch_size, compute.encoders, compute.encoder_gpus)
    embed_shards(
        table.shards,
        table.parts,
        encoders(config),
        plan,
        dtype=config.embed.dtype,
        precision=config.embed.precision,
        max_pixels=config.embed.max_pixels,
    )


def _tell_difference(table: Table) -> None:
    """Says of which settings the table most like this new one is, if there is any: whoever did not
    mean to change them would pay for the pool twice."""
    folder, record = workspace_of(table.config).root / table.kind, table.record()
    found = []
    for info in folder.listing():
        told = folder / info.base_name / "table.json"
        if told.exists():
            other = told.read_json()
            keys = [key for key in record if other.get(key) != record[key]]
            found.append((len(keys), info.base_name, other, keys))
    if found:
        _, name, other, keys = min(found, key=lambda each: each[:2])
        plain = (str, int, float)
        told = [
            f"{k} {other.get(k)!r} there and {record[k]!r} here"
            if isinstance(record[k], plain)
            else k
            for k in keys
        ]
        _log.info(
            "%s: other settings than those of %s (%s): every shard is embedded anew, and what "
            "lies there stays",
            *(table.kind, name, "; ".join(told)),
        )


def _judge(max_bad: float, commits: list[Commit], table: Table) -> None:
    """Names broken shards; refuses a pool of which too much is unusable."""
    broken = [c for c in commits if c.fault]
    for commit in broken:
        _log.warning("shard %s: %s; %d images kept", commit.shard, commit.fault, commit.rows)
    for commit in commits:
        if commit.repeated:
            _log.warning(
                "shard %s: %d samples have a key seen before in it; the first of each is kept",
                *(commit.shard, commit.repeated),
            )
    precisions = sorted({c.precision for c in commits if c.precision})
    if len(precisions) > 1:
        _log.warning(
            "embeddings made in %s lie in one table, and differ by more than their last bits; set "
            "embed.precision to have one",
            " and ".join(precisions),
        )
    bad = sum(c.quarantined for c in commits)
    seen = sum(c.rows for c in commits) + bad
    lost = [c for c in broken if not c.rows]
    if bad > max_bad * seen or len(lost) > max_bad * len(commits):
        raise RuntimeError(
            f"{bad} of {seen} images and {len(lost)} of {len(commits)} shards are unusable, "
            f"more than embed.max_bad = {max_bad}. The reasons lie in "
            f"{(table.stage.folder / 'quarantine').uri}. Everything else is embedded and kept: "
            "mend the pool, or raise embed.max_bad to go on without them"
        )


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["embed", *sys.argv[1:]])
