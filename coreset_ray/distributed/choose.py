"""Finds the best rows of a scored pool where they lie, and writes the manifest of what is kept.

A row's place in the ranking is three words: its key, turned round so that the highest comes
first, and the two halves of its uid, which settle equal keys. The last place that is kept is found
by counting, word by word, so nothing but the kept rows themselves comes together anywhere.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core.method import Scorer
from coreset_ray.core.ranks import RankSearch, count_digits, ordered_bits
from coreset_ray.distributed.session import cluster
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import MANIFEST, read_table, uid_words, write_table

_PARTS_EACH = 8  # fewer are not worth a process of their own
_WORDS = 3
_KEPT = pa.schema([MANIFEST.field(name) for name in ("uid", "shard", "key", "score")])


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
    count = processes_for(len(uris), cluster().cpus)
    actors: list[Any] = [Places.remote(method, seed, uris[i::count]) for i in range(count)]
    try:
        k = min(k, sum(ray.get([a.rows.remote() for a in actors])))
        last = last_kept(actors, k)
        kept = [a.kept.remote(last) for a in actors]
        ray.get(_write.remote(method, span, k, manifest.uri, *kept))
    finally:
        for actor in actors:
            ray.kill(actor)


def processes_for(parts: int, cpus: float) -> int:
    """Processes that share the ranking of so many score parts."""
    return max(1, min(int(cpus), parts // _PARTS_EACH))


def last_kept(actors: Sequence[Any], k: int) -> np.ndarray:
    """The k-th best place of all, (3,) uint64; before any row's where k is 0.

    The driver holds counts of digits, whose number does not depend on the pool.
    """
    found, left = np.empty(0, np.uint64), np.array([[k - 1]])
    for _ in range(_WORDS):
        search = RankSearch(left, np.uint64)
        while not search.done:
            counts = [a.digits.remote(found, *search.question()) for a in actors]
            search.answer(reduce(np.add, map(ray.get, counts)))
        found = np.append(found, search.found[0])
        left = search.left  # the rank among the rows that agree so far
    return found


@ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3, scheduling_strategy="SPREAD")
class Places:
    """The places of the rows of some score parts. Started again elsewhere, it reads them again."""

    def __init__(self, method: Scorer, seed: int, scores: list[str]):
        self.method, self.seed, self.scores = method, seed, scores
        self.read: tuple[np.ndarray, np.ndarray] | None = None

    def rows(self) -> int:
        return self._places()[0].shape[1]

    def digits(self, agreed: np.ndarray, found: np.ndarray, shift: int) -> np.ndarray:
        """(1, 1, 2^16) counts for a rank search in one word of the rows that agree in the words
        before it. agreed: (w,) those words; found: (1, 1)."""
        words, _ = self._places()
        tied = (words[: len(agreed)] == agreed[:, None]).all(axis=0)
        return count_digits(words[len(agreed)][tied], found[0], shift)[None]

    def kept(self, last: np.ndarray) -> tuple[np.ndarray, pa.Table]:
        """The rows up to this place, and their places, (3, rows)."""
        words, starts = self._places()
        keep = _up_to(words, last)
        tables = [
            read_table(locate(uri), _KEPT.names).select(_KEPT.names).filter(pa.array(here))
            for uri, here in zip(self.scores, np.split(keep, starts), strict=True)
            if here.any()
        ]
        return words[:, keep], pa.concat_tables([_KEPT.empty_table(), *tables])

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """(3, n) uint64 of all rows, and where each part but the first begins."""
        if self.read is None:
            parts = [
                _places_of(self.method, self.seed, read_table(locate(uri), ["uid", "score"]))
                for uri in self.scores
            ]
            starts = np.cumsum([part.shape[1] for part in parts])[:-1]
            self.read = np.concatenate(parts, axis=1), starts
        return self.read


@ray.remote(num_cpus=1)
def _write(
    method: Scorer,
    span: tuple[float, float],
    k: int,
    manifest: str,
    *kept: tuple[np.ndarray, pa.Table],
) -> None:
    """kept: the k best rows, with their places, in any order."""
    places = np.concatenate([words for words, _ in kept], axis=1)
    order = np.lexsort(places[::-1])[:k]
    rows = pa.concat_tables([table for _, table in kept]).take(order)
    score = rows["score"].to_numpy()
    table = rows.select(["uid", "shard", "key"])
    table = table.append_column("rank", pa.array(np.arange(len(score))))
    table = table.append_column("score", pa.array(score))
    table = table.append_column("weight", pa.array(method.weight(score, *span)))
    reason = pa.array(["top score"] * len(score), pa.string())
    write_table(locate(manifest), table.append_column("reason", reason).cast(MANIFEST))


def _places_of(method: Scorer, seed: int, rows: pa.Table) -> np.ndarray:
    """(3, rows) uint64 that order, word after word, as the ranking does."""
    uid = uid_words(rows["uid"])
    key = method.rank_key(rows["score"].to_numpy(), uid, seed)
    assert not np.isnan(key).any(), "a ranking key is NaN"
    return np.stack([~ordered_bits(key + 0.0), uid[:, 0], uid[:, 1]])  # + 0.0: -0.0 equals 0.0


def _up_to(words: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Which places, (3, n), come no later than the last, (3,): (n,) bool."""
    before, same = words < last[:, None], words == last[:, None]
    return before[0] | same[0] & (before[1] | same[1] & (before[2] | same[2]))
