"""One part of an embedding table, whole, and checked."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coreset_ray.core.pool import check_finite
from coreset_ray.io.tables import PartedTable, matrix, read_table


def width_of(table: PartedTable, part: str) -> int:
    """m, by what the file says."""
    with table.part(part).open_file() as source:
        return pq.read_schema(source).field("embedding").type.list_size


def read_part(table: PartedTable, part: str, width: int) -> tuple[pa.ChunkedArray, np.ndarray]:
    """uid and embedding (n, m) float32. Raises `ValueError` that names the part where m is not
    `width`, or of a NaN or an infinite value."""
    rows = read_table(table.part(part), ["uid", "embedding"])
    embedding = matrix(rows["embedding"])
    if embedding.shape[1] != width:
        raise ValueError(
            f"part {part!r} holds embeddings of {embedding.shape[1]} dimensions, where the first "
            f"part has {width}: delete its two files in {table.folder.uri}/parts and embed again"
        )
    try:
        check_finite(embedding)
    except ValueError as error:
        raise ValueError(f"part {part!r}: {error}") from None
    return rows["uid"], embedding
