"""A filter over a pool's files: one task with all rows at hand, which writes what it drops."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core.filter import Filter, dropped_by
from coreset_ray.core.limits import check_filter
from coreset_ray.core.pool import joined
from coreset_ray.core.threads import one_thread
from coreset_ray.distributed.alone import row_bytes
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.session import cluster
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import PartedTable, read_table, write_table


def write_dropped(
    method: Filter,
    files: PoolFiles,
    parts: Mapping[str, int],
    folder: Location,
    kept: Sequence[str] = (),
) -> int:
    """Writes part-NAME.parquet for each part, with uid and dropped; how many rows are dropped.

    parts: rows of each, in the order that numbers rows; kept: uids of images that are chosen
    already, which stay. Raises `ValueError` where the rows fit no machine.
    """
    each = row_bytes(method.needs, files, next(iter(parts)))
    check_filter(method, sum(parts.values()), each, cluster().nodes)
    return ray.get(_drop.remote(method, files, list(parts), folder.uri, frozenset(kept)))


@ray.remote(num_cpus=1, max_retries=3)
def _drop(
    method: Filter, files: PoolFiles, parts: list[str], folder: str, kept: frozenset[str]
) -> int:
    one_thread()
    table = PartedTable(locate(files.table))
    uids = [read_table(table.part(part), ["uid"])["uid"] for part in parts]
    own = [u in kept for uid in uids for u in uid.to_pylist()] if kept else []
    pool = joined([files.read(part, method.needs) for part in parts])
    out = dropped_by(method, pool, np.flatnonzero(own))
    ends = np.cumsum([len(uid) for uid in uids])[:-1]
    for part, uid, dropped in zip(parts, uids, np.split(out, ends), strict=True):
        written = pa.table({"uid": uid, "dropped": pa.array(dropped)})
        write_table(locate(folder) / f"part-{part}.parquet", written)
    return int(out.sum())
