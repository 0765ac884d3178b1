"""A pool: rows with an identity, and the columns a method may see."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NEIGHBOR = "knn.neighbor"  # the column that names rows, by number
_UNBOUNDED = "proxy.perturbation"  # infinite of an image that none turns into another class


@dataclass(frozen=True)
class Pool:
    """n images as arrays.

    uid: (n, 2) uint64, the two halves of each image's 128-bit identity; no two rows alike.
    columns: name → array of n rows, e.g. `embedding` (n, m). Arrays are handed out read-only.
    """

    uid: np.ndarray
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.uid)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise KeyError(
                f"column {name!r} is not in this view of the pool, which holds "
                f"{sorted(self.columns)}: a method sees only the columns named in its `needs`"
            )
        view = self.columns[name].view()
        view.flags.writeable = False
        return view

    def restrict(self, needs: Iterable[str]) -> "Pool":
        """The same rows with only the columns named; `ValueError` when one is missing."""
        missing = [name for name in needs if name not in self.columns]
        if missing:
            raise ValueError(
                f"this method needs the column {missing[0]!r}, and the pool holds "
                f"{sorted(self.columns)}: make that table first or choose another method"
            )
        return Pool(self.uid, {name: self.columns[name] for name in needs})

    def take(self, rows: np.ndarray) -> "Pool":
        """The rows named, in that order. rows: (r,) integers or a slice."""
        return Pool(self.uid[rows], {name: c[rows] for name, c in self.columns.items()})


def joined(pools: Sequence[Pool]) -> Pool:
    """The rows of pools with the same columns, one after another."""
    names = pools[0].columns
    columns = {name: np.concatenate([pool.columns[name] for pool in pools]) for name in names}
    return Pool(np.concatenate([pool.uid for pool in pools]), columns)


def pool_of(
    embedding: np.ndarray,
    uid: np.ndarray | None = None,
    signals: Mapping[str, np.ndarray] | None = None,
) -> Pool:
    """A pool around an (n, m) array; without `uid`, a row's identity is its position.

    signals: further columns by name, each of n rows.
    """
    z = np.asarray(embedding)
    if z.ndim != 2 or z.shape[0] == 0 or z.shape[1] == 0:
        raise ValueError(f"embedding has shape {z.shape}: expected (n, m) with n ≥ 1 and m ≥ 1")
    if not np.issubdtype(z.dtype, np.floating):
        raise ValueError(f"embedding has dtype {z.dtype}: expected a floating-point array")
    check_finite(z)
    if uid is None:
        uid = np.stack([np.zeros(len(z), np.uint64), np.arange(len(z), dtype=np.uint64)], axis=1)
    uid = np.asarray(uid)
    if uid.shape != (len(z), 2) or uid.dtype != np.uint64:
        raise ValueError(
            f"uid has shape {uid.shape} and dtype {uid.dtype}: expected ({len(z)}, 2) uint64"
        )
    order = uid_order(uid)
    twice = np.flatnonzero((uid[order[1:]] == uid[order[:-1]]).all(axis=1))
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        raise ValueError(f"rows {first} and {second} have the same uid: each row needs its own")
    for name, column in (signals or {}).items():
        if len(column) != len(z):
            raise ValueError(
                f"signals[{name!r}] has {len(column)} rows: expected {len(z)}, one for each row of "
                "the embedding"
            )
        if np.issubdtype(column.dtype, np.floating):
            good = np.isfinite(column) | (column == np.inf if name == _UNBOUNDED else False)
            if not good.all():
                bad = np.flatnonzero(~good.reshape(len(z), -1).all(axis=1))[0]
                raise ValueError(
                    f"signals[{name!r}] row {bad} holds a NaN or infinite value: mend it"
                )
        if name == NEIGHBOR:
            _check_neighbor(column, len(z))
    return Pool(uid, {"embedding": z, **(signals or {})})


def _check_neighbor(column: np.ndarray, n: int) -> None:
    whole = column.ndim == 2 and np.issubdtype(column.dtype, np.integer)
    if not whole or column.min(initial=0) < -1 or column.max(initial=0) >= n:
        raise ValueError(
            f"signals[{NEIGHBOR!r}] has shape {column.shape} and dtype {column.dtype}: expected "
            f"(n, k) row numbers from 0 to {n - 1}, -1 where there is no neighbour"
        )


def check_finite(embedding: np.ndarray, first: int = 0) -> None:
    """`ValueError` that names the first row of an (n, m) embedding with a NaN, an infinity or a
    number beyond float32's range. first: the number of its first row."""
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(embedding.astype(np.float32, copy=False)).all(axis=1))
    if len(bad):
        raise ValueError(
            f"embedding row {first + bad[0]} holds a NaN or infinite value ({len(bad)} such rows): "
            "leave these rows out of the pool"
        )


def in_uid_order(pool: Pool, rows: np.ndarray) -> tuple[Pool, np.ndarray, np.ndarray]:
    """These rows of a pool by ascending uid; their numbers in it, in that order; and the place
    there of every row of the pool, (n + 1,) int64, -1 for one that is elsewhere and in the end.

    rows: (r,) integers. `knn.neighbor` then counts the rows at hand, -1 where it is none of them.
    """
    number = rows[uid_order(pool.uid[rows])]
    place = np.full(len(pool) + 1, -1, np.int64)  # so -1, for a neighbour elsewhere, stays -1
    place[number] = np.arange(len(number))
    view = pool.take(number)
    if NEIGHBOR in view.columns:
        view = Pool(view.uid, {**view.columns, NEIGHBOR: place[view.columns[NEIGHBOR]]})
    return view, number, place


def uid_order(uid: np.ndarray) -> np.ndarray:
    """Rows in ascending order of uid: the order that settles every tie. (n, 2) → (n,) int64."""
    return np.lexsort((uid[:, 1], uid[:, 0]))
