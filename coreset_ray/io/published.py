"""The versions of a standing selection: v000001, v000002 … below one folder, and which is current.

A version counts once its done.json is there, written last; the highest that counts is the current
one. current.json names it for whoever reads the folder by eye. Two runs never write one version:
each begins one of its own, whose number it leaves behind if it is lost.
"""

import re
from dataclasses import dataclass
from typing import Any

from coreset_ray.io.filesystem import Location
from coreset_ray.io.lease import Lease, Overtaken

_NAME = re.compile(r"v(\d{6,})")


@dataclass(frozen=True)
class Version:
    """A finished one. record: what its done.json says."""

    number: int
    folder: Location
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return version_name(self.number)

    @property
    def manifest(self) -> Location:
        return self.folder / "manifest.parquet"


def version_name(number: int) -> str:
    return f"v{number:06d}"


class Published:
    """The versions below a folder."""

    def __init__(self, folder: Location):
        self.folder = folder

    def versions(self) -> list[Version]:
        """Those that count, oldest first."""
        found = []
        for number in self._numbers():
            folder = self.folder / version_name(number)
            if (done := folder / "done.json").exists():
                found.append(Version(number, folder, done.read_json()))
        return found

    def current(self) -> Version | None:
        for number in reversed(self._numbers()):
            folder = self.folder / version_name(number)
            if (done := folder / "done.json").exists():
                return Version(number, folder, done.read_json())
        return None

    def begin(self, lease: Lease) -> tuple[int, Location]:
        """The number and folder of a new version, above all that were ever begun."""
        lease.check()
        number = 1 + max(self._numbers(), default=0)
        folder = self.folder / version_name(number)
        (folder / "owner.json").write_json({"lease": lease.number})
        return number, folder

    def publish(self, number: int, record: dict[str, Any], lease: Lease) -> Version:
        """Makes a version that is whole in its folder count, and the pointer name it.

        Raises `Overtaken` where another run has taken over in the meantime; the version then does
        not count.
        """
        version = Version(number, self.folder / version_name(number), record)
        done = version.folder / "done.json"
        lease.check()
        done.write_json(record)
        try:
            lease.check()
        except Overtaken:
            done.delete()
            raise
        self.point()
        return version

    def point(self) -> None:
        """Makes current.json name the current version, whoever else writes it meanwhile."""
        named = None
        while (last := self.current()) is not None and last.number != named:
            named = last.number
            (self.folder / "current.json").write_json({"version": named, "folder": last.name})

    def _numbers(self) -> list[int]:
        names = (info.base_name for info in self.folder.listing())
        return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
