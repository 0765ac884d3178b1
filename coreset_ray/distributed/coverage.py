"""What coresets leave uncovered of a pool without labels: each part is read once for all of them.

A task for every block of parts finds the nearest image that each coreset keeps. Counts, sums and
sets are exact, so the answer is the same for any cut of the pool into parts and blocks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core.cosine import largest_cosine
from coreset_ray.core.measures import Distances, chord, effective_size
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.kept import Kept, Part, Source, blocks_of, gather
from coreset_ray.distributed.progress import Progress
from coreset_ray.io.embedding_parts import width_of
from coreset_ray.io.filesystem import Location
from coreset_ray.io.tables import PartedTable


@dataclass(frozen=True)
class Found:
    """Of one coreset in some rows. distances: of images not kept; alike: images kept that are
    near-duplicates of another one kept; clusters: those of images kept."""

    distances: Distances
    alike: int
    clusters: frozenset[int]

    def __add__(self, other: "Found") -> "Found":
        return Found(
            self.distances + other.distances,
            self.alike + other.alike,
            self.clusters | other.clusters,
        )


@dataclass(frozen=True)
class Tally:
    """Of all coresets in some rows; clusters: the rows of each cluster."""

    found: list[Found]
    clusters: Counter[int]

    def __add__(self, other: "Tally") -> "Tally":
        found = [a + b for a, b in zip(self.found, other.found, strict=True)]
        return Tally(found, self.clusters + other.clusters)


def measure_coresets(
    table: PartedTable,
    parts: dict[str, int],
    coresets: Sequence[pa.Table],
    *,
    clusters: Location | None = None,
    duplicate: float = 0.95,
) -> list[dict[str, Any]]:
    """How good each coreset is by the embeddings alone; JSON-able.

    parts: rows of each; coresets: columns uid and weight; clusters: folder of a signal with a
    column `cluster`; duplicate: cosine from which two images are near-duplicates. Of each coreset

    - images: k; effective_size: see `core.measures`
    - distances: `Distances.record` over the images NOT kept, from each to the nearest one kept;
      of no images where all are kept
    - near_duplicates: share of the images kept that have a near-duplicate among the others kept
    - clusters_covered: `clusters`, the share of the pool's clusters of which an image is kept, and
      `images`, the share of the pool in them; None without clusters

    An embedding of zeros is √2 from every other and no near-duplicate. Raises `ValueError` of a
    coreset that is empty, without weight, names an image twice or one that the pool has not got.
    """
    if not 0 < duplicate <= 1:
        raise ValueError(f"duplicate={duplicate}: expected a cosine above 0 and up to 1")
    sizes = [_effective_size(i, coreset) for i, coreset in enumerate(coresets)]
    if not sizes:
        return []
    source, blocks = Source(table.folder.uri, width_of(table, next(iter(parts)))), blocks_of(parts)
    kept = gather(source, blocks, [coreset["uid"] for coreset in coresets])
    folder = None if clusters is None else clusters.uri
    tasks = [
        _measure.remote(source, block, kept, len(sizes), duplicate, folder) for block in blocks
    ]
    total = _summed(tasks)
    return [
        {
            "images": len(coreset),
            "effective_size": size,
            "distances": found.distances.record(),
            "near_duplicates": found.alike / len(coreset),
            "clusters_covered": None if folder is None else _covered(found, total.clusters),
        }
        for coreset, size, found in zip(coresets, sizes, total.found, strict=True)
    ]


def _effective_size(i: int, coreset: pa.Table) -> float:
    if not len(coreset):
        raise ValueError(f"coreset {i} is empty: one that is measured keeps an image at least")
    try:
        return effective_size(coreset["weight"].to_numpy())
    except ValueError as error:
        raise ValueError(f"coreset {i}: {error}") from None


def _summed(tasks: list[ray.ObjectRef]) -> Tally:
    """In the order that they end in."""
    total, pending = None, tasks
    with Progress("measures", len(tasks), "blocks") as progress:
        while pending:
            ready, pending = ray.wait(pending)
            told = ray.get(ready[0])
            total = told if total is None else total + told
            progress.update(len(tasks) - len(pending))
    assert total is not None, "a pool has a part"
    return total


def _covered(found: Found, sizes: Counter[int]) -> dict[str, float]:
    rows = sum(sizes[cluster] for cluster in found.clusters)
    return {"clusters": len(found.clusters) / len(sizes), "images": rows / sizes.total()}


@ray.remote(num_cpus=1)
def _measure(
    source: Source,
    block: list[Part],
    kept: list[ray.ObjectRef],
    count: int,
    duplicate: float,
    clusters: str | None,
) -> Tally:
    """Of some parts; kept: of `count` coresets."""
    tallies = []
    for name, first in block:
        cosine, own = _nearest(source.read(name)[1], first, kept, count)
        cluster = None if clusters is None else _clusters(source, clusters, name)
        tallies.append(_tally(cosine, own, cluster, duplicate))
    return sum(tallies[1:], tallies[0])


def _nearest(
    unit: np.ndarray, first: int, kept: list[ray.ObjectRef], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of rows (n, m) numbered from `first`: the largest cosine with another one that each coreset
    keeps, -inf where it keeps no other, and whether it keeps the row itself; both (count, n)."""
    cosine = np.full((count, len(unit)), -np.inf)
    own = np.zeros(cosine.shape, bool)
    for ref in kept:
        some: Kept = ray.get(ref)
        for i in np.flatnonzero(some.member.any(axis=1)):
            number = some.number[some.member[i]] - first
            here = np.flatnonzero((number >= 0) & (number < len(unit)))
            place = np.full(len(unit), -1)
            place[number[here]] = here
            found = largest_cosine(unit, some.unit[some.member[i]], place)
            cosine[i] = np.maximum(cosine[i], found)
            own[i] |= place >= 0
    return cosine, own


def _clusters(source: Source, folder: str, part: str) -> np.ndarray:
    return PoolFiles(source.table, {"of": folder}).read(part, ["of.cluster"])["of.cluster"]


def _tally(
    cosine: np.ndarray, own: np.ndarray, cluster: np.ndarray | None, duplicate: float
) -> Tally:
    """cosine, own: (c, n); cluster: (n,) integers."""
    found = []
    for near, kept in zip(cosine, own, strict=True):
        hit = frozenset[int]() if cluster is None else frozenset(cluster[kept].tolist())
        alike = int((near[kept] >= duplicate).sum())
        found.append(Found(Distances.of(chord(near[~kept])), alike, hit))
    return Tally(found, Counter(() if cluster is None else cluster.tolist()))
