"""Write samples as WebDataset shards: same samples, same bytes; whole shards or none."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pyarrow.fs import FileType

from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.source_sample import Sample


def write_shards(
    samples: Iterable[Sample], out: str | os.PathLike[str], *, per_shard: int = 1000
) -> list[Location]:
    """Write `out/00000.tar`, `out/00001.tar`, … of at most `per_shard` samples; return them.

    A shard is there once it is whole. One sample is held at a time, one shard for an object store.
    ValueError: `per_shard` < 1, shards already in `out`, or a key twice within one shard.
    """
    check_per_shard(per_shard)
    folder = locate(out)
    refuse_shards_in(folder)
    if folder.local:
        _make(Path(folder.path))
    shards: list[Location] = []
    rest = iter(samples)
    for first in rest:
        shard = folder / f"{len(shards):05d}.tar"
        _write_shard(shard, chain([first], islice(rest, per_shard - 1)))
        shards.append(shard)
    return shards


def check_per_shard(per_shard: int) -> None:
    """ValueError unless at least one sample goes into a shard."""
    if per_shard < 1:
        raise ValueError(f"per_shard is {per_shard}: choose 1 or more samples a shard")


def refuse_shards_in(out: Location) -> None:
    """ValueError if `out`, or a folder directly in it, already holds shards."""
    if out.info().type != FileType.Directory:
        return
    folders = [out, *(out / i.base_name for i in out.listing() if i.type == FileType.Directory)]
    names = (info.base_name for folder in folders for info in folder.listing())
    if found := next((name for name in names if name.endswith(".tar")), None):
        raise ValueError(
            f"{str(out)!r} already holds shards (such as {found!r}): choose an empty folder"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot make the folder {str(folder)!r} ({error.strerror}): choose another one"
        ) from error


def _write_shard(shard: Location, samples: Iterable[Sample]) -> None:
    from webdataset.writer import TarWriter

    how: dict[str, Any] = {"user": "coreset-ray", "group": "coreset-ray", "mode": 0o644, "mtime": 0}
    how["format"] = "PAX_FORMAT"  # the default, USTAR, ends a name after 100 bytes
    with shard.replacing() as file, TarWriter(file, encoder=False, **how) as tar:
        for sample in _distinct(samples, shard):
            tar.write({"__key__": sample.key, **sample.members})


def _distinct(samples: Iterable[Sample], shard: Location) -> Iterator[Sample]:
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            raise ValueError(
                f"key {sample.key!r} comes twice in shard {str(shard)!r}: give each sample its own"
            )
        seen.add(sample.key)
        yield sample
