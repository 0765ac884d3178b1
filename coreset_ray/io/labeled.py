"""Lists of images by identity: a manifest, or a CSV file with columns shard,key."""

import pyarrow as pa
from pyarrow import csv

from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import read_table, uid_of

IDENTITY = pa.schema([("uid", pa.string()), ("shard", pa.string()), ("key", pa.string())])


def read_identities(path: str, setting: str) -> pa.Table:
    """uid, shard and key of every image that a file lists, each once, in its order.

    path: a .csv file, or a Parquet file such as manifest.parquet, with columns shard and key.
    Raises `ValueError`, with the setting that names the file, where it is missing, is neither or
    has other columns.
    """
    place = locate(path)
    if not place.exists():
        raise ValueError(
            f"{setting}={path!r} does not exist: give a manifest.parquet or a CSV file"
        )
    try:
        rows = _csv(path) if path.endswith(".csv") else read_table(place)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{setting}={path!r} is no table: {error}") from None
    if not {"shard", "key"} <= set(rows.column_names):
        raise ValueError(
            f"{setting}={path!r} has columns {rows.column_names}: expected shard and key"
        )
    pairs = zip(rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True)
    found = {uid_of(shard, key): (shard, key) for shard, key in pairs}
    shards, keys = zip(*found.values(), strict=True) if found else ((), ())
    return pa.table([list(found), list(shards), list(keys)], schema=IDENTITY)


def _csv(path: str) -> pa.Table:
    with locate(path).open_stream() as stream:
        text = csv.ConvertOptions(column_types={"shard": pa.string(), "key": pa.string()})
        return csv.read_csv(stream, convert_options=text)
