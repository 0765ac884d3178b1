"""One of each group of rows that resemble one another."""

import heapq

import numba
import numpy as np

_STEPS = 2.0**29  # in a radian: π fits an int32
_SAME = 1 - 2.0**-20  # cosine of rows that are the same, whose lengths are rounded to float32


def angles(cosine: np.ndarray | float) -> np.ndarray:
    """Angles of rows with these cosines, int32 counts of 2⁻²⁹ radians, rounded up, so that sums of
    them are exact; 0 of rows that are the same."""
    angle = np.ceil(np.arccos(np.clip(np.float64(cosine), -1, 1)) * _STEPS)
    return np.where(np.float64(cosine) >= _SAME, 0, angle).astype(np.int32)


def repeats(
    one: np.ndarray, other: np.ndarray, angle: np.ndarray, limit: int, first: np.ndarray, n: int
) -> np.ndarray:
    """Rows within the limit of a row before them which stays, (n,) bool: decided from the first
    row on, so that a row stays where all that it resembles before it have gone. The rows of
    `first` come before all others and stay.

    one, other: (e,) int64, the two rows of each pair whose angle is known, (e,) int32, either way
    round. Rows that no pair names together are within the limit where the angles of a path of pairs
    between them add up to no more, as their own angle cannot be larger.
    Time: of the pairs within the limit of rows that stay.
    """
    start = np.concatenate([one, other]).astype(np.int32)
    order = np.argsort(start, kind="stable")
    end = np.concatenate([other, one]).astype(np.int32)[order]
    ends = np.searchsorted(start[order], np.arange(n + 1))
    return _repeats(ends, end, np.concatenate([angle, angle])[order], limit, first, n)


@numba.njit(nogil=True, cache=True)
def _repeats(ends, end, angle, limit, first, n):
    gone, early = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    early[first] = True
    least = np.full(n, limit + 1, np.int64)  # angle to the row at hand
    for place in range(len(first) + n):
        row = first[place] if place < len(first) else place - len(first)
        if place >= len(first) and (gone[row] or early[row]):
            continue
        reached, near = [row], [(np.int64(0), np.int64(row))]
        least[row] = 0
        while len(near):
            far, at = heapq.heappop(near)
            if far > least[at]:
                continue
            for e in range(ends[at], ends[at + 1]):
                through = far + angle[e]
                if through <= limit and through < least[end[e]]:
                    if least[end[e]] > limit:
                        reached.append(np.int64(end[e]))
                    least[end[e]] = through
                    heapq.heappush(near, (through, np.int64(end[e])))
        for other in reached:
            least[other] = limit + 1
            if other != row and not early[other]:
                gone[other] = True
    return gone
