"""Labels, for evaluation only: from .cls members, or from a CSV file by key."""

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
from pyarrow import csv

from coreset_ray.io.filesystem import Location, locate


def attach_labels(
    images: pa.Table, source: str, *, unlabeled: Literal["refuse", "drop"] = "refuse"
) -> pa.Table:
    """Adds a text column `label` to rows of `MEMBERS` that are images.

    images: all members of the samples, images and others. source: `cls`, or the path of a CSV
    file with columns key,label, or shard,key,label where keys repeat across shards.
    Returns the image rows; without those that have no label if `unlabeled` is drop, else these
    raise `ValueError` naming how many they are, and one.
    """
    found = _from_members(images) if source == "cls" else _from_csv(images, source)
    rows = images.filter(images["image"])
    labels = [(found.get(uid) or "").strip() for uid in rows["uid"].to_pylist()]
    missing = [i for i, label in enumerate(labels) if not label]
    if missing and unlabeled == "refuse":
        shard, key = rows["shard"][missing[0]].as_py(), rows["key"][missing[0]].as_py()
        raise ValueError(
            f"{len(missing)} of {len(rows)} images to evaluate have no label in {source!r} (shard "
            f"{shard!r}, key {key!r} first). The random choices beside the coreset need labels "
            "too: add them to the shards as .cls, or to a CSV file named by evaluate.labels. A "
            "chosen image that nobody can label is left out of training by evaluate.unlabeled=drop"
        )
    labeled = rows.append_column("label", pa.array(labels, pa.string()))
    return labeled.filter(pa.array([bool(label) for label in labels], pa.bool_()))


def label_mark(source: str) -> list[int]:
    """What changes when a labels file does; nothing for `cls`. `ValueError` if it is not there."""
    if source == "cls":
        return []
    location = _file(source)
    info = location.fs.get_file_info(location.path)
    return [info.size or 0, info.mtime_ns or 0]


def class_names(labels: Sequence[str]) -> list[str]:
    """The distinct labels in order: by number where all are whole numbers, else by text."""
    names = sorted(set(labels))  # first by text: "7" and "07" are distinct labels of one number
    return sorted(names, key=int) if all(_is_whole(n) for n in names) else names


def _from_members(members: pa.Table) -> dict[str, str]:
    pairs = zip(members["uid"].to_pylist(), members["text"].to_pylist(), strict=True)
    return {uid: text for uid, text in pairs if text is not None}


def _from_csv(members: pa.Table, path: str) -> dict[str, str]:
    location = _file(path)
    text = csv.ConvertOptions(
        column_types={name: pa.string() for name in ("shard", "key", "label")},
        strings_can_be_null=False,
    )
    with location.open_stream() as stream:
        table = csv.read_csv(stream, convert_options=text)
    by = [name for name in ("shard", "key") if name in table.column_names]
    if "key" not in by or "label" not in table.column_names:
        raise ValueError(
            f"evaluate.labels={path!r} has columns {table.column_names}: expected key,label or "
            "shard,key,label"
        )
    places = list(zip(*(table[name].to_pylist() for name in by), strict=True))
    labels = dict(zip(places, table["label"].to_pylist(), strict=True))
    if len(labels) < len(places):
        raise ValueError(
            f"evaluate.labels={path!r} names {len(places) - len(labels)} images twice by "
            f"{','.join(by)}: keep one line an image, with columns shard,key,label"
        )
    wanted = zip(*(members[name].to_pylist() for name in by), strict=True)
    found = zip(members["uid"].to_pylist(), wanted, strict=True)
    return {uid: labels[place] for uid, place in found if place in labels}


def _file(path: str) -> Location:
    location = locate(path)
    if not location.exists():
        raise ValueError(f"evaluate.labels={path!r} does not exist: give `cls` or a CSV file")
    return location


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
