"""Files by URI, local or in an object store, through pyarrow; writes are whole or absent."""

import json
import os
import posixpath
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs as pafs

from coreset_ray.core.address import credentials_of, is_remote, join, kind_of, split
from coreset_ray.io.full_disk import naming
from coreset_ray.io.stores import open_store

# Requests for what is read from start to end, in a store: each is a round trip, and held in memory.
_STREAM_BYTES = 4 << 20


@dataclass(frozen=True)
class Location:
    """A file or folder: a filesystem and a path on it, without a trailing slash.

    address, options: of one that is not local, its URI without a query, and the options in it, by
    which another process comes to the same place. As text it is without options.
    """

    fs: pafs.FileSystem
    path: str
    address: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def __truediv__(self, name: str) -> "Location":
        address = f"{self.address}/{quote(name)}" if self.address else ""
        return Location(self.fs, f"{self.path}/{name}", address, self.options)

    def __str__(self) -> str:
        return self.address or self.path

    def __reduce__(self) -> Any:
        if self.address:  # opened anew where it is sent: not every filesystem keeps all it was told
            return locate, (self.uri,)
        return Location, (self.fs, self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def parent(self) -> "Location":
        up = posixpath.dirname
        return Location(self.fs, up(self.path), up(self.address), self.options)

    @property
    def local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def uri(self) -> str:
        """A path for a local file, otherwise a URI with its options: what `locate` takes back."""
        return self.path if self.local else join(str(self), dict(self.options))

    def info(self) -> pafs.FileInfo:
        """What is there: a file with size and time, a folder or nothing."""
        with self.told():
            return self.fs.get_file_info(self.path)

    def exists(self) -> bool:
        """A folder, or a file that is not empty. None of ours is, and in some stores a file whose
        writing failed lies there empty."""
        info = self.info()
        return info.type == pafs.FileType.Directory or bool(info.size)

    def listing(self, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """What a folder holds; nothing where there is none."""
        # Folders that nobody made are listed of Google's store only by what is in them (arrow
        # issue 35993); pyarrow asks it for all that lies below either way.
        deeper = recursive or isinstance(self.fs, pafs.GcsFileSystem)
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=deeper)
        with self.told():
            found = self.fs.get_file_info(selector)
        return found if recursive or not deeper else self._children(found)

    def _children(self, below: list[pafs.FileInfo]) -> list[pafs.FileInfo]:
        """The files and folders of this folder, of all that lies below it."""
        children = {}
        for info in below:
            name, deeper, _ = info.path[len(self.path) + 1 :].partition("/")
            path = f"{self.path}/{name}"
            folder = pafs.FileInfo(path, pafs.FileType.Directory)
            children.setdefault(path, folder if deeper else info)
        return list(children.values())

    def delete(self) -> None:
        """Removes a file, if it is there."""
        with self.told(), suppress(FileNotFoundError):
            self.fs.delete_file(self.path)

    def delete_folder(self) -> None:
        """Removes a folder and all in it, if it is there."""
        with self.told(), suppress(FileNotFoundError):
            if self.fs.get_file_info(self.path).type == pafs.FileType.Directory:
                self.fs.delete_dir(self.path)

    def open_stream(self) -> BinaryIO:
        """For one reading from start to end, of the bytes as they are (pyarrow would unpack a
        .gz unasked); remote reads are buffered by the megabyte."""
        with self.told():
            self._come_to()
            stream = self.fs.open_input_stream(
                self.path, compression=None, buffer_size=1 << 20 if self.local else _STREAM_BYTES
            )
        return cast(BinaryIO, stream)

    def open_file(self) -> BinaryIO:
        """For reading at any offset."""
        with self.told():
            self._come_to()
            return cast(BinaryIO, self.fs.open_input_file(self.path))

    def _come_to(self) -> None:
        """Asks Azure once more than it takes: without credentials pyarrow ends the whole process
        when it opens a file, while this is an error like any other."""
        if isinstance(self.fs, pafs.AzureFileSystem):
            self.fs.get_file_info(self.path)

    def read_json(self) -> Any:
        with self.told(), self.open_stream() as stream:
            return json.loads(stream.read())

    def write_json(self, data: Any) -> None:
        with self.replacing() as sink:
            sink.write(json.dumps(data, indent=1, sort_keys=True).encode() + b"\n")

    @contextmanager
    def replacing(self) -> Iterator[BinaryIO]:
        """A sink whose content takes the file's place when the block ends without an error.

        Locally: a temporary file beside it, flushed to disk, then renamed. In an object store:
        a buffer, then one upload, which the store makes visible as a whole. In HDFS: a buffer,
        then a temporary file beside it, renamed.
        """
        if not self.local:
            buffer = pa.BufferOutputStream()
            yield cast(BinaryIO, buffer)
            with self.told():
                self._upload(buffer.getvalue())
            return
        target = Path(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / f".{uuid.uuid4().hex}.partial"
        try:
            with naming(target), partial.open("wb") as sink:
                yield sink
                sink.flush()
                os.fsync(sink.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _upload(self, content: pa.Buffer) -> None:
        if not self.address.startswith(("hdfs://", "viewfs://")):
            _send(self.fs, self.path, content)
            return
        self.fs.create_dir(posixpath.dirname(self.path), recursive=True)
        partial = self.parent / f".{uuid.uuid4().hex}.partial"
        try:
            _send(self.fs, partial.path, content)
            self.delete()  # a rename does not replace
            self.fs.move(partial.path, self.path)
        except BaseException:
            partial.delete()
            raise

    @contextmanager
    def told(self) -> Iterator[None]:
        """An error of a store within the block, while it is read for example, says where it was
        and what to do; that there is no such file is none of these."""
        try:
            yield
        except (FileNotFoundError, StoreError):
            raise
        except (OSError, pa.ArrowException) as error:
            # What pyarrow says of a file's content is a subclass.
            of_store = isinstance(error, OSError) or type(error) is pa.ArrowException
            if self.local or not self.address or not of_store:
                raise
            raise StoreError(_explained(self.address, dict(self.options), error)) from error


class StoreError(OSError):
    """A store did not do what it was asked; the message says where, why and what to do."""


def locate(uri: str | os.PathLike[str]) -> Location:
    """The location that a path or URI (s3://, gs://, abfs://, hdfs://, file://) names; a URI's
    query holds options (`core/address.py`).

    Raises `ValueError` for a scheme that there is not, an option, or credentials in it; `OSError`
    for a store that cannot be reached.
    """
    text = os.fspath(uri)
    if not is_remote(text):
        if text.startswith("file://"):
            text = unquote(text.removeprefix("file://"))
        return Location(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
    address, options = split(text.rstrip("/"))
    address = address.rstrip("/")
    try:
        filesystem, path = open_store(address, options)
    except OSError as error:
        raise StoreError(_explained(address, options, error)) from error
    scheme, _, rest = address.partition("://")
    authority, slash, key = rest.partition("/")
    plain = f"{scheme}://{authority}{slash}{quote(unquote(key))}"
    return Location(filesystem, path, plain, tuple(sorted(options.items())))


def _send(filesystem: pafs.FileSystem, path: str, content: pa.Buffer) -> None:
    """Closing a stream publishes what was written to it, so it is closed only once all is."""
    stream = filesystem.open_output_stream(path)
    stream.write(content)
    stream.close()


def _explained(address: str, options: Mapping[str, str], error: Exception) -> str:
    kind, reason = kind_of(address), str(error).splitlines()[0].rstrip(".")
    at = f" at {options['endpoint']}" if "endpoint" in options else ""
    if "libjvm" in reason or "libhdfs" in reason:
        return f"{address}: {reason}. {_HADOOP}"
    return (
        f"{address}{at}: {reason}. What may pass was tried again. See that the store answers, that "
        "endpoint and region are right (`storage` in the configuration) and that credentials are "
        f"in the environment ({credentials_of(kind)}); then give the same command again: what is "
        "finished stays"
    )


_HADOOP = (
    "hdfs:// needs Java and Hadoop's native library on every node: set JAVA_HOME, HADOOP_HOME and "
    "CLASSPATH (`hadoop classpath --glob`)"
)
