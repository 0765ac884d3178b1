"""Make WebDataset shards from a source: `digits`, `torchvision:<Name>`, images or other shards."""

import warnings
from pathlib import Path
from typing import Any

from coreset_ray.io.degrade import Degrade
from coreset_ray.io.degrade_pool import degraded, write_degraded
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.source_digits import digits_samples, open_digits
from coreset_ray.io.source_folder import folder_samples, open_folder
from coreset_ray.io.source_sample import Sample, Source
from coreset_ray.io.source_shards import names_shards, open_shards
from coreset_ray.io.source_torchvision import open_torchvision, torchvision_samples
from coreset_ray.io.source_writer import check_per_shard, refuse_shards_in, write_shards

__all__ = [
    "Sample",
    "digits_samples",
    "folder_samples",
    "make_shards",
    "torchvision_samples",
    "write_shards",
]

_TORCHVISION = "torchvision:"


def make_shards(
    source: str,
    out: str | Path,
    *,
    per_shard: int = 1000,
    seed: int = 0,
    shuffle: bool = True,
    root: str | Path | None = None,
    download: bool = False,
    degrade: Degrade | None = None,
    off_topic: str | None = None,
) -> dict[str, Any]:
    """Write `source` as shards `out/<split>/00000.tar`, … and its class names as `out/classes.txt`.

    A source without splits is all `train`. The same source, seed and `per_shard` give the same
    bytes. `seed` sets the order over shards, and the held-out split of `digits`; `root` and
    `download` are for torchvision. `degrade` makes a pool of the train split that looks like the
    web, with `out/truth.parquet` beside it; `off_topic` is the source of its off-topic images. The
    other splits stay as they are. Returns

        {"splits": {"train": {"samples": 1437, "shards": 2}, …}, "classes": ["0", …], "ignored": 0}

    where `classes` is empty if the source names none, and `ignored` counts the files of a folder
    that belong to no image; `degraded` counts each kind of image. `out/classes.txt` is written
    last.

    ValueError: a source that is missing, empty, unknown or inconsistent, `per_shard` < 1, an
    `out` that already holds shards or lies in the source, settings that the source cannot meet. A
    message names value and remedy.
    """
    check_per_shard(per_shard)
    place = locate(out)
    refuse_shards_in(place)
    if off_topic is not None and degrade is None:
        raise ValueError(f"the off-topic source {off_topic!r} is for a degraded pool: set degrade")
    sources = [source] if off_topic is None else [source, off_topic]
    if (root is not None or download) and not any(s.startswith(_TORCHVISION) for s in sources):
        warnings.warn(
            f"root and download are for 'torchvision:…' and are ignored for {source!r}",
            stacklevel=2,
        )
    opened, *other = [_open(s, place, seed=seed, root=root, download=download) for s in sources]
    _check_classes(opened.classes)
    splits, counts, kinds = dict(opened.splits), {}, {}
    if degrade is not None:
        pool = degraded(opened, degrade, *other, shuffle=shuffle)
        del splits["train"]
        shards, kinds = write_degraded(pool, place, per_shard=per_shard)
        counts["train"] = {"samples": len(pool), "shards": len(shards)}
    for name, split in splits.items():
        samples = split.shuffled(seed) if shuffle else iter(split)
        shards = write_shards(samples, (place / name).uri, per_shard=per_shard)
        counts[name] = {"samples": split.size, "shards": len(shards)}
    if opened.classes:
        _write_classes(place / "classes.txt", opened.classes)
    found = {"splits": counts, "classes": list(opened.classes), "ignored": opened.ignored}
    return found | ({"degraded": kinds} if kinds else {})


def _open(
    source: str, out: Location, *, seed: int, root: str | Path | None, download: bool
) -> Source:
    if source.startswith(_TORCHVISION):
        return open_torchvision(source.removeprefix(_TORCHVISION), root, download=download)
    if source == "digits":
        return open_digits(seed=seed)
    if out.local and Path(out.path).resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(
            f"output {str(out)!r} lies in the source {source!r} and would become part of it: "
            "choose a folder outside"
        )
    return open_shards(source) if names_shards(source) else open_folder(source)


def _check_classes(classes: tuple[str, ...]) -> None:
    for name in classes:
        if name.splitlines() != [name]:
            raise ValueError(f"class name {name!r} does not fit on one line: rename its folder")


def _write_classes(file: Location, classes: tuple[str, ...]) -> None:
    """One name a line; the line's number, from 0, is the class index."""
    with file.replacing() as sink:
        sink.write(("\n".join(classes) + "\n").encode(errors="surrogateescape"))
