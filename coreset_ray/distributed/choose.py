"""Ranks a scored pool and writes the manifest of what is kept."""

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core.method import Scorer
from coreset_ray.core.selection import top_rows
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import MANIFEST, read_table, uid_words, write_table


def choose_top(
    method: Scorer,
    seed: int,
    scores: list[Location],
    span: tuple[float, float],
    k: int,
    manifest: Location,
) -> None:
    """Writes the manifest of the k best, best first.

    scores: the score parts; span: the pool's lowest and highest score (for the weights).
    """
    uris = [s.uri for s in scores]
    ray.get(_choose.remote(method, seed, uris, span, k, manifest.uri))


@ray.remote(num_cpus=1)
def _choose(
    method: Scorer, seed: int, scores: list[str], span: tuple[float, float], k: int, manifest: str
) -> None:
    # Each part gives up its k best; the k best of those are the k best of all.
    best = pa.concat_tables([_best_of(method, seed, read_table(locate(s)), k) for s in scores])
    best = _best_of(method, seed, best, k)
    score = best["score"].to_numpy()
    rank = np.arange(len(score))
    table = best.select(["uid", "shard", "key"])
    table = table.append_column("rank", pa.array(rank))
    table = table.append_column("score", pa.array(score))
    table = table.append_column("weight", pa.array(method.weight(score, *span)))
    reason = pa.array(["top score"] * len(score), pa.string())
    write_table(locate(manifest), table.append_column("reason", reason).cast(MANIFEST))


def _best_of(method: Scorer, seed: int, rows: pa.Table, k: int) -> pa.Table:
    uid = uid_words(rows["uid"])
    key = method.rank_key(rows["score"].to_numpy(), uid, seed)
    return rows.take(top_rows(key, uid, min(k, len(uid))))
