"""From records by epoch to parts by image: a task for about a million rows."""

import pyarrow as pa
import ray

from coreset_ray.distributed.progress import Progress
from coreset_ray.io.epoch_records import read_epochs
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import list_column, read_table, write_table
from coreset_ray.models.dynamics import METRICS

_BLOCK = 1 << 20  # rows of a task, at most,
_BYTES = 1 << 30  # and of their records in memory, where a part is not larger
_ROW = 4 * len(METRICS)  # bytes of an image in an epoch, at most
_UNDER_WAY = 256  # tasks submitted ahead

Part = tuple[str, int, int]  # its name, the number of its first row in the pool, its rows


def pivot(
    labels: Location, out: Location, placed: list[Part], writers: list[int], training: str
) -> None:
    """Writes the parts that are missing from the records of so many writers an epoch, then deletes
    these. training: where its checkpoints are, for a message."""
    left = [p for p in placed if not (out / f"part-{p[0]}.parquet").exists()]
    records = out / "records"
    if left and not records.exists():
        raise RuntimeError(
            f"{out.uri} lacks {len(left)} parts, and what they are made of was deleted once all "
            f"were there: delete {out.uri} and {training} to train again"
        )
    blocks = blocks_of(left, min(_BLOCK, _BYTES // (_ROW * len(writers))))
    with Progress("dynamics", len(placed), "parts") as progress:
        progress.update(done := len(placed) - len(left))
        pending: dict[ray.ObjectRef, int] = {}
        while blocks or pending:
            while blocks and len(pending) < _UNDER_WAY:
                block = blocks.pop(0)
                pending[_write.remote(labels.uri, out.uri, block, writers)] = len(block)
            ready, _ = ray.wait(list(pending))
            ray.get(ready)
            progress.update(done := done + sum(pending.pop(task) for task in ready))
    records.delete_folder()


@ray.remote(max_retries=3)
def _write(labels: str, out: str, parts: list[Part], writers: list[int]) -> None:
    """Consecutive parts of dynamics: a part larger than a block is read as a whole."""
    first, last = parts[0][1], parts[-1][1] + parts[-1][2]
    found = read_epochs(locate(out) / "records", writers, first, last, METRICS)
    for name, start, rows in parts:
        uid = read_table(locate(labels) / f"part-{name}.parquet", ["uid"])["uid"]
        own = slice(start - first, start - first + rows)
        columns = {metric: list_column(found[metric][own]) for metric in METRICS}
        write_table(locate(out) / f"part-{name}.parquet", pa.table({"uid": uid, **columns}))


def blocks_of(parts: list[Part], most: int = _BLOCK) -> list[list[Part]]:
    """Groups of parts that follow one another, of so many rows or of one part."""
    blocks: list[list[Part]] = []
    for part in parts:
        last = blocks[-1] if blocks else []
        follows = bool(last) and last[-1][1] + last[-1][2] == part[1]
        if follows and part[1] + part[2] - last[0][1] <= most:
            last.append(part)
        else:
            blocks.append([part])
    return blocks
