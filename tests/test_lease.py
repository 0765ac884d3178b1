"""One run at a time in a workspace: who has the lease, who waits, who is overtaken."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from coreset_ray import cli
from coreset_ray.io import lease
from coreset_ray.io.filesystem import locate
from coreset_ray.io.lease import Held, Overtaken, hold

QUICK = "from coreset_ray.io import lease; lease.TTL, lease._BEAT, lease._POLL = 30.0, 0.05, 0.01"
MANY = """
import os, sys, time
{quick}
from coreset_ray.io.filesystem import locate
folder, log = locate(sys.argv[1]), sys.argv[2]
def tell(word, number):
    with open(log, "a") as file:
        file.write(f"{{word}} {{os.getpid()}} {{number}}\\n")
for _ in range(int(sys.argv[3])):
    with lease.hold(folder, wait=60) as held:
        tell("in", held.number)
        time.sleep(0.002)
        held.check()
        tell("out", held.number)
"""
HOLDER = """
import sys, time
{quick}
from coreset_ray.io.filesystem import locate
with lease.hold(locate(sys.argv[1]), command="score"):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "_BEAT", 0.05)
    monkeypatch.setattr(lease, "_POLL", 0.01)


def process(script: str, *words) -> subprocess.Popen:
    line = [sys.executable, "-c", script.format(quick=QUICK), *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lease."""
    other = process(HOLDER, tmp_path / "lease")
    assert other.stdout is not None and other.stdout.readline() == "in\n"
    yield other
    other.kill()
    other.communicate()


def elsewhere(folder: Path) -> None:
    """The claims of other processes, as if they were of another machine."""
    for file in folder.glob("0*.json"):
        told = json.loads(file.read_text())
        file.write_text(json.dumps(told | {"machine": ["other"], "host": "other"}))


def claims(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_one_at_a_time_whoever_comes(tmp_path):
    """Several processes in turns: what they do inside never overlaps, and numbers rise."""
    log = tmp_path / "log"
    runs = [process(MANY, tmp_path / "lease", log, 5) for _ in range(3)]
    assert all(run.communicate()[0] == "" and run.returncode == 0 for run in runs)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 2 * 3 * 5
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    assert all((a[0], b[0]) == ("in", "out") and a[1:] == b[1:] for a, b in pairs)
    assert len({a[1] for a, _ in pairs}) == 3
    # One who took the same number at the same moment comes after, by its name.
    numbers = [int(a[2]) for a, _ in pairs]
    assert numbers == sorted(numbers)


def test_a_living_holder_is_named_and_left_alone(tmp_path, holder):
    folder = locate(tmp_path / "lease")
    named = rf"`coreset-ray score` \(process {holder.pid} on .*--wait"
    with pytest.raises(Held, match=named), hold(folder):
        pytest.fail("two hold it")
    with hold_in_thread(folder, wait=60) as later:
        time.sleep(0.3)
        assert later.is_alive()
        holder.send_signal(signal.SIGINT)
        later.join(30)
        assert not later.is_alive()


class hold_in_thread:
    def __init__(self, folder, wait):
        self.thread = threading.Thread(target=self._run, args=(folder, wait))

    def _run(self, folder, wait):
        with hold(folder, wait=wait):
            pass

    def __enter__(self):
        self.thread.start()
        return self.thread

    def __exit__(self, *_):
        self.thread.join()


def test_a_living_holder_elsewhere_is_known_by_its_beat(tmp_path, monkeypatch, holder):
    folder = tmp_path / "lease"
    monkeypatch.setattr(lease, "_machine", lambda: ["not that one"])
    with pytest.raises(Held, match="coreset-ray score"), hold(locate(folder)):
        pytest.fail("two hold it")


def test_a_process_of_this_machine_that_is_gone_does_not_hold_up(tmp_path, holder):
    holder.kill()
    holder.wait()
    start = time.monotonic()
    with hold(locate(tmp_path / "lease")) as held:
        assert held.number == 2
    assert time.monotonic() - start < lease.TTL / 2
    assert len(claims(tmp_path / "lease")) == 1, "the dead one's claim is cleared"


def test_a_silent_holder_elsewhere_is_overtaken(tmp_path, monkeypatch, holder, caplog):
    holder.kill()
    holder.wait()
    elsewhere(tmp_path / "lease")
    monkeypatch.setattr(lease, "TTL", 0.3)
    with hold(locate(tmp_path / "lease")):
        pass
    assert "on other, since" in caplog.text and "taken to be dead" in caplog.text


def test_who_was_overtaken_may_not_publish(tmp_path, monkeypatch):
    """A run that slept while another took over finds out, and its beat does not come back."""
    folder = locate(tmp_path / "lease")
    with hold(folder, command="reselect") as slept:
        slept.check()
        with slept._lock:  # as if the machine were suspended
            elsewhere(tmp_path / "lease")
            monkeypatch.setattr(lease, "TTL", 0.2)
            with hold(folder, command="run") as second:
                assert second.number > slept.number
                with pytest.raises(Overtaken, match=r"taken over by `coreset-ray run` \(process"):
                    slept.check()
                second.check()
        time.sleep(0.3)
        assert [name[:8] for name in claims(tmp_path / "lease")] == [f"{second.number:08d}"]


def test_clocks_are_not_asked(tmp_path, monkeypatch, holder):
    """A clock that jumps an hour ahead makes nobody dead."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    monkeypatch.setattr(lease, "_machine", lambda: ["not that one"])
    for file in (tmp_path / "lease").iterdir():
        os.utime(file, (0, 0))
    with pytest.raises(Held), hold(locate(tmp_path / "lease")):
        pytest.fail("two hold it")


def test_a_claim_that_is_no_json_holds_up_until_it_is_silent(tmp_path, monkeypatch):
    folder = tmp_path / "lease"
    folder.mkdir()
    (folder / f"{7:08d}-{'a' * 32}.json").write_bytes(b"\xff{")
    monkeypatch.setattr(lease, "TTL", 0.2)
    with hold(locate(folder)) as held:
        assert held.number == 8


def test_what_was_released_leaves_one_file(tmp_path):
    for number in range(1, 4):
        with hold(locate(tmp_path)) as held:
            assert held.number == number
    assert len(claims(tmp_path)) == 1


def test_the_command_line_keeps_others_out(tmp_path, capsys, holder):
    """A stage that writes is refused with the holder's name; one that only reads is not."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"workspace: {tmp_path}\npool: {{shards: {tmp_path}/none}}\nselect: {{budget: 5}}\n"
    )
    for words, told in (
        (["embed", str(config)], f"`coreset-ray score` (process {holder.pid} on "),
        (["plan", str(config)], f"'{tmp_path}/none' does not exist"),
    ):
        with pytest.raises(SystemExit) as status:
            cli.main(words)
        assert told in capsys.readouterr().err and status.value.code == 1 + (words[0] == "plan")
