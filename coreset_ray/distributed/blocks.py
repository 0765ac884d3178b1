"""The rows of embedding parts with the columns that a method needs, of the table or of signals."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coreset_ray.core.pool import Pool
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable, array_of, matrix, read_table, uid_words


@dataclass(frozen=True)
class PoolFiles:
    """Where a pool's columns lie. table: the embedding table; signals: folder of each signal;
    filters: folders that say which rows are left out."""

    table: str
    signals: Mapping[str, str] = field(default_factory=dict)
    filters: tuple[str, ...] = ()

    def read(self, part: str, needs: Sequence[str]) -> Pool:
        """The rows of a part with these columns, and no other.

        Raises `ValueError` where a signal's part is not of the same rows.
        """
        own = [name for name in needs if "." not in name]
        rows = read_table(PartedTable(locate(self.table)).part(part), ["uid", *own])
        columns = {n: matrix(rows[n]) if n == "embedding" else array_of(rows[n]) for n in own}
        uid = uid_words(rows["uid"])
        for signal, names in signals_of(needs).items():
            place = locate(self.signals[signal]) / f"part-{part}.parquet"
            told = read_table(place, ["uid", *names])
            if not np.array_equal(uid_words(told["uid"]), uid):
                raise ValueError(
                    f"{place.uri} is not of the images in part {part!r}: delete that signal's "
                    "folder and run `coreset-ray signals` again"
                )
            columns |= {f"{signal}.{name}": array_of(told[name]) for name in names}
        return Pool(uid, {name: columns[name] for name in needs})

    def group_of(self, part: str, rows: int, column: str | None) -> np.ndarray:
        """Which group each of a part's rows is of, (rows,) int64: what the column says, 0 without
        one, and -1 where a filter leaves the row out."""
        group = np.zeros(rows, np.int64)
        if column is not None:
            group += self.read(part, (column,))[column]
        places = [f"{folder}/part-{part}.parquet" for folder in self.filters]
        return without_dropped(group, places)


def without_dropped(group: np.ndarray, places: Sequence[str]) -> np.ndarray:
    """The groups of a part's rows, -1 where one of these parts of filters drops the row."""
    for place in places:
        dropped = read_table(locate(place), ["dropped"])["dropped"].to_numpy()
        assert len(dropped) == len(group), f"{place} is not of the same rows"
        group = np.where(dropped, -1, group)
    return group


def check_present(kept: Sequence[str], present: Container[str]) -> None:
    """`ValueError` where an image to keep is not among those of the pool. kept: uids."""
    if absent := [uid for uid in kept if uid not in present]:
        raise ValueError(
            f"{len(absent)} of the {len(kept)} images to keep are not in the pool (uid "
            f"{absent[0]} first): take them out of the list, or add their shards to the pool"
        )


def signals_of(needs: Sequence[str]) -> dict[str, list[str]]:
    """The columns of each signal among these."""
    found: dict[str, list[str]] = {}
    for name in needs:
        signal, dot, column = name.partition(".")
        if dot:
            found.setdefault(signal, []).append(column)
    return found
