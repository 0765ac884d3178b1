"""BlindCS: rewards what covers the embedding space, penalises what its neighbours cover."""

import math
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_type_hints

import numpy as np

from coreset_ray.core import batched
from coreset_ray.core.cells import cover_and_penalise_slices
from coreset_ray.core.columns import Columns, Index, numbers
from coreset_ray.core.draws import cover_and_penalise, lottery
from coreset_ray.core.exchange import nearest_here, radii, settle, share_here, within_here
from coreset_ray.core.method import Sampled
from coreset_ray.core.random import GOLDEN, draw_words, uid_uniform
from coreset_ray.core.slices import Sampling, draw_slices, near_order, spread_points

_UNIT = 2**32  # redundancy is counted in units of 2⁻³²: sums are exact in any order
_MOST_DRAWS = 2**31 - 1  # one row may collect a whole unit a draw, and the sum stays below 2⁶³
_MOST_POINTS = 2**52  # coverage counts points, and is divided without rounding
_INDEXED = 16  # draws in a slice that are worth an index of it
_EXCHANGED = 1024  # draws that shards of rows settle at once
_NO_KEY = np.uint64(2**64 - 1)
_FAR = 1e38
_NUMBERS = 1 << 18  # random numbers made at once, at most about so many


class _Draws(NamedTuple):
    """dims (t, d), points (t, q, d), words (t, q) for covering at random, group (t,): the number
    of the slice."""

    dims: np.ndarray
    points: np.ndarray
    words: np.ndarray
    group: np.ndarray

    @property
    def half(self) -> np.ndarray:
        """(t,) 0 or 1."""
        return self.group % 2

    def at(self, rows: np.ndarray) -> "_Draws":
        """These of the draws, in this order."""
        return _Draws(*(array[rows] for array in self))

    def point(self, number: int) -> "_Draws":
        """The same draws with that one of their points."""
        one = slice(number, number + 1)
        return self._replace(points=self.points[:, one], words=self.words[:, one])


class _Cover(NamedTuple):
    """Which row covers in each draw: key (t,) uint64, the smallest wins; uid (t, 2), the smallest
    wins among equals; places (t, d), its coordinates."""

    keys: np.ndarray
    uid: np.ndarray
    places: np.ndarray


class _Near(NamedTuple):
    """Distances (q,) of rows that may be neighbours; draw t's from starts[t] to starts[t + 1]."""

    starts: np.ndarray
    distances: np.ndarray
    neighbors: int


@dataclass(frozen=True)
class BlindCS(Sampled):
    """Keeps images that often lie nearest to random points of the embedding space, and seldom
    beside another that does.

    Equation: each draw takes `dims` distinct dimensions (Eq. 4), a point of the product of
    triangular distributions (min, median, max) over them (Eq. 3), the image k nearest to it in
    L1 (Eq. 5), adds 1 to k's score (Eq. 6), and takes 1 in all from the `neighbors` images
    nearest to k, shared in proportion to distance^-exponent (Eq. 7, 8). Score = sum (Eq. 9).
    Source: Blind Coreset Selection, §5. Cost: O(t·n) time, O(n·m) memory.
    Differs: randomness is a function of (seed, draw); constant dimensions are never drawn;
    equal distances to the point go to the smallest uid, and images that tie at the distance of
    the last neighbour all count as neighbours, so row order never matters; where images coincide
    with k in a slice, they share the whole penalty evenly (the limit of Eq. 7).

    sampling, cover, redundancy: the ablations of the paper's Table 5. cover: `nearest`, or
    `random` for an image drawn uniformly whatever the point. draws_per_slice: draws that share
    their dimensions, their points spread evenly. points_per_draw: points of a draw, each of which
    counts its part in coverage; the first alone gives redundancy, which is what costs. Both are
    1 in the paper. Expectations do not depend on them; more of both gives steadier scores in the
    same time.
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    family: ClassVar[str] = "coverage"
    source: ClassVar[str] = "Blind Coreset Selection (BlindCS, later ZCore), Eq. 3-10"
    channels: ClassVar[int] = 2
    cost: ClassVar[str] = "O(t·n) time, O(n·m) memory"

    draws: int = 1_000_000
    dims: int = 2
    neighbors: int = 1000
    exponent: float = 4.0
    tie_break: Literal["uniform", "none"] = "uniform"
    sampling: Sampling = "triangular"
    cover: Literal["nearest", "random"] = "nearest"
    redundancy: bool = True
    draws_per_slice: int = 1
    points_per_draw: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= _MOST_DRAWS:
            raise ValueError(f"draws={self.draws}: expected 1 to {_MOST_DRAWS}")
        if self.dims < 1:
            raise ValueError(f"dims={self.dims}: expected at least 1")
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise ValueError(f"exponent={self.exponent}: expected a finite number ≥ 0")
        for name in ("draws_per_slice", "points_per_draw"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.draws * self.points_per_draw > _MOST_POINTS:
            raise ValueError(
                f"draws={self.draws} of points_per_draw={self.points_per_draw}: "
                f"expected at most {_MOST_POINTS} points"
            )
        for name in ("tie_break", "sampling", "cover"):
            allowed = get_args(get_type_hints(BlindCS)[name])
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}"
                )

    def check(self, columns: Columns) -> None:
        live, constant = len(columns.spread.live), len(columns.spread.constant)
        if live == 0:
            warnings.warn(
                f"all {columns.index.rows} images have one and the same embedding: "
                "every score is 0",
                stacklevel=2,
            )
        elif live < self.dims:
            raise ValueError(
                f"dims={self.dims}: only {live} of the {live + constant} embedding "
                f"dimensions vary over the pool; set dims to at most {live}"
            )

    def draw_bytes(self, rows: int) -> float:
        """One byte of each row in each of its dimensions, once for all draws of a slice."""
        return rows * self.dims / self.draws_per_slice

    def tally(self, columns: Columns, seed: int, first: int, last: int, total: np.ndarray) -> None:
        """total: for even and for odd slices, coverage in points and redundancy in 2⁻³²."""
        size = _NUMBERS // (self.dims * self.points_per_draw)
        for draws in self._batches(columns, seed, first, last, size):
            indexed = self.dims == 2 and self.draws_per_slice >= _INDEXED
            if indexed and self.cover == "nearest" and columns.resident is None:
                self._tally_slices(columns, draws, total)
                continue
            for number in range(self.points_per_draw):
                neighbors = self._neighbors(columns) if number == 0 else 0
                self._tally_each(columns, draws.point(number), neighbors, total)

    def _tally_each(
        self, columns: Columns, draws: "_Draws", neighbors: int, total: np.ndarray
    ) -> None:
        """Adds draws of one point."""
        covered = np.full(len(draws.dims), -1)
        if self.cover == "random":
            words = draws.words[:, 0].copy()
            lottery(columns.index.uid, words, covered, np.empty_like(words))
        order = near_order(draws.dims)
        for side in (0, 1):
            rows = order[draws.half[order] == side]
            kernel: Any = cover_and_penalise
            held: Any = columns.index
            if columns.resident is not None:
                kernel, held = batched.cover_and_penalise, columns.resident
            kernel(
                held,
                *(draws.dims[rows], draws.points[rows, 0], covered[rows]),
                *(neighbors, float(self.exponent), _UNIT, total[side]),
            )

    def _tally_slices(self, columns: Columns, draws: "_Draws", total: np.ndarray) -> None:
        """Adds draws by an index of each slice."""
        for side in (0, 1):
            rows = np.flatnonzero(draws.half == side)
            lead = np.flatnonzero(np.diff(draws.group[rows], prepend=-1))
            cover_and_penalise_slices(
                columns.index,
                *(draws.dims[rows[lead]], draws.points[rows], np.append(lead, len(rows))),
                *(self._neighbors(columns), float(self.exponent), _UNIT, total[side]),
            )

    def tally_shard(
        self, columns: Columns, seed: int, first: int, last: int, total: np.ndarray
    ) -> Generator[Any, Any, None]:
        for batch in self._batches(columns, seed, first, last, _EXCHANGED):
            draws = batch.at(near_order(batch.dims))
            for number in range(self.points_per_draw):
                one = draws.point(number)
                rows, message = self._cover_here(columns, one)
                agreed = yield message
                owned = (rows >= 0) & (agreed.uid == message.uid).all(axis=1)
                for side in (0, 1):
                    here = rows[owned & (draws.half == side)]
                    np.add.at(total[side, 0], here, 1)
                if number == 0 and (neighbors := self._neighbors(columns)):
                    covered = np.where(owned, rows, -1)
                    yield from self._penalise_here(
                        columns.index, one, covered, agreed.places, neighbors, total
                    )

    def agree(self, messages: list[Any]) -> Any:
        if isinstance(messages[0], _Cover):
            keys, uid, places = (np.stack(parts) for parts in zip(*messages, strict=True))
            best = np.lexsort((uid[..., 1], uid[..., 0], keys), axis=0)[0]
            draws = np.arange(len(best))
            return _Cover(keys[best, draws], uid[best, draws], places[best, draws])
        neighbors = messages[0].neighbors
        starts = np.stack([message.starts for message in messages])
        distances = np.concatenate([message.distances for message in messages])
        first = np.cumsum([0] + [len(message.distances) for message in messages[:-1]])
        cut, closest, scale = np.empty((3, starts.shape[1] - 1))
        settle(
            *(starts, distances, first, neighbors, float(self.exponent), _UNIT),
            *(cut, closest, scale),
        )
        return cut, closest, scale

    def columns(self, total: np.ndarray) -> dict[str, np.ndarray]:
        coverage, redundancy = total
        q = self.points_per_draw
        score = (coverage * _UNIT - redundancy) / _UNIT
        if q > 1:  # more points than fit when counted in 1/unit
            score = coverage / q - redundancy / _UNIT
        return {"score": score, "coverage": coverage / q, "redundancy": redundancy / _UNIT}

    def rank_key(self, score: np.ndarray, uid: np.ndarray, seed: int) -> np.ndarray:
        """The authors' code starts every score at U(0, 1); here a function of (seed, uid)."""
        return score if self.tie_break == "none" else score + uid_uniform(seed, uid, use=1)

    def weight(self, score: np.ndarray, low: float, high: float) -> np.ndarray:
        """Eq. 10, read as (s - min) / (max - min); 1 where all scores are equal."""
        return (score - low) / (high - low) if high > low else np.ones(len(score))

    def facts(self, columns: Columns) -> dict[str, Any]:
        spread = columns.spread
        return {
            "dimensions": len(spread.low),
            "constant_dimensions_dropped": spread.constant.tolist(),
            "neighbors_used": self._neighbors(columns),
        }

    def _batches(
        self, columns: Columns, seed: int, first: int, last: int, size: int
    ) -> Iterator["_Draws"]:
        if len(columns.spread.live) == 0:
            return
        for start in range(first, last, max(1, size)):
            count = min(max(1, size), last - start)
            dims = draw_slices(columns.spread, seed, start, count, self.dims, self.draws_per_slice)
            yield _Draws(
                dims,
                spread_points(
                    *(columns.spread, self.sampling, seed, start, dims),
                    *(self.draws_per_slice, self.points_per_draw),
                ),
                self._words(seed, start, count),
                np.arange(start, start + count) // self.draws_per_slice,
            )

    def _words(self, seed: int, first: int, count: int) -> np.ndarray:
        """(t, q) words of the lottery, where there is one."""
        if self.cover == "nearest":
            return np.zeros((count, self.points_per_draw), np.uint64)
        words = draw_words(seed, first, count, 2 * self.dims)[:, -1:]
        return words + np.arange(self.points_per_draw, dtype=np.uint64) * GOLDEN

    def _cover_here(self, columns: Columns, draws: "_Draws") -> tuple[np.ndarray, "_Cover"]:
        """The row of this shard that would cover, -1 for none, and the message about it."""
        index, count = columns.index, len(draws.dims)
        rows, keys = np.full(count, -1), np.full(count, _NO_KEY)
        places = np.zeros(draws.dims.shape)
        if self.cover == "random":
            lottery(index.uid, draws.words[:, 0].copy(), rows, keys)
            places = numbers(index)[draws.dims, rows[:, None]].astype(np.float64)
        else:
            nearest_here(index, draws.dims, draws.points[:, 0].copy(), rows, keys, places)
        uid = np.where(rows[:, None] >= 0, index.uid[rows], _NO_KEY)
        return rows, _Cover(keys, uid, places)

    def _penalise_here(
        self,
        index: Index,
        draws: "_Draws",
        covered: np.ndarray,
        places: np.ndarray,
        neighbors: int,
        total: np.ndarray,
    ) -> Generator[Any, Any, None]:
        radius = np.empty(len(covered))
        radii(index, draws.dims, places, neighbors, radius)
        left = np.arange(len(covered))
        while len(left):
            starts, rows, distances = within_here(
                index, draws.dims[left], places[left], covered[left], radius[left]
            )
            cut, closest, scale = yield _Near(starts, distances, neighbors)
            for side in (0, 1):
                here = np.where(draws.half[left] == side, cut, np.nan)
                share_here(
                    *(starts, rows, distances, here, closest, scale),
                    *(float(self.exponent), _UNIT, total[side, 1]),
                )
            left = left[np.isnan(cut)]
            wider = radius[left] * 1.5
            radius[left] = np.where((wider > 0) & (wider < _FAR), wider, np.inf)

    def _neighbors(self, columns: Columns) -> int:
        return min(self.neighbors, columns.index.rows - 1) if self.redundancy else 0
