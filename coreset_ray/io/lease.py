"""A lease on a folder, for one run at a time; in an object store too, where no file can be created
exclusively and no two clocks agree.

Whoever wants it takes a number, one above all that it sees, and the lowest number still claimed has
the lease (Lamport, 1974, the bakery algorithm: it asks of the store only that a write is whole and
that a listing shows what was written before). A holder rewrites its claim as long as it lives. One
that another has watched unchanged for `TTL` seconds, by its own steady clock, has lost it; a dead
process of the same machine at once. Numbers only rise: they fence off whoever was overtaken.
"""

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreset_ray.io.filesystem import Location

_log = logging.getLogger(__name__)

TTL = 60.0  # seconds after which a claim that does not change is given up
_BEAT = 10.0  # seconds between changes of a claim
_POLL = 0.5
_CLAIM = re.compile(r"(\d{8})-([0-9a-f]{32})\.json")
_CHOOSING = re.compile(r"choosing-([0-9a-f]{32})\.json")


class Held(RuntimeError):
    """Somebody else has the lease, and is alive."""


class Overtaken(RuntimeError):
    """The lease was lost to somebody who took this run for dead."""


@dataclass(frozen=True)
class Claim:
    """number, id: of the bakery; mark: changes with every beat; told: what its owner wrote."""

    number: int
    id: str
    mark: Any
    told: dict[str, Any]

    @property
    def place(self) -> tuple[int, str]:
        return self.number, self.id

    @property
    def over(self) -> bool:
        """Whether its owner let go of it, or is a process of this machine that is gone."""
        return bool(self.told.get("released")) or _is_gone(self.told)


class Lease:
    """Entered by `hold`. number: above that of every holder before."""

    def __init__(self, folder: Location, told: dict[str, Any]):
        self._folder, self._id = folder, uuid.uuid4().hex
        self._told = {**_myself(), **told}
        self._stop, self._lock = threading.Event(), threading.Lock()
        self.number = 0

    def check(self) -> None:
        """Raises `Overtaken` where somebody else has entered since."""
        claims = _claims(self._folder)
        later = [c for c in claims if c.place > (self.number, self._id) and c.told.get("entered")]
        if later or all(c.id != self._id for c in claims):
            by = f" by {_name(later[0].told)}" if later else ""
            raise Overtaken(
                f"this run was silent for more than {TTL:.0f} seconds, and its workspace was taken "
                f"over{by}: what it had not published is left to that one"
            )

    def _take_number(self) -> None:
        choosing = self._folder / f"choosing-{self._id}.json"
        try:
            choosing.write_json(self._told)
            self.number = 1 + max((c.number for c in _claims(self._folder)), default=0)
            self._write()
        finally:
            choosing.delete()

    def _write(self, **more: Any) -> None:
        self._told |= more
        self._claim.write_json({**self._told, "beat": time.time_ns()})

    @property
    def _claim(self) -> Location:
        return self._folder / f"{self.number:08d}-{self._id}.json"

    def _enter(self, wait: float) -> None:
        """Waits for those before it."""
        start = time.monotonic()
        seen: dict[str, tuple[Any, float]] = {}
        alive: Claim | None = None
        while ahead := self._ahead():
            now = time.monotonic()
            for claim in ahead:
                mark, since = seen.get(claim.id, (claim.mark, now))
                if mark != claim.mark or _is_here(claim.told):
                    alive = claim
                if mark != claim.mark:
                    since = now
                elif now - since > TTL:
                    _log.warning("%s is silent and is taken to be dead", _name(claim.told))
                    (self._folder / _file_of(claim)).delete()
                seen[claim.id] = claim.mark, since
            if alive is not None and now - start >= wait:
                raise Held(
                    f"{_name(alive.told)} works in {self._folder.uri.rpartition('/')[0]!r}: wait "
                    "for it (--wait SECONDS waits), or name another workspace"
                )
            time.sleep(_POLL)

    def _ahead(self) -> list[Claim]:
        """Who is choosing a number, and who has a lower one; those that are gone are cleared."""
        mine = (self.number, self._id)
        # In this order: one that chooses no more has its claim there by the time those are listed.
        others = [c for c in [*_choosing(self._folder), *_claims(self._folder)] if c.place < mine]
        for claim in others:
            if claim.over:
                (self._folder / _file_of(claim)).delete()
        return [claim for claim in others if not claim.over]

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT):
            with suppress(OSError), self._lock:  # a store out of reach for a while
                if self._stop.is_set():
                    return
                try:
                    self.check()
                except Overtaken:
                    self._claim.delete()  # it may have been rewritten after it was cleared
                    return
                self._write()

    def _release(self) -> None:
        self._stop.set()
        with self._lock, suppress(OSError):
            if self._claim.exists():
                self._write(released=True)


@contextmanager
def hold(folder: Location, *, wait: float = 0.0, **told: Any) -> Iterator[Lease]:
    """Holds the lease on a folder for the length of the block.

    Waits for a holder that gives no sign of life to have been silent for `TTL` seconds, and for a
    living one `wait` seconds at most, then raises `Held`, which names it. told: of this run, for
    whoever has to wait for it.
    """
    lease = Lease(folder, told)
    beat = threading.Thread(target=lease._beat, name="lease", daemon=True)
    try:
        lease._take_number()
        beat.start()
        lease._enter(wait)
        with lease._lock:
            lease._write(entered=True)
        yield lease
    finally:
        lease._release()


def _file_of(claim: Claim) -> str:
    return f"{claim.number:08d}-{claim.id}.json" if claim.number else f"choosing-{claim.id}.json"


def _claims(folder: Location) -> list[Claim]:
    return [c for c in _read(folder) if c.number]


def _choosing(folder: Location) -> list[Claim]:
    """With the number 0: they go before everybody who has one."""
    return [c for c in _read(folder) if not c.number]


def _read(folder: Location) -> list[Claim]:
    found = []
    for info in folder.listing():
        numbered, choosing = _CLAIM.fullmatch(info.base_name), _CHOOSING.fullmatch(info.base_name)
        if not numbered and not choosing:
            continue
        place = folder / info.base_name
        try:
            told = _told(place)
        except OSError:
            if place.exists():
                raise
            continue  # let go of since
        if numbered:
            found.append(Claim(int(numbered[1]), numbered[2], told.get("beat"), told))
        elif choosing:
            found.append(Claim(0, choosing[1], None, told))
    return found


def _told(place: Location) -> dict[str, Any]:
    try:
        told = place.read_json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return told if isinstance(told, dict) else {}


def _name(told: dict[str, Any]) -> str:
    what = f"`coreset-ray {told['command']}`" if told.get("command") else "another run"
    return f"{what} (process {told.get('pid')} on {told.get('host')}, since {told.get('since')})"


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _machine() -> list[str]:
    """What tells this boot of this machine, and this name space of processes, from all others."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return [boot.read_text().strip(), os.readlink(space)]
    except OSError:
        return [uuid.uuid4().hex]  # nothing can be said of another process


def _started(pid: int) -> str | None:
    """When a process of this machine started, in its own ticks; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_gone(told: dict[str, Any]) -> bool:
    """Whether it is a process of this machine that has ended."""
    return told.get("machine") == _machine() and told["started"] != _started(told["pid"])


def _is_here(told: dict[str, Any]) -> bool:
    """Whether it is a process of this machine that has not."""
    return told.get("machine") == _machine() and told["started"] == _started(told["pid"])
