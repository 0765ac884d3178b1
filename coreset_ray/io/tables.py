"""The tables of a workspace: their columns, and parts that count only when committed.

One part and one commit record for each shard of the pool. A part is named after its shard and
what the shard was when it was read, so a shard that changes gets a new part and no finished
part is ever written again.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coreset_ray.io.filesystem import Location
from coreset_ray.io.shards import Shard

QUARANTINE = pa.schema([("shard", pa.string()), ("key", pa.string()), ("reason", pa.string())])

MANIFEST = pa.schema(
    [
        ("uid", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("rank", pa.int64()),
        ("score", pa.float64()),
        ("weight", pa.float64()),
        ("reason", pa.string()),
    ]
)


def embedding_schema(width: int, dtype: str) -> pa.Schema:
    """Columns of an embedding part. width: m; dtype: float32 or float16."""
    value = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    return pa.schema(
        [
            ("uid", pa.string()),
            ("shard", pa.string()),
            ("key", pa.string()),
            ("sha256", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("embedding", pa.list_(value, width)),
        ]
    )


def uid_of(shard: str, key: str) -> str:
    """The identity of an image: a 128-bit BLAKE2b hash of shard name and key, 32 hex digits."""
    return hashlib.blake2b(f"{shard}\0{key}".encode(), digest_size=16).hexdigest()


def uid_words(uid: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uid strings → (n, 2) uint64, whose order is the order of the strings."""
    joined = bytes.fromhex("".join(uid.to_pylist()))
    return np.frombuffer(joined, ">u8").reshape(-1, 2).astype(np.uint64)


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed_size_list column → (n, m) float32."""
    width = column.type.list_size
    chunks = [c.flatten().to_numpy(zero_copy_only=False) for c in column.chunks]
    flat = np.concatenate(chunks) if chunks else np.empty(0, np.float32)
    return flat.reshape(-1, width).astype(np.float32, copy=False)


def array_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers or truths → (n,), one of fixed_size_list → (n, width), as it is."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    flat = pa.chunked_array([c.flatten() for c in column.chunks], column.type.value_type)
    return flat.to_numpy().reshape(-1, column.type.list_size)


def list_column(values: np.ndarray) -> pa.FixedSizeListArray:
    """(n, width) → a column of fixed_size_list[width], which `array_of` reads back."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def write_table(location: Location, table: pa.Table) -> None:
    """The table as a Parquet file that is whole or absent."""
    with location.replacing() as sink:
        pq.write_table(table, sink, compression="zstd")


def write_manifest(
    location: Location, identity: pa.Table, score: np.ndarray, weight: np.ndarray, reason: str
) -> None:
    """The manifest of images in the order of their rank. identity: uid, shard and key of each;
    score, weight: (k,) float64."""
    table = identity.select(["uid", "shard", "key"])
    table = table.append_column("rank", pa.array(np.arange(len(score))))
    table = table.append_column("score", pa.array(score))
    table = table.append_column("weight", pa.array(weight))
    reasons = pa.array([reason] * len(score), pa.string())
    write_table(location, table.append_column("reason", reasons).cast(MANIFEST))


def read_table(location: Location, columns: Sequence[str] | None = None) -> pa.Table:
    """The named columns of a Parquet file."""
    with location.told(), location.open_file() as source:
        return pq.read_table(source, columns=list(columns) if columns is not None else None)


def read_blocks(location: Location, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
    """The same, in blocks of consecutive rows that take about so many bytes, one at a time in
    memory."""
    with location.told(), location.open_file() as source:
        file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
        sizes = file.metadata.row_group(0) if file.num_row_groups else None
        each = max(1, sizes.total_byte_size // max(1, sizes.num_rows)) if sizes else 1
        for batch in file.iter_batches(max(1, size // each), columns=list(columns)):
            yield pa.Table.from_batches([batch])


@dataclass(frozen=True)
class Commit:
    """What one committed part holds.

    repeated: samples refused because their key had been seen in the shard; content: hash of its
    rows, empty where it has none; fault: why the shard could not be read to its end, or empty;
    precision: what the encoder ran in.
    """

    shard: str
    part: str
    rows: int
    quarantined: int
    repeated: int
    fault: str
    content: str
    precision: str


class PartedTable:
    """A folder of parts: parts/NAME.parquet + NAME.done.json, quarantine/NAME.parquet."""

    def __init__(self, folder: Location):
        self.folder = folder

    def part(self, name: str) -> Location:
        return self.folder / "parts" / f"{name}.parquet"

    def quarantine(self, name: str) -> Location:
        return self.folder / "quarantine" / f"{name}.parquet"

    def commit(self, record: Commit, rows: pa.Table | None, quarantine: pa.Table) -> None:
        """Writes a part (none for a shard without images); the record comes last and makes it
        count."""
        if quarantine.num_rows:
            write_table(self.quarantine(record.part), quarantine)
        if rows is not None:
            write_table(self.part(record.part), rows)
        self._record(record.part).write_json(asdict(record))

    def committed(self, shards: Iterable[Shard]) -> dict[str, Commit]:
        """The commit record of each shard that has one, by the shard's name."""
        present = {info.base_name for info in (self.folder / "parts").listing() if info.size}
        names = {s.name: part_name(s) for s in shards}
        found = {n: self._record(p) for n, p in names.items() if f"{p}.done.json" in present}
        with ThreadPoolExecutor(16) as pool:  # in an object store each read is a round trip
            records = pool.map(Location.read_json, found.values())
            return {name: Commit(**record) for name, record in zip(found, records, strict=True)}

    def holds(self, name: str) -> bool:
        """Whether the part of this name is committed."""
        return self._record(name).exists()

    def _record(self, name: str) -> Location:
        return self.folder / "parts" / f"{name}.done.json"


def part_name(shard: Shard) -> str:
    """The file name of a shard's part: its own name made safe, and a hash of name, size, mtime."""
    mark = hashlib.blake2b(
        f"{shard.name}\0{shard.size}\0{shard.mtime_ns}".encode(), digest_size=6
    ).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", shard.name.removesuffix(".tar")).strip("_")
    return f"{stem[:80]}-{mark}"


def content_hash(rows: pa.Table) -> str:
    """32 hex digits over the identity, the image hash and the embedding of every row, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("uid", "sha256"):
        digest.update("".join(rows[name].to_pylist()).encode())
    digest.update(np.ascontiguousarray(matrix(rows["embedding"])).tobytes())
    return digest.hexdigest()
