"""What every source of shards speaks: a sample, its key, and splits that are read one by one."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_KEY = re.compile(r"(?!__)[A-Za-z0-9_\-/]+")
_EXTENSION = re.compile(r"[^_./\s][^/\s]*")


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: `members` maps an extension without its dot to the file's bytes.

    WebDataset cuts a name at its first dot, lower-cases the extension, and skips names that
    start with two underscores; a key or extension that this would change is refused.
    """

    key: str
    members: dict[str, bytes]

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(
                f"key {self.key!r} is not safe in a WebDataset shard: use letters, digits, "
                "'_', '-' and '/', with no '__' in front"
            )
        for extension in self.members:
            if not is_member_extension(extension):
                raise ValueError(
                    f"extension {extension!r} of key {self.key!r} does not survive WebDataset: use "
                    "lower case, no '/', no blank, and no '.' or '_' in front"
                )


@dataclass(frozen=True)
class Split:
    """`size` samples of which `read(i)` makes the i-th; nothing is read before it is asked for."""

    size: int
    read: Callable[[int], Sample]

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(self.size))

    def shuffled(self, seed: int) -> Iterator[Sample]:
        """Every sample once, in an order set by `seed`; only indices are held in memory."""
        order = np.random.default_rng(seed).permutation(self.size)
        return (self.read(int(i)) for i in order)


@dataclass(frozen=True)
class Source:
    """An opened source: its splits by name, its class names by index, and files left out."""

    splits: dict[str, Split]
    classes: tuple[str, ...] = ()
    ignored: int = 0


def is_member_extension(extension: str) -> bool:
    """Whether WebDataset reads back a member with this extension under the same name."""
    return bool(_EXTENSION.fullmatch(extension)) and extension == extension.lower()


def safe_keys(names: Iterable[tuple[str, ...]]) -> list[str]:
    """One unique, safe key for each path (a tuple of its parts), in the order given.

    Each run of other characters becomes one `_`; a key already taken gets `_1`, `_2`, ….
    """
    taken: set[str] = set()
    tried: Counter[str] = Counter()
    keys = []
    for parts in names:
        base = key = "/".join(_safe_part(part) for part in parts)
        while key in taken:
            tried[base] += 1
            key = f"{base}_{tried[base]}"
        taken.add(key)
        keys.append(key)
    return keys


def read_bytes(path: Path) -> bytes:
    """The file's bytes. ValueError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"cannot read {str(path)!r} ({error.strerror}): check that it still exists and that "
            "you may read it, or remove it from the source"
        ) from error


def _safe_part(part: str) -> str:
    return re.sub(r"^_+", "_", re.sub(r"[^A-Za-z0-9_\-]+", "_", part))
