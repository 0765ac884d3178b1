"""Partial sums of draws, committed as a run goes: what was drawn is never drawn again.

A record says which draws a set of files holds the sum of; it is written after them and makes
them count. A sum covers every row of the pool, in one file for each shard of its rows.
"""

import io
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from coreset_ray.io.filesystem import Location


@dataclass(frozen=True)
class Chunk:
    """Draws first … last - 1 and the checksum of their sum."""

    first: int
    last: int
    checksum: int


@dataclass(frozen=True)
class SumFile:
    """The sum over the rows of these parts, one after another."""

    name: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """The sum of some chunks of draws."""

    name: str
    chunks: tuple[Chunk, ...]
    files: tuple[SumFile, ...] = field(default=())

    @property
    def draws(self) -> int:
        return sum(chunk.last - chunk.first for chunk in self.chunks)


class Ledger:
    """The records of one method, seed and snapshot, for any number of draws."""

    def __init__(self, folder: Location):
        self.folder = folder

    def write_sum(self, name: str, total: np.ndarray) -> None:
        """total: (2, channels, n) int64."""
        with (self.folder / name).replacing() as sink:
            buffer = io.BytesIO()
            np.save(buffer, total, allow_pickle=False)
            sink.write(buffer.getbuffer())

    def read_sum(self, file: SumFile, wanted: Iterable[str]) -> dict[str, np.ndarray]:
        """The sum over the rows of each of these parts that the file holds."""
        place = self.folder / file.name
        with place.told(), place.open_file() as source:
            total = np.load(io.BytesIO(source.read()), allow_pickle=False)
        ends = np.cumsum(file.rows)
        places = dict(zip(file.parts, zip(ends - file.rows, ends, strict=True), strict=True))
        return {p: total[..., slice(*places[p])] for p in wanted if p in places}

    def commit(self, record: Record) -> None:
        (self.folder / f"{record.name}.json").write_json(asdict(record))

    def usable(self, draws: int) -> list[Record]:
        """Records that lie within the first `draws` draws and do not overlap, largest first."""
        taken: list[tuple[int, int]] = []
        chosen = []
        for record in sorted(self._records(), key=lambda r: (-r.draws, r.name)):
            spans = [(c.first, c.last) for c in record.chunks]
            inside = all(last <= draws for _, last in spans)
            apart = all(b <= x or y <= a for a, b in spans for x, y in taken)
            if inside and apart and record.chunks:
                chosen.append(record)
                taken += spans
        return chosen

    def forget(self, records: Sequence[Record]) -> None:
        """Removes records, and then their files."""
        for record in records:
            self._delete(f"{record.name}.json")
            self.sweep(record.files)

    def sweep(self, files: Iterable[SumFile]) -> None:
        """Removes files that no record names any longer."""
        for file in files:
            self._delete(file.name)

    def clean(self) -> None:
        """Removes what runs that were killed left behind: files that no record names."""
        named = {file.name for record in self._records() for file in record.files}
        for name in (info.base_name for info in self.folder.listing()):
            if name.endswith(".npy") and name not in named:
                self._delete(name)

    def _records(self) -> list[Record]:
        found = [n for n in self._names() if n.endswith(".json") and not n.startswith(".")]
        return [_record((self.folder / name).read_json()) for name in found]

    def _names(self) -> list[str]:
        return [info.base_name for info in self.folder.listing() if info.size]

    def _delete(self, name: str) -> None:
        (self.folder / name).delete()


def new_name() -> str:
    """A name that no other record has."""
    return uuid.uuid4().hex


def missing(chunks: Iterable[Chunk], first: int, last: int) -> list[tuple[int, int]]:
    """The parts of first … last that no chunk covers, ascending."""
    gaps, at = [], first
    for chunk in sorted(chunks, key=lambda c: c.first):
        if chunk.first > at:
            gaps.append((at, min(chunk.first, last)))
        at = max(at, chunk.last)
    return [gap for gap in [*gaps, (at, last)] if gap[0] < gap[1]]


def _record(data: dict[str, Any]) -> Record:
    files = tuple(SumFile(f["name"], tuple(f["parts"]), tuple(f["rows"])) for f in data["files"])
    return Record(data["name"], tuple(Chunk(**c) for c in data["chunks"]), files)
