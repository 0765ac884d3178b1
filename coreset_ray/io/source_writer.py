"""Write samples as WebDataset shards: same samples, same bytes; whole shards or none."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from coreset_ray.io.source_sample import Sample


def write_shards(samples: Iterable[Sample], out: Path, *, per_shard: int = 1000) -> list[Path]:
    """Write `out/00000.tar`, `out/00001.tar`, … of at most `per_shard` samples; return the paths.

    A shard is written as `*.tar.partial` and renamed when whole. One sample is held at a time.
    ValueError: `per_shard` < 1, shards already in `out`, or a key twice within one shard.
    """
    check_per_shard(per_shard)
    refuse_shards_in(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot make the folder {str(out)!r} ({error.strerror}): choose another one"
        ) from error
    shards: list[Path] = []
    rest = iter(samples)
    for first in rest:
        shard = out / f"{len(shards):05d}.tar"
        _write_shard(shard, chain([first], islice(rest, per_shard - 1)))
        shards.append(shard)
    return shards


def check_per_shard(per_shard: int) -> None:
    """ValueError unless at least one sample goes into a shard."""
    if per_shard < 1:
        raise ValueError(f"per_shard is {per_shard}: choose 1 or more samples a shard")


def refuse_shards_in(out: Path) -> None:
    """ValueError if `out`, or a folder directly in it, already holds shards."""
    found = next(chain(out.glob("*.tar"), out.glob("*/*.tar")), None)
    if found is not None:
        raise ValueError(
            f"{str(out)!r} already holds shards (such as {found.name!r}): choose an empty folder"
        )


def _write_shard(shard: Path, samples: Iterable[Sample]) -> None:
    from webdataset.writer import TarWriter

    partial = shard.with_name(shard.name + ".partial")
    try:
        with partial.open("wb") as file:
            # PAX rather than the default USTAR: names may be longer than 100 bytes.
            with TarWriter(
                file,
                user="coreset-ray",
                group="coreset-ray",
                mode=0o644,
                mtime=0,
                encoder=False,
                format="PAX_FORMAT",
            ) as tar:
                for sample in _distinct(samples, shard):
                    tar.write({"__key__": sample.key, **sample.members})
            file.flush()
            os.fsync(file.fileno())
        partial.replace(shard)
    finally:
        partial.unlink(missing_ok=True)


def _distinct(samples: Iterable[Sample], shard: Path) -> Iterator[Sample]:
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            raise ValueError(
                f"key {sample.key!r} comes twice in shard {str(shard)!r}: give each sample its own"
            )
        seen.add(sample.key)
        yield sample
