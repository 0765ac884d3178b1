"""Labels that a classifier is trained on: checked before, and read by each of its workers."""

import hashlib

import numpy as np
import ray

from coreset_ray.distributed.pivot import Part, blocks_of
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import PartedTable, read_table, uid_words


def check_labels(
    table: PartedTable, labels: Location, placed: list[Part], classes: int
) -> list[str]:
    """A hash of each block of labels; `ValueError` for the first that cannot be trained on."""
    tasks = [
        _check.remote(table.folder.uri, labels.uri, block, classes) for block in blocks_of(placed)
    ]
    return ray.get(tasks)


def read_labels(labels: str, parts: dict[str, int], worker: int, workers: int) -> np.ndarray:
    """Of rows worker, worker + workers, … of the pool, int32. parts: rows of each, in the order
    that numbers rows."""
    found, first = [], 0
    for part, rows in parts.items():
        label = read_table(locate(labels) / f"part-{part}.parquet", ["label"])["label"].to_numpy()
        assert len(label) == rows, "checked before training"
        found.append(label[(worker - first) % workers :: workers].astype(np.int32))
        first += rows
    return np.concatenate(found)


@ray.remote(max_retries=3)
def _check(table: str, labels: str, parts: list[Part], classes: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, _, rows in parts:
        file = locate(labels) / f"part-{name}.parquet"
        if not file.exists():
            raise ValueError(f"{file.uri} is missing: make the pseudo-labels again")
        found = read_table(file, ["uid", "label"])
        uid = read_table(PartedTable(locate(table)).part(name), ["uid"])["uid"]
        if len(found) != rows or not found["uid"].equals(uid):
            raise ValueError(
                f"{file.uri} holds labels of other images than part {name!r} of {table}, or in "
                "another order: make the pseudo-labels again"
            )
        if found["label"].null_count:
            raise ValueError(f"{file.uri} has rows without a label: make the pseudo-labels again")
        label = found["label"].to_numpy()
        wrong = np.flatnonzero((label < 0) | (label >= classes))
        if len(wrong):
            raise ValueError(
                f"{file.uri} has label {label[wrong[0]]} in row {wrong[0]} ({len(wrong)} such rows)"
                f" with classes={classes}; labels go from 0 to classes - 1: correct classes"
            )
        digest.update(uid_words(uid).tobytes() + label.astype(np.int64).tobytes())
    return digest.hexdigest()
