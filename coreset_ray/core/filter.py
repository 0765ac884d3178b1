"""Filters: what is left out of a pool before a method chooses. Each looks at the whole pool by
itself, and an image is left out where any of them drops it."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from coreset_ray.core.method import Method
from coreset_ray.core.pool import Pool, in_uid_order


class Filter(Method):
    """Says of every row whether it is dropped."""

    seeded: ClassVar[bool] = False

    @abstractmethod
    def drop(self, pool: Pool, kept: np.ndarray) -> np.ndarray:
        """(n,) bool. pool: all rows in ascending order of uid, with the columns needed;
        `knn.neighbor` counts them. kept: (w,) int64, rows that are chosen already."""


def dropped_by(method: Filter, pool: Pool, kept: np.ndarray | None = None) -> np.ndarray:
    """Which rows the filter drops, (n,) bool, never one of those kept. pool: in any order; kept:
    (w,) row numbers."""
    view, _, place = in_uid_order(pool.restrict(method.needs), np.arange(len(pool)))
    own = np.empty(0, np.int64) if kept is None else place[kept]
    out = method.drop(view, own)
    out[own] = False
    return out[place[:-1]]


def left_out(filters: Sequence[Filter], pool: Pool, kept: np.ndarray | None = None) -> np.ndarray:
    """Which rows any of the filters drops, (n,) bool."""
    out = np.zeros(len(pool), bool)
    for method in filters:
        out |= dropped_by(method, pool, kept)
    return out


def farthest(distance: np.ndarray, count: int) -> np.ndarray:
    """The rows that lie farthest, (n,) bool; of equals the last. distance: (n,) float64."""
    out = np.zeros(len(distance), bool)
    out[np.argsort(distance, kind="stable")[len(distance) - count :]] = True
    return out


def check_left(k: int, left: int, images: int) -> None:
    """`ValueError` where more are asked for than the filters leave."""
    if k > left:
        raise ValueError(
            f"budget of {k}: the filters leave {left} of {images} images; lower the budget or what "
            "they drop"
        )
