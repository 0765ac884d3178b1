"""Which Ray a run uses: none that is dead, and no waiting without a word."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from ray_head import free_port

from coreset_ray.distributed import address, session


@pytest.fixture
def listening() -> Iterator[str]:
    """An address at which something listens, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(autouse=True)
def none_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(address, "read_ray_address", lambda: None)
    monkeypatch.setattr(address, "_PATIENCE", 0.5)
    monkeypatch.setattr(address, "_LATEST", 0.5)


def test_in_order_given_environment_running_own(listening, monkeypatch) -> None:
    assert address.find_ray(None) == "local"
    monkeypatch.setattr(address, "read_ray_address", lambda: listening)
    assert address.find_ray(None) is None  # Ray finds it by itself, with its token
    assert address.find_ray("local") == "local"
    for named in ("auto", "local"):
        monkeypatch.setenv("RAY_ADDRESS", named)
        assert address.find_ray(None) == named
        assert address.find_ray(listening) == listening
        assert address.find_ray(f"ray://{listening}") == f"ray://{listening}"


def test_a_ray_that_ran_here_and_died_is_not_waited_for(nobody, monkeypatch, caplog) -> None:
    monkeypatch.setattr(address, "read_ray_address", lambda: nobody)
    assert address.find_ray(None) == "local"
    assert f"at {nobody}, does not answer" in caplog.text and "`ray stop`" in caplog.text


@pytest.mark.parametrize("where", ["{}", "ray://{}", "localhost.invalid:1"])
def test_nobody_at_a_given_address(nobody: str, where: str, monkeypatch) -> None:
    where = where.format(nobody)
    with pytest.raises(ConnectionError):
        address.find_ray(where)
    monkeypatch.setenv("RAY_ADDRESS", where)
    with pytest.raises(ConnectionError):
        address.find_ray(None)


def test_a_head_that_starts_late_is_waited_for(nobody: str, monkeypatch) -> None:
    monkeypatch.setattr(address, "_PATIENCE", 20)
    host, port = nobody.split(":")
    servers: list[socket.socket] = []
    late = threading.Timer(0.5, lambda: servers.append(socket.create_server((host, int(port)))))
    late.start()
    try:
        assert address.find_ray(nobody) == nobody
    finally:
        late.join()
        servers[0].close()


def attempt(where: str) -> str:
    """The last line of what a session in a process of its own raises."""
    lines = """if True:
        from coreset_ray.distributed import address, session
        address._PATIENCE = 0.5
        with session.session():
            pass"""
    ended = subprocess.run(
        [sys.executable, "-c", lines],
        env={**os.environ, "RAY_ADDRESS": where},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode
    return ended.stderr.strip().splitlines()[-1]


def test_a_session_names_the_address_and_the_remedy(nobody: str) -> None:
    last = attempt(nobody)
    assert last.startswith(f"ValueError: no Ray cluster answers at {nobody}: [Errno 111]")
    assert "`ray start --head`" in last and "compute.address=local" in last


@pytest.mark.slow
def test_what_listens_and_is_no_ray_is_not_waited_for_either(listening: str) -> None:
    last = attempt(listening)
    assert f"no Ray cluster answers at {listening}: " in last and "Timed out" in last


def test_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORESET_A", "before")
    monkeypatch.delenv("CORESET_B", raising=False)
    with session._environment({"CORESET_A": "within", "CORESET_B": "within"}):
        assert os.environ["CORESET_A"] == os.environ["CORESET_B"] == "within"
    assert os.environ["CORESET_A"] == "before" and "CORESET_B" not in os.environ
