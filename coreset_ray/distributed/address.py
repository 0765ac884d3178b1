"""Which Ray a run uses, and whether anything answers there."""

import logging
import os
import socket
import time
from urllib.parse import urlsplit

from ray._private.utils import read_ray_address

_log = logging.getLogger(__name__)

_PATIENCE = 20.0  # seconds that a given address has to answer: its head may be starting
_LATEST = 5.0  # seconds for the one that runs here, or ran


def find_ray(address: str | None) -> str | None:
    """What to give `ray.init`: `address`, else RAY_ADDRESS, else None, by which Ray finds the
    cluster that `ray start` began on this machine (and its token), if that answers, else "local".

    Raises `ConnectionError` where nothing answers at an address that was given; Ray itself would
    wait for it a quarter of an hour.
    """
    given = address or os.environ.get("RAY_ADDRESS")
    if given:
        _wait_for_answer(given, _PATIENCE)
        return given
    latest = read_ray_address()
    if not latest:
        return "local"
    try:
        _wait_for_answer(latest, _LATEST)
    except ConnectionError as error:
        _log.warning(
            "the Ray that last ran on this machine, at %s, does not answer (%s), so the run starts "
            "one of its own; `ray stop` makes it forgotten",
            latest,
            error,
        )
        return "local"
    return None


def _wait_for_answer(address: str, patience: float) -> None:
    """Until something takes a connection there. A name such as `local` or `auto` is Ray's to
    understand."""
    where = urlsplit(address if "://" in address else f"//{address}")
    if where.hostname is None or where.port is None:
        return
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((where.hostname, where.port), patience).close()
            return
        except OSError as error:
            if time.monotonic() + 1 > deadline:
                raise ConnectionError(str(error)) from error
            time.sleep(1)
