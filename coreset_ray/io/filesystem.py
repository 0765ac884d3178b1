"""Files by URI, local or in an object store, through pyarrow; writes are whole or absent."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
from pyarrow import fs as pafs


@dataclass(frozen=True)
class Location:
    """A file or folder: a filesystem and a path on it, without a trailing slash."""

    fs: pafs.FileSystem
    path: str

    def __truediv__(self, name: str) -> "Location":
        return Location(self.fs, f"{self.path}/{name}")

    @property
    def local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def uri(self) -> str:
        """A path for a local file, otherwise scheme://path: what `locate` takes back."""
        return self.path if self.local else f"{self.fs.type_name}://{self.path}"

    def exists(self) -> bool:
        return self.fs.get_file_info(self.path).type != pafs.FileType.NotFound

    def open_stream(self) -> BinaryIO:
        """For one reading from start to end, of the bytes as they are (pyarrow would unpack a
        .gz unasked); remote reads are buffered by the megabyte."""
        stream = self.fs.open_input_stream(self.path, compression=None, buffer_size=1 << 20)
        return cast(BinaryIO, stream)

    def open_file(self) -> BinaryIO:
        """For reading at any offset."""
        return cast(BinaryIO, self.fs.open_input_file(self.path))

    def read_json(self) -> Any:
        with self.open_stream() as stream:
            return json.loads(stream.read())

    def write_json(self, data: Any) -> None:
        with self.replacing() as sink:
            sink.write(json.dumps(data, indent=1, sort_keys=True).encode() + b"\n")

    @contextmanager
    def replacing(self) -> Iterator[BinaryIO]:
        """A sink whose content takes the file's place when the block ends without an error.

        Locally: a temporary file beside it, flushed to disk, then renamed. In an object store:
        a buffer, then one upload, which the store makes visible as a whole.
        """
        if not self.local:
            buffer = pa.BufferOutputStream()
            yield cast(BinaryIO, buffer)
            with self.fs.open_output_stream(self.path) as stream:
                stream.write(buffer.getvalue())
            return
        target = Path(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / f".{uuid.uuid4().hex}.partial"
        try:
            with partial.open("wb") as sink:
                yield sink
                sink.flush()
                os.fsync(sink.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def locate(uri: str | os.PathLike[str]) -> Location:
    """The location that a path or URI (s3://, gs://, abfs://, hdfs://, file://) names.

    Raises `ValueError` for a scheme that pyarrow does not know.
    """
    text = os.fspath(uri)
    if "://" not in text:
        return Location(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{text!r}: {error}; use a local path, s3://, gs://, abfs:// or hdfs://"
        ) from error
    return Location(filesystem, path.rstrip("/"))
