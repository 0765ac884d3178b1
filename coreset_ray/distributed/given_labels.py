"""Labels that a pool comes with, in the place of pseudo-labels: looked up part by part, then
numbered by the order of all their names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core.corrupt import Corruption
from coreset_ray.distributed.pivot import Part, blocks_of
from coreset_ray.distributed.progress import Progress
from coreset_ray.io.export import find_members
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.labels import class_names, labels_of_file, labels_of_members
from coreset_ray.io.shards import Shard
from coreset_ray.io.tables import PartedTable, read_table, uid_words, write_table

SETTING = "signals.labels"  # for messages

_CLASSES = 100_000  # at most: more are no classes but captions or names


@dataclass(frozen=True)
class GivenLabels:
    """source: `cls`, or the path of a CSV file with columns key,label or shard,key,label. corrupt:
    the share of them that is replaced by another class, by the seed (`core/corrupt.py`)."""

    source: str
    corrupt: float = 0.0
    seed: int = 0


def write_given_labels(
    table: PartedTable,
    parts: dict[str, int],
    shards: Mapping[str, Shard],
    wanted: GivenLabels,
    out: Location,
) -> dict[str, Any]:
    """Writes a part of labels for every embedding part: uid, label, the number of its name among
    the names in order, and confidence and agreement, 1.

    parts: rows of each; shards: what each part was made of. Each shard is read once, or the file
    once for about a million images; out/texts holds what was found until all parts are written.

    Returns, JSON-able: names, and rows_of_label. Raises `ValueError` that counts the images without
    a label and names the first, for fewer than two classes and for too many.
    """
    firsts = np.cumsum([0, *parts.values()])[:-1].tolist()
    placed = list(zip(parts, firsts, parts.values(), strict=True))
    blocks = [[part] for part in placed] if wanted.source == "cls" else blocks_of(placed)
    texts = out / "texts"
    found = [
        _look_up.remote(table.folder.uri, block, [shards[part] for part, *_ in block],
                        wanted.source, texts.uri)
        for block in blocks
    ]  # fmt: skip
    try:
        names = _names(found, sum(parts.values()), wanted.source)
    except ValueError:
        texts.delete_folder()  # of labels that will be others once they are mended
        raise
    shared = ray.put({name: number for number, name in enumerate(names)})
    wrong = Corruption(wanted.corrupt, len(names), wanted.seed)
    tasks = [_number.remote(texts.uri, part, shared, wrong, out.uri) for part in parts]
    rows = _all(tasks, "parts numbered")
    texts.delete_folder()
    return {"names": names, "rows_of_label": np.sum(rows, axis=0).tolist()}


def _names(found: list[ray.ObjectRef], rows: int, source: str) -> list[str]:
    """All names in order."""
    names: set[str] = set()
    missing, first = 0, None
    for some, without, example in _all(found, "tasks"):
        names |= some
        missing, first = missing + without, first or example
    if first is not None:
        raise ValueError(
            f"{SETTING}={source!r}: {missing} of {rows} images have no label (shard {first[0]!r}, "
            f"key {first[1]!r} first). Label them, leave their shards out of pool.shards, or set "
            f"{SETTING}=pseudo"
        )
    if not 2 <= len(names) <= _CLASSES:
        raise ValueError(
            f"{SETTING}={source!r} names {len(names)} classes: expected 2 to {_CLASSES:,}; see "
            "that it holds class names or numbers"
        )
    return class_names(list(names))


def _all(tasks: list[ray.ObjectRef], unit: str) -> list[Any]:
    """What they return, in their order."""
    pending = tasks
    with Progress("given labels", len(tasks), unit) as progress:
        while pending:
            ready, pending = ray.wait(pending)
            ray.get(ready)
            progress.update(len(tasks) - len(pending))
    return ray.get(tasks)


@ray.remote(num_cpus=1, max_retries=3)
def _look_up(
    table: str, block: list[Part], shards: list[Shard], source: str, texts: str
) -> tuple[set[str], int, tuple[str, str] | None]:
    """Writes the text of each label of some parts. Returns the distinct ones, how many images have
    none, and the first of these."""
    columns = ["uid", "shard", "key"]
    images = [read_table(PartedTable(locate(table)).part(part), columns) for part, *_ in block]
    if source == "cls":
        keys = [rows["key"].to_pylist() for rows in images]
        found = [labels_of_members(find_members(*of)) for of in zip(shards, keys, strict=True)]
    else:
        found = [labels_of_file(pa.concat_tables(images), source, SETTING)] * len(block)
    names: set[str] = set()
    missing, first = 0, None
    for (part, *_), rows, by_uid in zip(block, images, found, strict=True):
        labels = [(by_uid.get(uid) or "").strip() for uid in rows["uid"].to_pylist()]
        names.update(filter(None, labels))
        without = [i for i, label in enumerate(labels) if not label]
        if without and first is None:
            first = rows["shard"][without[0]].as_py(), rows["key"][without[0]].as_py()
        missing += len(without)
        told = {"uid": rows["uid"], "text": pa.array(labels, pa.string())}
        write_table(locate(texts) / f"{part}.parquet", pa.table(told))
    return names, missing, first


@ray.remote(num_cpus=1, max_retries=3)
def _number(
    texts: str, part: str, number: dict[str, int], wrong: Corruption, out: str
) -> np.ndarray:
    """Writes a part of labels; rows of each, (c,)."""
    rows = read_table(locate(texts) / f"{part}.parquet")
    label = np.array([number[text] for text in rows["text"].to_pylist()], np.int32)
    label = wrong.apply(uid_words(rows["uid"]), label)
    one = pa.array(np.ones(len(rows), np.float32))
    columns = {"uid": rows["uid"], "label": label, "confidence": one, "agreement": one}
    write_table(locate(out) / f"part-{part}.parquet", pa.table(columns))
    return np.bincount(label, minlength=len(number))
