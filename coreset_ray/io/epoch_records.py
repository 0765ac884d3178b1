"""What workers record of the rows they train on, a file for each epoch and worker, and its pivot:
a row of the pool with all its epochs.

    records/epoch-00003/worker-1-of-4.parquet: `row` (1, 5, 9, … of the pool) and a column a metric
    part-NAME.parquet: `uid`, and each metric as fixed_size_list[epochs], rows in the part's order
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coreset_ray.io.filesystem import Location

_ROWS = 1 << 17  # of a row group: what is read to get at one row


def record_file(folder: Location, epoch: int, worker: int, workers: int) -> Location:
    """Where this worker's record of an epoch lies."""
    return folder / f"epoch-{epoch:05d}" / f"worker-{worker}-of-{workers}.parquet"


def write_record(file: Location, row: np.ndarray, metrics: Mapping[str, np.ndarray]) -> None:
    """row: (r,) int64 ascending; metrics: (r,) each."""
    with file.replacing() as sink:
        table = pa.table({"row": row, **metrics})
        pq.write_table(table, sink, compression="zstd", row_group_size=_ROWS)


def read_epochs(
    folder: Location, workers: Sequence[int], first: int, last: int, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Metrics of the pool's rows first … last - 1, each (last - first, epochs).

    workers: how many wrote each epoch. Only the row groups in question are read.
    """
    found: dict[str, np.ndarray] = {}
    seen = np.zeros((last - first, len(workers)), bool)
    for epoch, count in enumerate(workers):
        for worker in range(count):
            table = _slice(record_file(folder, epoch, worker, count), first, last, metrics)
            place = table["row"].to_numpy() - first
            seen[place, epoch] = True
            for name in metrics:
                values = table[name].to_numpy()
                into = found.setdefault(name, np.empty(seen.shape, values.dtype))
                into[place, epoch] = values
    assert seen.all(), "a row was recorded by no worker"
    return found


def _slice(file: Location, first: int, last: int, metrics: Sequence[str]) -> pa.Table:
    """The record's rows in this range, found by the row groups' own statistics."""
    with file.open_file() as source:
        reader = pq.ParquetFile(source)
        groups = []
        for i in range(reader.num_row_groups):
            bounds = reader.metadata.row_group(i).column(0).statistics
            if bounds.min < last and bounds.max >= first:
                groups.append(i)
        table = reader.read_row_groups(groups, columns=["row", *metrics])
    row = table["row"].to_numpy()
    start, end = np.searchsorted(row, [first, last])
    return table.slice(start, end - start)
