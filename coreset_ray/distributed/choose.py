"""Finds what a rule keeps of a scored pool where the rows lie, and writes the manifest.

A row's place in a ranking is three words: its key, turned round so that the highest comes first,
and the two halves of its uid, which settle equal keys. Places at given ranks are found by counting,
word by word, so nothing but the kept rows themselves comes together anywhere. There are two
rankings: by score, in each group, of which the rule is told the scores at its cuts; and by the
rule's own key, in each stratum of each group, of which the first are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from coreset_ray.core.alone import check_room
from coreset_ray.core.filter import check_left
from coreset_ray.core.method import Scorer
from coreset_ray.core.ranks import RankSearch, count_in_groups, ordered_bits, values_of
from coreset_ray.core.rule import Ranked, Rule, budgets, shares
from coreset_ray.distributed.blocks import check_present, without_dropped
from coreset_ray.distributed.session import cluster
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import MANIFEST, read_table, uid_words, write_manifest

_PARTS_EACH = 8  # fewer are not worth a process of their own
_WORDS = 3
_KEPT = pa.schema([MANIFEST.field(name) for name in ("uid", "shard", "key", "score")])


@dataclass(frozen=True)
class Ranking:
    """How rows are ranked and kept. groups: how many, where each row is of one."""

    method: Scorer
    rule: Rule
    seed: int
    groups: int = 1


@dataclass(frozen=True)
class Scored:
    """A part of a scored pool. scores: the score part; group: the part of a signal that says
    which group each row is of, and the column, or None for one group; filters: the parts that say
    which rows are left out."""

    scores: str
    group: tuple[str, str] | None = None
    filters: tuple[str, ...] = ()


def group_of(part: Scored, rows: int) -> np.ndarray:
    """Which group each of a part's rows is of, (rows,) int64; -1 where a filter leaves it out."""
    group = np.zeros(rows, np.int64)
    if part.group is not None:
        place, column = part.group
        group = read_table(locate(place), [column])[column].to_numpy().astype(np.int64)
        assert len(group) == rows, f"{place} is not of the same rows"
    return without_dropped(group, part.filters)


def choose_kept(
    ranking: Ranking,
    parts: Sequence[Scored],
    span: tuple[float, float],
    k: int,
    manifest: Location,
    kept: Sequence[str] = (),
) -> None:
    """Writes the manifest of the k rows that are kept, in the order of the rule's key.

    span: the pool's lowest and highest score (for the weights); kept: uids of images that are
    chosen already, and are not chosen again. Raises `ValueError` where the rule keeps fewer than
    k, filters leave fewer, or an image chosen already is not in the pool.
    """
    count = processes_for(len(parts), cluster().cpus)
    own = pa.array(kept, pa.string())
    if kept:
        own = ray.put(own)  # once for all of them
    actors: list[Any] = [Places.remote(ranking, parts[i::count], own) for i in range(count)]
    try:
        sizes = _sum([a.sizes.remote(None) for a in actors])
        if kept:
            check_present(kept, set().union(*ray.get([a.present.remote() for a in actors])))
            check_room(k, int(sizes.sum()), len(kept))
        if parts[0].filters:
            left = int(sizes.sum()) + len(kept)
            check_left(k, left, _sum([a.rows.remote() for a in actors]))
        k = min(k, int(sizes.sum()))
        share = budgets(ranking.rule, k, sizes)
        asked = [ranking.rule.cuts(int(n)) if n else None for n in sizes]
        width = max(len(cut) for cut in asked if cut is not None)
        ranks = np.array([cut or (-1,) * width for cut in asked], np.int64)
        cuts = np.empty((0, _WORDS, len(sizes)), np.uint64)
        for column in ranks.reshape(len(sizes), width).T:
            cuts = np.append(cuts, places_at(actors, None, column)[None], axis=0)
        rooms = _sum([a.sizes.remote(cuts) for a in actors]).reshape(len(sizes), -1)
        quota = np.concatenate([shares(int(s), r) for s, r in zip(share, rooms, strict=True)])
        last = places_at(actors, cuts, quota - 1)
        found = [a.kept.remote(cuts, last) for a in actors]
        ray.get(_write.remote(ranking, span, k, manifest.uri, *found))
    finally:
        for actor in actors:
            ray.kill(actor)


def processes_for(parts: int, cpus: float) -> int:
    """Processes that share the ranking of so many score parts."""
    return max(1, min(int(cpus), parts // _PARTS_EACH))


def places_at(actors: Sequence[Any], cuts: np.ndarray | None, ranks: np.ndarray) -> np.ndarray:
    """The places at these ranks, from 0, of each of c collections: (3, c) uint64; before any
    row's where the rank is -1. cuts: of the rule's ranking, None for that by score.

    The driver holds counts of digits, whose number does not depend on the pool.
    """
    found, left = np.empty((0, len(ranks)), np.uint64), ranks[:, None]
    for _ in range(_WORDS):
        search = RankSearch(left, np.uint64, 16 if len(ranks) == 1 else 8)
        while not search.done:
            prefix, shift = search.question()
            asked = cuts, found, prefix[:, 0], shift, search.digit
            search.answer(_sum([a.digits.remote(*asked) for a in actors])[:, None])
        found = np.append(found, search.found.T, axis=0)
        left = search.left  # the rank among the rows that agree so far
    return found


def _sum(answers: list[ray.ObjectRef]) -> Any:
    return reduce(np.add, map(ray.get, answers))


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3, scheduling_strategy="SPREAD")
class Places:
    """The places of the rows of some score parts. Started again elsewhere, it reads them again.
    own: uids of images that are chosen already.

    cuts, in every call: (r, 3, groups) uint64, the places in the ranking by score that the rule
    asked for; None for that ranking itself.
    """

    def __init__(self, ranking: Ranking, parts: list[Scored], own: pa.Array):
        self.ranking, self.parts, self.own = ranking, parts, own
        self.here: set[str] = set()  # of those, the ones in these parts
        self.read: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.ruled: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def rows(self) -> int:
        """Of the parts, with those that are left out."""
        return len(self._places(None)[1])

    def present(self) -> set[str]:
        """Of the images that are chosen already, those in these parts."""
        self._places(None)
        return self.here

    def sizes(self, cuts: np.ndarray | None) -> np.ndarray:
        """Rows of each collection, (c,) int64: the groups, or the strata of each group."""
        _, where = self._places(cuts)
        strata = 1 if cuts is None else self.ranking.rule.divisions
        return np.bincount(where[where >= 0], minlength=self.ranking.groups * strata)

    def digits(
        self,
        cuts: np.ndarray | None,
        agreed: np.ndarray,
        found: np.ndarray,
        shift: int,
        digit: int,
    ) -> np.ndarray:
        """(c, 2^digit) counts for a rank search in one word of the rows that agree in the words
        before it. agreed: (w, c) those words; found: (c,)."""
        words, where = self._places(cuts)
        tied = (words[: len(agreed)] == agreed[:, where]).all(axis=0)
        return count_in_groups(words[len(agreed)], np.where(tied, where, -1), found, shift, digit)

    def kept(self, cuts: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, pa.Table]:
        """The rows up to the last place of their collection, (3, c), and their places."""
        words, where = self._places(cuts)
        keep = (where >= 0) & ~_before(last[:, where], words)
        assert self.read is not None
        tables = [
            read_table(locate(part.scores), _KEPT.names).select(_KEPT.names).filter(pa.array(here))
            for part, here in zip(self.parts, np.split(keep, self.read[2]), strict=True)
            if here.any()
        ]
        return words[:, keep], pa.concat_tables([_KEPT.empty_table(), *tables])

    def _places(self, cuts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(3, n) uint64 of all rows, and the collection each belongs to, (n,) int64."""
        if self.read is None:
            read = [self._read(part) for part in self.parts]
            starts = np.cumsum([len(group) for _, group in read])[:-1]
            places, groups = zip(*read, strict=True)
            self.read = np.concatenate(places, axis=1), np.concatenate(groups), starts
        words, group, _ = self.read
        if cuts is None:
            return words, group
        if self.ruled is None or not np.array_equal(self.ruled[0], cuts):
            self.ruled = cuts, *self._by_rule(words, group, cuts)
        return self.ruled[1:]

    def _by_rule(
        self, words: np.ndarray, group: np.ndarray, cuts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rule, at = self.ranking.rule, cuts[:, :, group]
        past = np.array([~_before(words, cut) for cut in at]).reshape(len(at), len(group))
        rows = Ranked(values_of(~words[0]), words[1:].T, values_of(~at[:, 0]), past)
        key, stratum = rule.key(rows, self.ranking.seed), rule.assign(rows)
        away = (stratum < 0) | (group < 0)
        where = np.where(away, -1, group * rule.divisions + stratum)
        return np.stack([_descending(key), *words[1:]]), where

    def _read(self, part: Scored) -> tuple[np.ndarray, np.ndarray]:
        """The places of a part's rows in the ranking by score, and their groups."""
        rows = read_table(locate(part.scores), ["uid", "score"])
        uid = uid_words(rows["uid"])
        key = self.ranking.method.rank_key(rows["score"].to_numpy(), uid, self.ranking.seed)
        group = group_of(part, len(uid))
        if len(self.own):
            chosen: pa.ChunkedArray = pc.is_in(rows["uid"], value_set=self.own)  # type: ignore[attr-defined]
            self.here.update(rows["uid"].filter(chosen).to_pylist())
            group = np.where(chosen.to_numpy(), -1, group)
        return np.stack([_descending(key), uid[:, 0], uid[:, 1]]), group


@ray.remote(num_cpus=1)
def _write(
    ranking: Ranking,
    span: tuple[float, float],
    k: int,
    manifest: str,
    *kept: tuple[np.ndarray, pa.Table],
) -> None:
    """kept: the rows that are kept, with their places, in any order."""
    places = np.concatenate([words for words, _ in kept], axis=1)
    order = np.lexsort(places[::-1])
    assert len(order) == k, f"{len(order)} rows kept of {k}"
    rows = pa.concat_tables([table for _, table in kept]).take(order)
    score = rows["score"].to_numpy()
    weight = ranking.method.weight(score, *span)
    write_manifest(locate(manifest), rows, score, weight, ranking.rule.reason)


def _descending(key: np.ndarray) -> np.ndarray:
    """Words that put the highest key first."""
    assert not np.isnan(key).any(), "a ranking key is NaN"
    return ~ordered_bits(key + 0.0)  # + 0.0: -0.0 equals 0.0


def _before(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Which places, (3, n) or (3, 1), come before which: (n,) bool."""
    less, same = left < right, left == right
    return less[0] | same[0] & (less[1] | same[1] & less[2])
