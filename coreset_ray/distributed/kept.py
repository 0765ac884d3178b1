"""The embeddings of all images that some coresets keep, gathered in one pass over the pool.

Rows of the pool are numbered in the order of the parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from coreset_ray.core.cosine import unit_rows
from coreset_ray.io.embedding_parts import read_part
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable

_BLOCK = 1 << 13  # rows of the pool that share a task, about
_HELD = 1 << 14  # rows kept that share an object, about

Part = tuple[str, int]  # its name, and the number of its first row in the pool


@dataclass(frozen=True)
class Source:
    """The pool's table, and m."""

    table: str
    width: int

    def read(self, part: str) -> tuple[pa.ChunkedArray, np.ndarray]:
        """uid, and embeddings (n, m) float32 of length 1."""
        uid, embedding = read_part(PartedTable(locate(self.table)), part, self.width)
        return uid, unit_rows(embedding)


@dataclass(frozen=True)
class Kept:
    """Images of c coresets: numbers (r,) ascending, embeddings (r, m) of length 1, and whose they
    are, (c, r) truths."""

    number: np.ndarray
    unit: np.ndarray
    member: np.ndarray


def blocks_of(parts: dict[str, int]) -> list[list[Part]]:
    """Consecutive parts that share a task. parts: rows of each."""
    firsts = np.cumsum([0, *parts.values()])[:-1].tolist()
    placed = list(zip(parts, firsts, strict=True))
    return [[placed[i] for i in group] for group in _groups(list(parts.values()), _BLOCK)]


def gather(
    source: Source, blocks: list[list[Part]], coresets: Sequence[pa.ChunkedArray]
) -> list[ray.ObjectRef]:
    """The images of all coresets, each once, as several `Kept` in the object store.

    coresets: uids of each. Raises `ValueError` where one names an image twice, or one that the
    pool has not got. Through the driver pass numbers of images kept, and no embedding.
    """
    uid = ray.put(list(coresets))
    tasks: list[Any] = [_keep.options(num_returns=2).remote(source, block, uid) for block in blocks]
    found = ray.get([places for _, places in tasks])
    for i, wanted in enumerate(coresets):
        missing = np.setdiff1d(np.arange(len(wanted)), np.concatenate([f[i] for f in found]))
        if len(missing):
            raise _unfit(i, wanted.to_pylist(), missing)
    sizes = [len(places[-1]) for places in found]
    filled = [(kept, size) for (kept, _), size in zip(tasks, sizes, strict=True) if size]
    groups = _groups([size for _, size in filled], _HELD)
    return [_pack.remote(*(filled[i][0] for i in group)) for group in groups]


def _groups(sizes: list[int], most: int) -> list[list[int]]:
    """Consecutive places, together of so many rows at most where one alone is not of more."""
    groups: list[list[int]] = []
    room = 0
    for place, size in enumerate(sizes):
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(place)
        room -= size
    return groups


def _unfit(i: int, wanted: list[str], missing: np.ndarray) -> ValueError:
    twice = len(wanted) - len(set(wanted))
    if twice:
        return ValueError(
            f"coreset {i} names {twice} of {len(wanted)} images twice: keep each once"
        )
    return ValueError(
        f"{len(missing)} of {len(wanted)} images of coreset {i} are not in the pool (uid "
        f"{wanted[missing[0]]!r} first): measure it against the pool that it was selected from"
    )


@ray.remote(num_cpus=1)
def _keep(
    source: Source, block: list[Part], coresets: list[pa.ChunkedArray]
) -> tuple[Kept, list[np.ndarray]]:
    """The rows of these parts that any coreset names; of each coreset the places in its list of
    those found, and last the numbers of all."""
    union = pa.chunked_array([c for wanted in coresets for c in wanted.chunks], pa.string())
    uids, units, numbers = [], [], []
    for name, first in block:
        uid, unit = source.read(name)
        here = _places(uid, union) >= 0
        uids.append(uid.filter(pa.array(here)))
        units.append(unit[here])
        numbers.append(first + np.flatnonzero(here))
    uid = pa.chunked_array([c for some in uids for c in some.chunks], pa.string())
    places = [_places(uid, wanted) for wanted in coresets]
    number = np.concatenate(numbers)
    kept = Kept(number, np.concatenate(units), np.stack(places) >= 0)
    return kept, [*(p[p >= 0] for p in places), number]


def _places(uid: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Of each uid the first place in a list, -1 where it is not in it."""
    found: pa.ChunkedArray = pc.index_in(uid, value_set=among)  # type: ignore[attr-defined]
    return found.fill_null(-1).to_numpy()


@ray.remote(num_cpus=1)
def _pack(*some: Kept) -> Kept:
    return Kept(
        np.concatenate([kept.number for kept in some]),
        np.concatenate([kept.unit for kept in some]),
        np.concatenate([kept.member for kept in some], axis=1),
    )
