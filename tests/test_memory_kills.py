"""What Ray kills because a node is short of memory: said, done again, and not for ever."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from chains import CHAIN, configuration, pool_of, results, undisturbed
from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory
from ray_head import free_port
from raylets import Driver, nodes

from coreset_ray.distributed import memory_kills
from coreset_ray.distributed.memory_kills import MemoryKills
from coreset_ray.distributed.progress import Progress

JOB = "01000000"


def killed(name: str, *, job: str = JOB, ip: str = "10.0.0.1") -> SimpleNamespace:
    why = f"Memory was 9 GB / 10 GB\nSelected to kill: (Task: job ID={job}, lease ID=0400)"
    return SimpleNamespace(worker_id=name, ip=ip, exit_detail=why)


def test_each_kill_of_the_runs_own_processes_is_said_once(caplog):
    seen = MemoryKills()
    ours = [killed("a"), killed("b"), killed("c", ip="10.0.0.2")]
    seen.look([*ours, killed("x", job="02000000")], JOB)
    seen.look(ours, JOB)
    seen.look([SimpleNamespace(worker_id="d", ip="10.0.0.1", exit_detail=None)], JOB)
    assert [m.partition(",")[0] for m in caplog.messages] == [
        "2 processes of this run were killed on 10.0.0.1",
        "1 processes of this run were killed on 10.0.0.2",
    ]
    assert not seen.reason


def test_nothing_but_kills_ends_a_run_and_anything_done_between_does_not():
    seen = MemoryKills(most=3)
    seen.look([killed("a")], JOB)
    seen.look([killed("b")], JOB)
    seen.look([killed("b")], JOB)
    with Progress("stage", 2, "parts") as progress:
        progress.update(0)
        assert not seen.reason
        progress.update(1)
    seen.look([killed("c")], JOB)
    seen.look([killed("d"), killed("e")], JOB)
    assert not seen.reason, "the first two were before the run got on"
    seen.look([killed("f")], JOB)
    assert seen.reason.startswith("4 processes were killed for want of memory")
    assert seen.reason.endswith("Memory was 9 GB / 10 GB")


def terminate(*_: object) -> None:
    sys.exit(143)


@pytest.fixture
def signals_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Full(MemoryKills):
    def once(self) -> None:
        self.reason = "too small"
        super().once()


@pytest.mark.usefixtures("signals_back", "ray_local")
@pytest.mark.parametrize(
    ("interrupted", "terminated"),
    [
        (signal.default_int_handler, signal.SIG_DFL),
        (signal.SIG_IGN, terminate),  # as of a command in the background of a shell
    ],
)
def test_the_run_ends_with_the_reason_even_while_it_waits(monkeypatch, interrupted, terminated):
    monkeypatch.setattr(memory_kills, "_SECONDS", 0.01)
    monkeypatch.setattr(memory_kills, "list_workers", lambda **_: [])
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, terminated)
    with pytest.raises(RuntimeError, match="too small"), Full():
        threading.Event().wait(60)


@pytest.mark.usefixtures("signals_back", "ray_local")
def test_who_listens_to_no_signal_is_told_the_reason(monkeypatch, caplog):
    monkeypatch.setattr(memory_kills, "list_workers", lambda **_: [])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Full().once()
    assert caplog.messages == ["too small"]


def test_an_interrupt_by_hand_stays_one():
    with pytest.raises(KeyboardInterrupt), MemoryKills():
        raise KeyboardInterrupt


def cluster_of_one(threshold: float):
    return nodes(
        1,
        num_cpus=2,
        include_dashboard=True,
        dashboard_port=free_port(),
        _system_config={"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 100},
    )


def drive(one, command, config, *, most=30):
    """A command of ours, looking for kills every second."""
    line = (
        "from coreset_ray import cli; from coreset_ray.distributed import memory_kills as kills; "
        f"kills._SECONDS, kills._MOST = 1.0, {most}; cli.main({[command, str(config)]!r})"
    )
    log = config.parent / f"{command}-{time.monotonic_ns()}.log"
    environment = {**os.environ, "RAY_ADDRESS": one.cluster.address}
    with log.open("w") as sink:
        words = [sys.executable, "-c", line]
        return Driver(subprocess.Popen(words, env=environment, stdout=sink, stderr=sink), log)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return pool_of(tmp_path_factory.mktemp("pool"))


@pytest.mark.slow
def test_a_run_on_a_node_that_is_too_small_ends_and_says_so(pool, tmp_path):
    with cluster_of_one(0.01) as one:
        driver = drive(one, CHAIN[0], configuration(tmp_path, pool, 3000), most=5)
        code = driver.process.wait(240)
    told = driver.log.read_text()
    assert code == 1, told
    assert "processes were killed for want of memory" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_what_ray_kills_for_want_of_memory_is_done_again(pool, tmp_path):
    """By its own monitor, on a node that something else fills for a while."""
    expected = tmp_path / "expected"
    expected.mkdir()
    wanted = undisturbed(expected, pool, 200_000)
    room = 8 << 30
    with cluster_of_one((get_used_memory() + room) / get_system_memory()) as one:
        for command in CHAIN:
            driver, filling = drive(one, command, configuration(tmp_path, pool, 200_000)), []
            while command == "run" and "short of memory" not in driver.log.read_text():
                assert driver.process.poll() is None, "it ended before anything was killed"
                filling.append(np.ones(1 << 28, np.uint8))
                time.sleep(0.05)
            del filling
            driver.ends()
    assert results(tmp_path) == wanted
