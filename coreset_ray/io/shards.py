"""The list of a pool's shards, and the samples inside one, read as a stream."""

import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import braceexpand
from pyarrow import fs as pafs

from coreset_ray.core.address import is_remote, join, split, with_options
from coreset_ray.io.filesystem import Location, locate

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"})

# WebDataset's rule: the key ends at the first dot of the base name, the extension follows.
_MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$", re.DOTALL)

# tarfile copies what is left of its buffer at every read, so a larger one is slower.
_BUFFER = 1 << 15

# Larger members are located, never read into memory.
MEMBER_BYTES = 256 << 20

# Of a header that says more of the next member, such as its long name; the longest path takes a
# quarter. Some versions of the library take time and memory by the square of it.
_EXTENSION_BYTES = 16 << 10

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


def list_shards(
    entries: Iterable[str], root: str | None = None, options: Mapping[str, str] | None = None
) -> list[Shard]:
    """Every shard the entries name, in ascending order of name.

    entries: tar files, globs, brace ranges, folders (all *.tar below), or @FILE with one entry a
    line. A shard's name is its path relative to `root`, by default to the folder its entry
    names. options: of every entry, a list's too, and of the root, where these are in a store and
    do not say otherwise themselves. Raises `ValueError` for an entry that names nothing and for
    two shards of one name.
    """
    found: dict[str, Shard] = {}
    shared = options or {}
    base = None if root is None else locate(with_options(root, shared)).path
    for entry in _expand(entries, shared):
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
                # The library would keep every header that it has read.
                tar.members = []  # type: ignore[attr-defined]
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


_EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _Header(tarfile.TarInfo):
    """A header that must be valid: the library takes a broken one in mid-file for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            info = super().fromtarfile(tarfile_)
            if info.size < 0:
                raise tarfile.ReadError(f"a size of {info.size} at byte {info.offset}")
            return info
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the end-of-archive mark
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from error
        except (ValueError, IndexError, OverflowError, RecursionError) as error:
            # a malformed pax record, or a thousand headers for one member
            raise tarfile.ReadError(f"bad header at byte {tarfile_.offset}: {error}") from error

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENSIONS and not 0 <= self.size <= _EXTENSION_BYTES:
            raise tarfile.ReadError(
                f"a header of {self.size} bytes at byte {tarfile_.offset}, more than "
                f"{_EXTENSION_BYTES}"
            )
        return super()._proc_member(tarfile_)  # type: ignore[misc]


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


def _expand(entries: Iterable[str], options: Mapping[str, str]) -> Iterator[str]:
    for entry in entries:
        if entry.startswith("@"):
            location = locate(with_options(entry[1:], options))
            if location.info().type != pafs.FileType.File:
                raise ValueError(f"pool.shards: the list {str(location)!r} does not exist")
            with location.open_stream() as stream:
                lines = [line.strip() for line in stream.read().decode("utf-8").splitlines()]
            listed = (line for line in lines if line and not line.startswith("#"))
            yield from _expand(listed, options)
        elif "{" in entry:
            yield from (with_options(e, options) for e in braceexpand.braceexpand(entry))
        else:
            yield with_options(entry, options)


def _files(entry: str) -> Iterator[tuple[str, Location, pafs.FileInfo]]:
    """The entry's folder, and each file it names."""
    entry, options = split(entry) if is_remote(entry) else (entry, {})
    first = re.search(r"[*?\[]", entry)
    fixed = entry if first is None else os.path.dirname(entry[: first.start()])
    location = locate(join(fixed or ".", options))
    info = location.info()
    if first is None and info.type == pafs.FileType.File:
        yield os.path.dirname(location.path), location, info
        return
    if info.type != pafs.FileType.Directory:
        raise ValueError(f"pool.shards: {entry!r} does not exist")
    pattern = re.compile(r".*\.tar")
    if first is not None:
        pattern = _glob_pattern(locate(join(entry, options)).path)
    matches = [
        i
        for i in location.listing(recursive=True)
        if i.type == pafs.FileType.File and pattern.fullmatch(i.path)
    ]
    if not matches:
        raise ValueError(f"pool.shards: {entry!r} holds no shard (*.tar)")
    for match in matches:
        yield location.path, location / match.path[len(location.path.rstrip("/")) + 1 :], match


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
