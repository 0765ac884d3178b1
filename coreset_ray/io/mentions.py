"""Where a workspace names images or parts: the search that a deletion starts from and is proved
by."""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from coreset_ray.io.filesystem import Location

_TEXT = (".json", ".jsonl", ".csv", ".md", ".svg", ".txt")
_UID = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_THREADS = 8


@dataclass(frozen=True)
class Wanted:
    """parts: names of embedding parts; uids: of images."""

    parts: frozenset[str]
    uids: frozenset[str]


@dataclass(frozen=True)
class Search:
    """files, rows: how many were looked through; found: mentions by the path of the file, below the
    folder."""

    files: int
    rows: int
    found: dict[str, int]


def search(folder: Location, wanted: Wanted) -> Search:
    """Every file below a folder that names one of these: a table by its column uid, a text by what
    stands in it, any file by its name."""
    infos = folder.listing(recursive=True)
    paths = [info.path for info in infos if info.type == pafs.FileType.File]
    values = pa.array(sorted(wanted.uids), pa.string())
    with ThreadPoolExecutor(_THREADS) as pool:
        told = pool.map(lambda path: _look(Location(folder.fs, path), wanted, values), paths)
        found = dict(zip((p[len(folder.path) + 1 :] for p in paths), told, strict=True))
    mentions = {path: count for path, (count, _) in sorted(found.items()) if count}
    return Search(len(paths), sum(rows for _, rows in found.values()), mentions)


def _look(file: Location, wanted: Wanted, values: pa.Array) -> tuple[int, int]:
    """Mentions, and rows of a table."""
    name = file.path.rsplit("/", 1)[1]
    count, rows = int(any(part in file.path for part in wanted.parts)), 0
    if name.endswith(".parquet"):
        more, rows = _in_table(file, values)
        count += more
    elif name.endswith(_TEXT):
        count += _in_text(file, wanted)
    return count, rows


def _in_table(file: Location, values: pa.Array) -> tuple[int, int]:
    with file.open_file() as source:
        table = pq.ParquetFile(source)
        if "uid" not in table.schema_arrow.names:
            return 0, table.metadata.num_rows
        count = 0
        for batch in table.iter_batches(1 << 20, columns=["uid"]):
            here: pa.Array = pc.is_in(batch["uid"], value_set=values)  # type: ignore[attr-defined]
            count += here.true_count
        return count, table.metadata.num_rows


def _in_text(file: Location, wanted: Wanted) -> int:
    with file.open_stream() as stream:
        text = stream.read()
    uids: Iterable[bytes] = _UID.findall(text)
    count = sum(uid.decode() in wanted.uids for uid in uids)
    return count + sum(part.encode() in text for part in wanted.parts)
