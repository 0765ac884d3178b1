"""The list of a pool's shards, and the samples inside one, read as a stream."""

import glob
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import braceexpand
from pyarrow import fs as pafs

from coreset_ray.io.filesystem import Location, locate

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"})

# WebDataset's rule: the key ends at the first dot of the base name, the extension follows.
_MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$", re.DOTALL)

# tarfile copies what is left of its buffer at every read, so a larger one is slower.
_BUFFER = 1 << 15

# Larger members are located, never read into memory.
MEMBER_BYTES = 256 << 20

REPEATED = "this key was seen before in the shard"


class ShardError(Exception):
    """A shard whose bytes are not a whole tar file; the message is the reason."""


@dataclass(frozen=True)
class Shard:
    """One tar file of the pool. name: its identity, a relative path; size in bytes."""

    name: str
    uri: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Member:
    """One file inside a shard: where its bytes lie, and the bytes where they were asked for."""

    name: str
    offset: int
    size: int
    data: bytes | None


@dataclass
class Sample:
    """The members that share a key, by extension (lower case, without the first dot)."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    repeated: bool = False  # its key was seen before in this shard

    def image(self) -> Member | None:
        """The first member that is an image, in the order of the shard."""
        return next((m for e, m in self.members.items() if e in IMAGE_EXTENSIONS), None)


def list_shards(entries: Iterable[str], root: str | None = None) -> list[Shard]:
    """Every shard the entries name, in ascending order of name.

    entries: tar files, globs, brace ranges, folders (all *.tar below), or @FILE with one entry a
    line. A shard's name is its path relative to `root`, by default to the folder its entry
    names. Raises `ValueError` for an entry that names nothing and for two shards of one name.
    """
    found: dict[str, Shard] = {}
    base = None if root is None else locate(root).path
    for entry in _expand(entries):
        for folder, location, info in _files(entry):
            name = _relative(location.path, base if base is not None else folder, entry)
            shard = Shard(name, location.uri, info.size, info.mtime_ns or 0)
            other = found.setdefault(name, shard)
            if other.uri != shard.uri:
                raise ValueError(
                    f"shards {other.uri!r} and {shard.uri!r} would share the name {name!r}: set "
                    "pool.root to a folder above both, so that their names differ"
                )
    return [found[name] for name in sorted(found)]


def read_samples(
    stream: BinaryIO, size: int, keep: Callable[[str], bool] = lambda extension: True
) -> Iterator[Sample]:
    """The samples of one shard in their order, with the bytes of the extensions to `keep` (of
    members up to `MEMBER_BYTES`).

    Members that are neither files nor named by WebDataset's rule are passed over. A later group
    with a key already seen is yielded with `repeated` set. Raises `ShardError` after the last
    whole sample when the shard is no tar file or ends early. size: bytes, as listed.
    """
    seen: set[str] = set()
    current: Sample | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER, tarinfo=_Header) as tar:
            for info in tar:
                match = _MEMBER.match(_text(info.name)) if info.isreg() else None
                if match is None or info.issparse():
                    _refuse_longer(tar, size)
                    continue
                key, extension = match[1], match[2].lower()
                if current is None or current.key != key or extension in current.members:
                    if current is not None:
                        yield current
                    current = Sample(key, repeated=key in seen)
                    seen.add(key)
                _refuse_longer(tar, size)
                current.members[extension] = _member(tar, info, keep(extension))
            _refuse_more(tar)
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(_reason(error, size)) from error
    if current is not None:
        yield current


class _Header(tarfile.TarInfo):
    """A header that must be valid: the library takes a broken one in mid-file for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the end-of-archive mark
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from error
        except (ValueError, IndexError, OverflowError) as error:  # a malformed pax record
            raise tarfile.ReadError(f"bad header at byte {tarfile_.offset}: {error}") from error


def _refuse_longer(tar: tarfile.TarFile, size: int) -> None:
    """A member must end before the shard does: the library would skip to a far end for years."""
    if tar.offset > size:
        raise tarfile.ReadError("unexpected end of data")


def _refuse_more(tar: tarfile.TarFile) -> None:
    """Only zeros may follow the end mark: else it is a hole, or another archive that would be
    lost without a word."""
    rest: Any = tar.fileobj
    while block := rest.read(1 << 20):
        if block.count(0) < len(block):
            raise tarfile.ReadError(f"data follow the end-of-archive mark at byte {tar.offset}")


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, read: bool) -> Member:
    data = None
    if read and info.size <= MEMBER_BYTES:
        source = tar.extractfile(info)
        assert source is not None, "a regular file has content"
        data = source.read()
        if len(data) < info.size:
            raise tarfile.ReadError("unexpected end of data")
    return Member(_text(info.name), info.offset_data, info.size, data)


def _text(name: str) -> str:
    """A member name as valid Unicode; bytes that are not UTF-8 become backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _reason(error: Exception, size: int) -> str:
    if size == 0:
        return "the file is empty"
    text = str(error)
    early = any(word in text for word in ("end of", "empty header", "truncated"))
    return f"ends early ({text})" if early else f"not a whole tar file ({text})"


def _expand(entries: Iterable[str]) -> Iterator[str]:
    for entry in entries:
        if entry.startswith("@"):
            location = locate(entry[1:])
            if location.fs.get_file_info(location.path).type != pafs.FileType.File:
                raise ValueError(f"pool.shards: the list {entry[1:]!r} does not exist")
            with location.open_stream() as stream:
                lines = [line.strip() for line in stream.read().decode("utf-8").splitlines()]
            yield from _expand(line for line in lines if line and not line.startswith("#"))
        elif "{" in entry:
            yield from braceexpand.braceexpand(entry)
        else:
            yield entry


def _files(entry: str) -> Iterator[tuple[str, Location, pafs.FileInfo]]:
    """The entry's folder, and each file it names."""
    wild = glob.has_magic(entry)
    fixed = entry if not wild else os.path.dirname(entry[: re.search(r"[*?\[]", entry).start()])  # type: ignore[union-attr]
    location = locate(fixed or ".")
    info = location.fs.get_file_info(location.path)
    if not wild and info.type == pafs.FileType.File:
        yield os.path.dirname(location.path), location, info
        return
    if info.type != pafs.FileType.Directory:
        raise ValueError(f"pool.shards: {entry!r} does not exist")
    pattern = _glob_pattern(locate(entry).path) if wild else re.compile(r".*\.tar")
    selector = pafs.FileSelector(location.path, recursive=True)
    matches = [
        i
        for i in location.fs.get_file_info(selector)
        if i.type == pafs.FileType.File and pattern.fullmatch(i.path)
    ]
    if not matches:
        raise ValueError(f"pool.shards: {entry!r} holds no shard (*.tar)")
    for match in matches:
        yield location.path, Location(location.fs, match.path), match


def _glob_pattern(path: str) -> re.Pattern[str]:
    """`*` and `?` stay within a folder, `**` crosses folders, `[…]` as in the shell."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", path)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    try:
        return re.compile("".join(meaning.get(p) or _glob_part(p) for p in parts))
    except re.error as error:
        raise ValueError(f"pool.shards: {path!r} is no glob: {error.msg}") from error


def _glob_part(part: str) -> str:
    """A set of characters, or text that means itself."""
    if not re.fullmatch(r"\[[^\]]+\]", part):
        return re.escape(part)
    negated = "^" if part[1] == "!" else ""
    characters = re.sub(r"([\\[&~|])", r"\\\1", part[1 + len(negated) : -1])
    return f"[{negated}{characters}]"


def _relative(path: str, folder: str, entry: str) -> str:
    if not path.startswith(folder.rstrip("/") + "/"):
        raise ValueError(
            f"pool.shards: {path!r} (from {entry!r}) does not lie below pool.root {folder!r}"
        )
    return path[len(folder.rstrip("/")) + 1 :]
