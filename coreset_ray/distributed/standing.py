"""Which images of an earlier choice are still in a pool, and samples of its rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from coreset_ray.core.cosine import largest_cosine
from coreset_ray.core.random import uid_uniform
from coreset_ray.distributed.kept import Kept, Part, Source, blocks_of
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable, read_table, uid_words

_SAMPLE = 12  # the use of random numbers
_AT_ONCE = 64  # parts that share a task


def hashes_of(table: PartedTable, wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """SHA-256 of the bytes of these images by uid, of those that lie where they are looked for.

    wanted: uids by the name of the part. A part that is not there any more holds none.
    """
    names = list(wanted)
    blocks = [names[i : i + _AT_ONCE] for i in range(0, len(names), _AT_ONCE)]
    tasks = [_hashes.remote(table.folder.uri, {p: wanted[p] for p in block}) for block in blocks]
    found: dict[str, str] = {}
    for task in tasks:
        found |= ray.get(task)
    return found


@ray.remote(num_cpus=1, max_retries=3)
def _hashes(folder: str, wanted: dict[str, Sequence[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part, uids in wanted.items():
        place = PartedTable(locate(folder)).part(part)
        if place.exists():
            rows = read_table(place, ["uid", "sha256"])
            here: pa.ChunkedArray = pc.is_in(rows["uid"], value_set=pa.array(uids, pa.string()))  # type: ignore[attr-defined]
            rows = rows.filter(here)
            found |= dict(zip(rows["uid"].to_pylist(), rows["sha256"].to_pylist(), strict=True))
    return found


def sample_rows(
    source: Source, parts: dict[str, int], most: int, seed: int, without: pa.ChunkedArray
) -> np.ndarray:
    """About so many rows of these parts, (s, m) float32 of length 1: the same ones for any cut of
    the pool into parts, by their uids. without: uids that are left out."""
    rate, own = min(1.0, most / max(1, sum(parts.values()))), ray.put(without)
    tasks = [_sample.remote(source, block, rate, seed, own) for block in blocks_of(parts)]
    return np.concatenate([np.empty((0, source.width), np.float32), *ray.get(tasks)])


@ray.remote(num_cpus=1, max_retries=3)
def _sample(
    source: Source, block: list[Part], rate: float, seed: int, without: pa.ChunkedArray
) -> np.ndarray:
    found = []
    for part, _ in block:
        uid, unit = source.read(part)
        away: pa.ChunkedArray = pc.is_in(uid, value_set=without)  # type: ignore[attr-defined]
        drawn = uid_uniform(seed, uid_words(uid), _SAMPLE) < rate
        found.append(unit[drawn & ~away.to_numpy()])
    return np.concatenate(found)


def nearest_kept(rows: np.ndarray, kept: Sequence[ray.ObjectRef], coreset: int) -> np.ndarray:
    """The largest cosine of each row with an image of one coreset, (s,) float64; -1 where it is
    empty.

    rows: (s, m) float32 of length 1; kept: as `distributed.kept.gather` gives them.
    """
    own = ray.put(rows)
    found = ray.get([_nearest.remote(own, some, coreset) for some in kept])
    return np.max([np.full(len(rows), -1.0), *found], axis=0)


@ray.remote(num_cpus=1, max_retries=3)
def _nearest(rows: np.ndarray, kept: Kept, coreset: int) -> np.ndarray:
    mine = kept.unit[kept.member[coreset]]
    if not len(mine) or not len(rows):
        return np.full(len(rows), -1.0)
    return largest_cosine(rows, mine, np.full(len(rows), -1))


def cluster_counts(
    kept: Sequence[ray.ObjectRef], centroids: np.ndarray, coresets: int
) -> np.ndarray:
    """Images of each coreset in each cluster, (coresets, c) int64: by the nearest centroid."""
    given = ray.put(centroids)
    found = ray.get([_clusters.remote(some, given, coresets) for some in kept])
    return np.sum([np.zeros((coresets, len(centroids)), np.int64), *found], axis=0)


@ray.remote(num_cpus=1, max_retries=3)
def _clusters(kept: Kept, centroids: np.ndarray, coresets: int) -> np.ndarray:
    nearest = (kept.unit @ centroids.T).argmax(axis=1)
    counts = [np.bincount(nearest[m], minlength=len(centroids)) for m in kept.member[:coresets]]
    return np.stack(counts)
