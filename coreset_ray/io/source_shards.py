"""WebDataset shards that exist as a source: original bytes and every sidecar, at any position."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from coreset_ray.core.address import is_remote, join, split
from coreset_ray.io.filesystem import locate
from coreset_ray.io.open_files import OpenFiles
from coreset_ray.io.shards import IMAGE_EXTENSIONS, Shard, ShardError, list_shards, read_samples
from coreset_ray.io.source_folder import SPLIT_NAMES
from coreset_ray.io.source_sample import Sample, Source, Split, safe_keys


@dataclass(frozen=True, slots=True)
class _Entry:
    """A sample that was found but not read. members: extension, offset, bytes of each."""

    shard: Shard
    key: str
    members: tuple[tuple[str, int, int], ...]


def names_shards(source: str) -> bool:
    """Whether a source means shards: a tar file, glob, brace range, list @FILE, URI, or a folder
    that holds *.tar and no image."""
    if not os.path.isdir(source):
        named = source.startswith("@") or source.endswith(".tar") or "://" in source
        return named or _first_wild(source) is not None
    found = False
    for _, folders, files in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            extension = PurePath(name).suffix.removeprefix(".").lower()
            if extension in IMAGE_EXTENSIONS and not name.startswith("."):
                return False
            found |= name.endswith(".tar")
    return found


def open_shards(source: str) -> Source:
    """Find the samples of the shards that `source` names; no image is read yet.

    Shards that all lie in folders named train, val or test are these splits; otherwise everything
    is `train`. A key stays as it is where it is safe and no other shard has it; one that comes in
    several shards gets its shard's name before it. `classes.txt` beside the splits names the
    classes; `ignored` counts the members of samples without an image.

    ValueError: no shards, a shard that is no whole tar file, a key twice in a shard, no images.
    """
    wild, root = _first_wild(source) if not os.path.isdir(source) else None, None
    if wild is not None:
        options = split(source)[1] if is_remote(source) else {}
        root = join(os.path.dirname(source[:wild]) or ".", options)
    try:
        shards = list_shards([source], root)
    except ValueError as error:
        reason = str(error).removeprefix("pool.shards: ")
        raise ValueError(f"source {source!r} cannot be read as shards: {reason}") from error
    entries = [entry for shard in shards for entry in _entries(shard)]
    images = [e for e in entries if any(x in IMAGE_EXTENSIONS for x, _, _ in e.members)]
    if not images:
        raise ValueError(
            f"the shards of source {source!r} hold no images: a sample's image ends in "
            f"{', '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    keys = _keys(images)
    files = OpenFiles()
    splits = {
        name: _split(files, [images[i] for i in rows], [keys[i] for i in rows])
        for name, rows in _split_rows(images).items()
    }
    ignored = sum(len(e.members) for e in entries) - sum(len(e.members) for e in images)
    return Source(splits, _classes(root or source), ignored=ignored)


def _first_wild(source: str) -> int | None:
    """Where a glob or brace range begins."""
    address = split(source)[0] if is_remote(source) else source
    return next((i for i, letter in enumerate(address) if letter in "*?[{"), None)


def _entries(shard: Shard) -> Iterator[_Entry]:
    with locate(shard.uri).open_stream() as stream:
        try:
            for sample in read_samples(stream, shard.size, lambda extension: False):
                if sample.repeated:
                    raise ValueError(
                        f"key {sample.key!r} comes twice in shard {shard.uri!r}: give each sample "
                        "its own, or leave the shard out of the source"
                    )
                members = ((e, m.offset, m.size) for e, m in sample.members.items())
                yield _Entry(shard, sample.key, tuple(members))
        except ShardError as error:
            raise ValueError(
                f"shard {shard.uri!r} {error}: write it anew, or leave it out of the source"
            ) from error


def _split_rows(entries: list[_Entry]) -> dict[str, list[int]]:
    tops = [entry.shard.name.rpartition("/")[0].split("/")[0] for entry in entries]
    if not set(tops) <= set(SPLIT_NAMES):
        return {"train": list(range(len(entries)))}
    return {s: [i for i, top in enumerate(tops) if top == s] for s in SPLIT_NAMES if s in tops}


def _keys(entries: list[_Entry]) -> list[str]:
    distinct = len({entry.key for entry in entries}) == len(entries)
    names = (
        entry.key if distinct else f"{entry.shard.name.removesuffix('.tar')}/{entry.key}"
        for entry in entries
    )
    return safe_keys(tuple(p for p in name.split("/") if p not in ("", ".")) for name in names)


def _split(files: OpenFiles, entries: list[_Entry], keys: list[str]) -> Split:
    def read(i: int) -> Sample:
        shard = entries[i].shard
        members = {}
        for extension, offset, size in entries[i].members:
            members[extension] = files.read(shard.uri, offset, size)
            if len(members[extension]) < size:
                raise ValueError(f"shard {shard.uri!r} became shorter while it was read: try again")
        return Sample(keys[i], members)

    return Split(len(entries), read)


def _classes(folder: str) -> tuple[str, ...]:
    """The names in the classes.txt that `make_shards` writes, if the folder has one."""
    location = locate(folder) / "classes.txt"
    if not location.exists():
        return ()
    with location.open_stream() as stream:
        return tuple(stream.read().decode("utf-8", "surrogateescape").splitlines())
