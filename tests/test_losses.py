"""Processes and nodes that are lost: how long a stage goes on, what is said of it, and what is
refused or given up instead of being tried for ever. Without Ray: its part is played here."""

import logging
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import NodeDiedError, RayActorError, RayError, WorkerCrashedError

from coreset_ray.distributed import attempts, shared, watch
from coreset_ray.distributed import losses as losses_module
from coreset_ray.distributed.attempts import MOST, Attempts, given_up
from coreset_ray.distributed.losses import LOST, Losses, reason
from coreset_ray.distributed.shared import check_shared
from coreset_ray.distributed.watch import Need, Watch, needing
from coreset_ray.io.filesystem import locate

quick = settings(max_examples=100, deadline=None, database=None)

DIED = """The actor died unexpectedly before finishing this task.
	class_name: PartWriter
	actor_id: 4ba0a4bd1a3f
	pid: 4711
	ip: 10.0.0.7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"""


# --- losses with and without progress ----------------------------------------------------------


@pytest.fixture(autouse=True)
def waited(monkeypatch):
    """The pauses that would have been made."""
    pauses: list[float] = []
    monkeypatch.setattr(losses_module, "time", SimpleNamespace(sleep=pauses.append))
    return pauses


@quick
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 6))
def test_a_stage_ends_when_it_only_loses_and_not_before(events, most):
    """events: a loss, or progress."""
    losses, row = Losses("embed", most), 0
    for lost in events:
        if not lost:
            losses.got_on()
            row = 0
            continue
        row += 1
        error = RayActorError(error_msg=DIED)
        if row < most:
            losses.met(error)
            continue
        with pytest.raises(RuntimeError) as end:
            losses.met(error)
        message = str(end.value)
        assert message.startswith(f"embed: {most} processes were lost one after another")
        assert "what is committed is kept, and the same command goes on from there" in message
        assert message.endswith("SYSTEM_ERROR on 10.0.0.7") and end.value.__cause__ is error
        return
    assert losses.count == row < most


def test_a_stage_that_gets_on_may_lose_as_often_as_it_likes(caplog):
    losses = Losses("score")
    for _ in range(1000):
        losses.met(NodeDiedError("node died"))
        losses.got_on()
    assert len(caplog.messages) == 1000
    with pytest.raises(RuntimeError, match="20 processes were lost"):
        for _ in range(20):
            losses.met(NodeDiedError("node died"))


def test_losses_without_progress_wait_longer_each_time(waited):
    losses = Losses("score")
    for _ in range(9):
        losses.met(NodeDiedError("node died"))
    assert waited == [0.05 * 2**i for i in range(7)] + [5.0, 5.0]
    losses.got_on()
    losses.met(NodeDiedError("node died"))
    assert waited[-1] == 0.05


def test_a_loss_that_is_made_up_for_is_told_in_a_line(caplog):
    Losses("score").met(RayActorError(error_msg=DIED))
    (message,) = caplog.messages
    assert message == (
        "score: a process was lost and its work is done again: The actor is dead because its "
        "worker process has died. Worker exit type: SYSTEM_ERROR on 10.0.0.7"
    )
    assert caplog.records[0].levelname == "WARNING"


def test_an_actor_that_cannot_even_start_is_not_started_again():
    error = RayActorError(
        error_msg="The actor died\nTraceback …\nMemoryError: 3 GB", actor_init_failed=True
    )
    losses = Losses("embed")
    with pytest.raises(RuntimeError, match=r"^embed: MemoryError: 3 GB$"):
        losses.met(error)


@pytest.mark.parametrize(
    "error", [RayActorError(error_msg=DIED), NodeDiedError("died"), WorkerCrashedError()]
)
def test_what_ray_raises_when_it_loses_is_a_loss(error):
    assert isinstance(error, LOST)
    assert not isinstance(ValueError("wrong"), LOST) and not isinstance(MemoryError(), LOST)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (DIED, "The actor is dead because its worker process has died. Worker exit type: "
         "SYSTEM_ERROR on 10.0.0.7"),
        ("The object was lost", "The object was lost"),
        ("first\n\n  the actor is unavailable  \nids", "the actor is unavailable"),
        ("nothing known\nids", "nothing known"),
        ("nothing known\nip: 10.1.1.1", "nothing known on 10.1.1.1"),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_the_reason_of_a_loss_says_why_and_where(text, told):
    assert reason(RuntimeError(text)) == told


@quick
@given(st.text(max_size=2000))
def test_the_reason_of_a_loss_is_one_short_line(text):
    told = reason(RuntimeError(f"the worker died: {text}"))
    assert told and len(told.splitlines()) == 1
    assert len(told) <= 300 or " on " in told


# --- the nodes of the cluster ------------------------------------------------------------------


def node(name, cpus=4.0, gpus=0.0, alive=True):
    offered = {"CPU": cpus, "memory": 1e9, **({"GPU": gpus} if gpus else {})}
    return {
        **{"NodeID": name * 16, "NodeManagerAddress": f"10.0.0.{name}", "Alive": alive},
        "Resources": offered if alive else {},
    }


def test_nodes_that_come_and_go_are_told(caplog):
    caplog.set_level(logging.INFO, "coreset_ray.distributed.watch")
    seen = Watch()
    seen.look([node("1"), node("2", gpus=2.0)])
    assert caplog.messages == [], "those that are there from the beginning are no news"
    seen.look([node("1"), node("2", gpus=2.0)])
    assert caplog.messages == []
    seen.look([node("1"), node("2", alive=False)])
    seen.look([node("1"), node("2", alive=False), node("3", cpus=2.0, gpus=1.0)])
    assert caplog.messages == [
        "node 10.0.0.2 (22222222) was lost; 1 nodes with 4 CPUs are there",
        "node 10.0.0.3 (33333333) joined; 2 nodes with 6 CPUs, 1 GPUs are there",
    ]
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


def test_what_no_node_has_room_for_is_said_once_until_one_has(caplog):
    seen = Watch()
    with needing("an encoder", cpus=1.0, gpus=1.0):
        seen.look([node("1", gpus=1.0)])
        assert caplog.messages == []
        for _ in range(3):
            seen.look([node("1")])
        assert len(caplog.messages) == 1
        assert (
            "no room among the living nodes for 1 CPU and 1 GPU, which an encoder takes"
            in caplog.messages[0]
        )
        seen.look([node("1"), node("2", gpus=1.0)])
        seen.look([node("1")])
        assert sum("no room" in message for message in caplog.messages) == 2
    caplog.clear()
    seen.look([node("1")])
    assert caplog.messages == [] and not seen.missed


def test_a_need_ends_with_its_block_even_if_that_fails():
    with pytest.raises(KeyError), needing("an encoder", cpus=1.0):
        assert len(watch._needs) == 1
        raise KeyError("x")
    assert watch._needs == []


@quick
@given(
    nodes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=4),
    cpus=st.integers(0, 3),
    gpus=st.integers(0, 2),
    count=st.integers(1, 6),
)
def test_processes_fit_where_they_can_be_placed_one_by_one(nodes, cpus, gpus, count):
    need = Need("x", float(cpus), float(gpus), count)
    free, placed = [list(each) for each in nodes], 0
    for left in free:
        while placed < count and left[0] >= cpus and left[1] >= gpus:
            left[0], left[1], placed = left[0] - cpus, left[1] - gpus, placed + 1
    there = [node("1", float(c), float(g)) for c, g in nodes]
    assert need.fits(there) == (placed == count)


def test_ten_tenths_of_a_cpu_are_one():
    assert Need("x", 0.1, 0.0, 10).fits([node("1", cpus=1.0)])
    assert not Need("x", 0.1, 0.0, 11).fits([node("1", cpus=1.0)])


def test_the_words_of_a_need_say_how_many_hold_how_much():
    assert str(Need("training", 2.0, 0.5, 3)) == (
        "2 CPU and 0.5 GPU in each of 3 processes, which training takes"
    )


def test_the_watch_looks_until_its_block_ends_and_survives_a_cluster_that_does_not_answer(
    monkeypatch,
):
    looks = []

    def nodes():
        looks.append(len(looks))
        if len(looks) == 2:
            raise ConnectionError("no answer")
        return [node("1")]

    monkeypatch.setattr(watch, "_SECONDS", 0.001)
    monkeypatch.setattr(watch, "ray", SimpleNamespace(nodes=nodes))
    with Watch() as seen:
        while len(looks) < 4:
            assert seen.thread.is_alive()
            seen.thread.join(0.001)
    seen.thread.join(30)
    assert not seen.thread.is_alive()


# --- a workspace that all nodes have to see ----------------------------------------------------


class Eyes:
    """Plays the part of a cluster of nodes "a" (this one), "b", "c" … of which some are blind."""

    def __init__(self, monkeypatch, names, blind="", silent="", dead=""):
        self.blind, self.silent, self.asked = blind, silent, []
        listed = [{"NodeID": n, "NodeManagerAddress": f"ip-{n}", "Alive": n not in dead}
                  for n in names]  # fmt: skip
        here = SimpleNamespace(get_node_id=lambda: "a")
        fake = SimpleNamespace(nodes=lambda: listed, get_runtime_context=lambda: here)
        monkeypatch.setattr(shared, "ray", fake)
        monkeypatch.setattr(shared, "_answers", self.answers)
        monkeypatch.setattr(shared, "_seen", set())

    def answers(self, nodes, mark):
        self.asked.append("".join(sorted(nodes)))
        assert mark.exists(), "or nobody could see it"
        return {n: n not in self.blind for n in nodes if n not in self.silent}


def test_a_workspace_that_all_nodes_see_is_taken_and_asked_about_once(tmp_path, monkeypatch):
    eyes = Eyes(monkeypatch, "abc", dead="c")
    for _ in range(2):
        check_shared(locate(str(tmp_path)))
    assert eyes.asked == ["b"], "the dead are not asked"
    check_shared(locate(str(tmp_path / "other")))
    assert eyes.asked == ["b", "b"], "another folder is another question"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_workspace_that_a_node_does_not_see_is_refused(tmp_path, monkeypatch):
    eyes = Eyes(monkeypatch, "abcd", blind="cd")
    for _ in range(2):  # and asked about again, as it may be mounted by then
        with pytest.raises(ValueError, match="2 of 4 nodes of the cluster do not see") as error:
            check_shared(locate(str(tmp_path)))
    message = str(error.value)
    assert f"workspace={str(tmp_path)!r} is a folder of this machine" in message
    assert "(ip-c first)" in message and "s3://, gs://, abfs://" in message
    assert eyes.asked == ["bcd", "bcd"]
    assert os.listdir(tmp_path) == [], "the mark is taken away"
    eyes.blind = ""
    check_shared(locate(str(tmp_path)))


def test_a_node_that_does_not_answer_is_asked_again_next_time(tmp_path, monkeypatch):
    eyes = Eyes(monkeypatch, "abc", silent="c")
    check_shared(locate(str(tmp_path)))
    check_shared(locate(str(tmp_path)))
    assert eyes.asked == ["bc", "c"]


def test_a_single_machine_is_not_asked(tmp_path, monkeypatch):
    eyes = Eyes(monkeypatch, "a")
    check_shared(locate(str(tmp_path / "work")))
    assert eyes.asked == [] and not (tmp_path / "work").exists()


def test_an_object_store_is_seen_by_all(monkeypatch):
    eyes = Eyes(monkeypatch, "ab", blind="b")
    check_shared(SimpleNamespace(local=False, path="bucket/work"))
    assert eyes.asked == []


def test_the_mark_is_taken_away_when_asking_fails(tmp_path, monkeypatch):
    Eyes(monkeypatch, "ab")

    def fail(*_):
        raise RayError("lost")

    monkeypatch.setattr(shared, "_answers", fail)
    with pytest.raises(RayError):
        check_shared(locate(str(tmp_path)))
    assert os.listdir(tmp_path) == []


def test_a_node_looks_some_times_before_it_says_no(tmp_path, monkeypatch):
    mark, slept = tmp_path / "mark", []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            mark.write_text("{}")

    monkeypatch.setattr(shared, "time", SimpleNamespace(sleep=sleep))
    look = shared._sees._function
    assert not look(str(tmp_path / "never"))
    tries = len(slept)
    assert tries == shared._TRIES
    slept.clear()
    assert not mark.with_name("none").exists()
    Path.unlink(mark)
    assert look(str(mark)) and len(slept) == 3, "a network's file may take a moment to show"
    assert look(str(mark)) and len(slept) == 3


def test_nodes_that_are_lost_while_they_are_asked_are_left_out(tmp_path, monkeypatch):
    answers = {"b": True, "c": False, "d": NodeDiedError("died")}

    class Sees:
        def options(self, scheduling_strategy):
            assert scheduling_strategy.soft is False, "another node's answer would be no answer"
            return SimpleNamespace(remote=lambda uri: ("task", scheduling_strategy.node_id))

    def get(task):
        if isinstance(answers[task[1]], Exception):
            raise answers[task[1]]
        return answers[task[1]]

    def wait(tasks, num_returns, timeout):
        assert num_returns == len(tasks) and timeout > 0
        return [t for t in tasks if t[1] != "e"], [t for t in tasks if t[1] == "e"]

    monkeypatch.setattr(shared, "_sees", Sees())
    monkeypatch.setattr(shared, "ray", SimpleNamespace(wait=wait, get=get))
    names = [*answers, "e"]
    monkeypatch.setattr(
        shared,
        "NodeAffinitySchedulingStrategy",
        lambda node, soft: SimpleNamespace(node_id=node, soft=soft),
    )
    found = shared._answers(names, locate(str(tmp_path / "mark")))
    assert found == {"b": True, "c": False}


# --- attempts ----------------------------------------------------------------------------------


class Handle:
    """The actor's handle, with the actor in this process."""

    def __init__(self):
        actor = Attempts.__ray_metadata__.modified_class()
        self.begin = SimpleNamespace(remote=actor.begin)
        self.succeeded = SimpleNamespace(remote=actor.succeeded)


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(attempts, "ray", SimpleNamespace(get=lambda value: value))
    return Handle()


def test_work_that_was_begun_five_times_is_given_up(counted):
    told = [given_up(counted, "read a.tar", "its reader", "lower x") for _ in range(7)]
    assert MOST == 5 and told[:5] == [""] * 5
    assert told[5] == (
        "its reader was killed or lost 5 times, which is mostly for want of memory: lower x"
    )
    assert told[6].startswith("its reader was killed or lost 6 times")


def test_work_that_succeeded_may_be_begun_as_often_again(counted):
    for _ in range(MOST):
        assert given_up(counted, "start", "x", "y") == ""
    counted.succeeded.remote("start")
    for _ in range(MOST):
        assert given_up(counted, "start", "x", "y") == ""
    assert given_up(counted, "start", "x", "y")
    counted.succeeded.remote("never begun")


@quick
@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_each_piece_of_work_is_counted_for_itself(names):
    actor, begun = Attempts.__ray_metadata__.modified_class(), Counter()
    for name in names:
        begun[name] += 1
        assert actor.begin(name) == begun[name]
