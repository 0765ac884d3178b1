"""Labels from .cls members, or from a CSV file by key."""

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
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
    found = labels_of_members(images) if source == "cls" else labels_of_file(images, source)
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


def label_mark(source: str, setting: str = "evaluate.labels") -> list[int]:
    """What changes when a labels file does; nothing for `cls`. `ValueError` if it is not there."""
    if source == "cls":
        return []
    info = _file(source, setting).info()
    return [info.size or 0, info.mtime_ns or 0]


def class_names(labels: Sequence[str]) -> list[str]:
    """The distinct labels in order: by number where all are whole numbers, else by text."""
    names = sorted(set(labels))  # first by text: "7" and "07" are distinct labels of one number
    return sorted(names, key=int) if all(_is_whole(n) for n in names) else names


def labels_of_members(members: pa.Table) -> dict[str, str]:
    """The text of each sample's .cls by uid, of rows of `MEMBERS`."""
    pairs = zip(members["uid"].to_pylist(), members["text"].to_pylist(), strict=True)
    return {uid: text for uid, text in pairs if text is not None}


def labels_of_file(images: pa.Table, path: str, setting: str = "evaluate.labels") -> dict[str, str]:
    """The label of each image that a CSV file names, by uid; the file is read piece by piece.

    images: columns uid, shard and key. Raises `ValueError`, with the setting that names the file,
    where it is missing, has other columns or names one of these images twice.
    """
    location = _file(path, setting)
    names = _columns(location, path, setting)
    by = [name for name in ("shard", "key") if name in names]
    uids: dict[tuple[str, ...], list[str]] = {}
    places = zip(*(images[name].to_pylist() for name in by), strict=True)
    for uid, place in zip(images["uid"].to_pylist(), places, strict=True):
        uids.setdefault(place, []).append(uid)
    found: dict[tuple[str, ...], str] = {}
    twice: set[tuple[str, ...]] = set()
    wanted = pc.field("key").isin(images["key"].unique())
    with location.open_stream() as stream:
        for rows in csv.open_csv(stream, convert_options=_as_text([*by, "label"])):
            rows = pa.Table.from_batches([rows]).filter(wanted)
            *columns, labels = (rows[name].to_pylist() for name in (*by, "label"))
            for place, label in zip(zip(*columns, strict=True), labels, strict=True):
                if place in found:
                    twice.add(place)
                elif place in uids:
                    found[place] = label
    if twice:
        raise ValueError(
            f"{setting}={path!r} names {len(twice)} images twice by {','.join(by)}: keep one line "
            "an image, with columns shard,key,label"
        )
    return {uid: label for place, label in found.items() for uid in uids[place]}


def _columns(location: Location, path: str, setting: str) -> list[str]:
    """The names of a CSV file's columns, those of a label and a place among them."""
    with location.open_stream() as stream, csv.open_csv(stream) as reader:
        names = reader.schema.names
    if not {"key", "label"} <= set(names):
        raise ValueError(
            f"{setting}={path!r} has columns {names}: expected key,label or shard,key,label"
        )
    return names


def _as_text(names: list[str]) -> csv.ConvertOptions:
    return csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        include_columns=names,
        strings_can_be_null=False,
    )


def _file(path: str, setting: str) -> Location:
    location = locate(path)
    if not location.exists():
        raise ValueError(f"{setting}={path!r} does not exist or is empty: give `cls` or a CSV file")
    return location


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
