"""A Ray head as users have one: `ray start`, its dashboard, and token authentication."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = "0123456789abcdef0123456789abcdef"
_AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
_PORTS = (
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
    *("metrics-export-port", "runtime-env-agent-port"),
)


@dataclass(frozen=True)
class Head:
    """dashboard: its address; environment: of a client that has the token."""

    dashboard: str
    environment: dict[str, str]

    def job(self, *words: str, token: str | None = TOKEN) -> subprocess.CompletedProcess:
        """`ray job …`, to its end."""
        line = [RAY, "job", words[0], "--address", self.dashboard, *words[1:]]
        environment = {**self.environment, "RAY_AUTH_TOKEN": token or ""}
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)

    def get(self, path: str) -> str:
        """What the dashboard answers."""
        request = urllib.request.Request(
            f"{self.dashboard}{path}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()


@contextmanager
def running(folder: Path) -> Iterator[Head]:
    """A head of two CPUs, for the length of the block. folder: for its log."""
    given = {name: free_port() for name in _PORTS}
    line = [RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    line += ["--dashboard-host=127.0.0.1", *(f"--{name}={port}" for name, port in given.items())]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | _AUTH
    dashboard = Head(f"http://127.0.0.1:{given['dashboard-port']}", environment)
    log = folder / "head.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            line, env=environment, stdout=sink, stderr=sink, start_new_session=True
        )
    try:
        _wait(dashboard, process, log)
        yield dashboard
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(head: Head, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            head.get("/api/version")
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)


def free_port() -> int:
    """One that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
