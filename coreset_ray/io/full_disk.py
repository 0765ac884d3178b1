"""A disk without room, said in words."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota used up", errno.EFBIG: "limit reached"}


class FullDisk(OSError):
    """A file could not be written for want of room; the message names it and the remedy."""


@contextmanager
def naming(path: str | os.PathLike[str], elsewhere: str = "") -> Iterator[None]:
    """Raises `FullDisk` where the block finds no room to write this file.

    elsewhere: the setting that would have it written on another disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        other = f", or name a folder of a larger disk by {elsewhere}" if elsewhere else ""
        raise FullDisk(
            f"{_FULL[error.errno]} to write {os.fspath(path)!r}: make room there{other}, and give "
            "the same command again; what is finished is kept"
        ) from error
