"""A disk without room: the room of a file is taken at once, and what is missing is one message."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset_ray import cli
from coreset_ray.io.array_files import (
    ArrayWriter,
    create_array,
    machine_folder,
    open_array,
    sole,
    write_array,
)
from coreset_ray.io.filesystem import locate
from coreset_ray.io.full_disk import FullDisk, naming

FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota used up", errno.EFBIG: "limit reached"}


def refusing(number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    return refuse


# --- the message -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", FULL)
def test_a_full_disk_is_told_with_the_path_and_the_remedy(number):
    with pytest.raises(FullDisk) as error, naming("/data/x.npy", "compute.scratch"):
        raise OSError(number, "as the system says it")
    message = str(error.value)
    assert message.startswith(f"{FULL[number]} to write '/data/x.npy': make room there")
    assert "name a folder of a larger disk by compute.scratch" in message
    assert message.endswith("give the same command again; what is finished is kept")
    assert error.value.__cause__.errno == number


def test_where_nothing_else_can_be_named_nothing_else_is(tmp_path):
    with pytest.raises(FullDisk) as error, naming(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "full")
    assert repr(str(tmp_path / "x")) in str(error.value)
    assert "larger disk" not in str(error.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "the disk broke"),
        PermissionError(errno.EACCES, "not yours"),
        FileNotFoundError(errno.ENOENT, "gone"),
        ValueError("no matter of disks"),
    ],
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as found, naming("/data/x"):
        raise error
    assert found.value is error


def test_the_inner_file_is_named_and_it_is_said_once():
    with pytest.raises(FullDisk) as error, naming("/outer"), naming("/inner"):
        raise OSError(errno.ENOSPC, "full")
    assert "'/inner'" in str(error.value) and "/outer" not in str(error.value)


# --- arrays in files ---------------------------------------------------------------------------


def test_the_room_of_an_array_is_taken_at_once(tmp_path):
    (tmp_path / "sparse").open("wb").close()
    os.truncate(tmp_path / "sparse", 3 << 20)
    array = create_array(tmp_path / "x.npy", np.float32, (1 << 18, 3))
    whole, sparse = os.stat(tmp_path / "x.npy"), os.stat(tmp_path / "sparse")
    assert whole.st_size == array.offset + array.nbytes
    assert 512 * whole.st_blocks >= whole.st_size, "no page of it can miss its room later"
    assert 512 * sparse.st_blocks < sparse.st_size, "or the disk would not show it"
    assert not array.any()


def test_the_room_is_asked_for_the_whole_file_before_anything_is_written(tmp_path, monkeypatch):
    asked = []
    take = os.posix_fallocate

    def watch(handle, start, size):
        asked.append((start, size, os.fstat(handle).st_size))
        take(handle, start, size)

    monkeypatch.setattr(os, "posix_fallocate", watch)
    values = np.arange(1000.0)
    write_array(tmp_path / "x.npy", values)
    size = os.path.getsize(tmp_path / "x.npy")
    assert asked == [(0, size, size)] and size > values.nbytes
    np.testing.assert_array_equal(open_array(tmp_path / "x.npy"), values)


@pytest.mark.parametrize("number", FULL)
@pytest.mark.parametrize("how", ["create", "write", "pieces"])
def test_an_array_without_room_is_one_message_and_leaves_nothing(
    tmp_path, monkeypatch, number, how
):
    monkeypatch.setattr(os, "posix_fallocate", refusing(number))
    path = tmp_path / "columns.npy"
    with pytest.raises(FullDisk, match=FULL[number]) as error:
        if how == "create":
            create_array(path, np.int64, (4, 5))
        elif how == "write":
            write_array(path, np.ones((4, 5)))
        else:
            with ArrayWriter(path, np.int64, (4, 5)):
                pass
    assert str(path) in str(error.value) and "compute.scratch" in str(error.value)
    assert not any(tmp_path.iterdir()), "half a file would be room that nobody gets back"


@given(
    data=st.data(),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kind=st.sampled_from(["u1", "f2", "f4", "i8"]),
)
@settings(max_examples=40, deadline=None, database=None)
def test_pieces_in_any_order_make_the_array(tmp_path_factory, data, shape, kind):
    values = np.arange(1, 1 + shape[0] * shape[1]).astype(kind).reshape(shape)
    width = data.draw(st.integers(1, shape[1]))
    pieces = [(row, left) for row in range(shape[0]) for left in range(0, shape[1], width)]
    path = tmp_path_factory.mktemp("pieces") / "x.npy"
    with ArrayWriter(path, kind, shape) as writer:
        for row, left in data.draw(st.permutations(pieces)):
            writer.write(values[row, left : left + width], row, left)
    found = open_array(path)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(np.load(path), values)


def test_rows_that_follow_each_other_are_one_piece(tmp_path):
    values = np.arange(35.0).reshape(7, 5)
    with ArrayWriter(tmp_path / "x.npy", np.float64, (7, 5)) as writer:
        writer.write(values[3:], 3, 0)
        writer.write(values[:3], 0, 0)
    np.testing.assert_array_equal(open_array(tmp_path / "x.npy"), values)


def test_what_the_system_writes_in_part_is_written_on(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda h, left, at: real(h, left[:7], at))
    values = np.random.default_rng(0).normal(size=(6, 9))
    with ArrayWriter(tmp_path / "x.npy", np.float64, (6, 9)) as writer:
        writer.write(values, 0, 0)
    np.testing.assert_array_equal(open_array(tmp_path / "x.npy"), values)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_disk_that_fills_up_while_pieces_are_written_is_told_too(tmp_path, monkeypatch, call):
    path = tmp_path / "x.npy"
    with pytest.raises(FullDisk, match=str(path)), ArrayWriter(path, "f4", (4, 4)) as writer:
        monkeypatch.setattr(os, call, refusing(errno.ENOSPC))
        writer.write(np.ones((4, 4)), 0, 0)


def test_a_file_whose_writer_failed_is_gone(tmp_path):
    with pytest.raises(KeyError), ArrayWriter(tmp_path / "x.npy", "f4", (4, 4)) as writer:
        writer.write(np.ones((2, 4)), 0, 0)
        raise KeyError("something else")
    assert not any(tmp_path.iterdir())


# --- a real limit ------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from coreset_ray.io.array_files import ArrayWriter, create_array, write_array
from coreset_ray.io.filesystem import locate
from coreset_ray.io.full_disk import FullDisk

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
folder = Path(sys.argv[1])

def pieces():
    with ArrayWriter(folder / "pieces.npy", "f8", (1 << 10, 1 << 10)):
        pass

acts = {
    "created.npy": lambda: create_array(folder / "created.npy", "f8", (1 << 20,)),
    "written.npy": lambda: write_array(folder / "written.npy", np.ones(1 << 20)),
    "pieces.npy": pieces,
    "told.json": lambda: locate(str(folder / "told.json")).write_json("x" * (2 << 20)),
}
write_array(folder / "small.npy", np.ones(1000))
for name, act in acts.items():
    try:
        act()
    except FullDisk as error:
        print(name, "|", error)
"""


def test_files_above_the_limit_of_a_process_are_named_and_leave_nothing(tmp_path):
    locate(str(tmp_path / "told.json")).write_json("before")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = [line.split(" | ") for line in done.stdout.splitlines()]
    assert [name for name, _ in said] == ["created.npy", "written.npy", "pieces.npy", "told.json"]
    for name, message in said:
        assert message.startswith(f"limit reached to write {str(tmp_path / name)!r}: make room")
        assert ("compute.scratch" in message) == name.endswith(".npy")
    assert sorted(os.listdir(tmp_path)) == ["small.npy", "told.json"]
    assert json.loads((tmp_path / "told.json").read_text()) == "before"
    np.testing.assert_array_equal(np.load(tmp_path / "small.npy"), np.ones(1000))


def test_a_file_that_finds_no_room_leaves_the_one_before_it(tmp_path, monkeypatch):
    place = locate(str(tmp_path / "record.json"))
    place.write_json({"version": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing(errno.ENOSPC))
        with pytest.raises(FullDisk, match=r"record\.json"):
            place.write_json({"version": 2})
    assert place.read_json() == {"version": 1}
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_command_line_says_it_in_one_line_and_exits_with_1(tmp_path, monkeypatch, capsys, form):
    def command(*_):
        create_array(tmp_path / "x.npy", "f4", (3, 3))

    monkeypatch.setattr(os, "posix_fallocate", refusing(errno.ENOSPC))
    monkeypatch.setattr(cli, "_list_methods", command)
    with pytest.raises(SystemExit) as end:
        cli.main(["methods", "--log-format", form])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 1
    told = json.loads(line)["message"] if form == "json" else line
    assert "no space left to write" in told and str(tmp_path / "x.npy") in told


# --- where the files lie, and who makes them ---------------------------------------------------


def test_a_folder_of_a_machine_may_begin_with_a_variable_of_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SCRATCH_HERE", str(tmp_path))
    assert machine_folder("$SCRATCH_HERE/a/b") == tmp_path / "a/b"
    assert machine_folder("${SCRATCH_HERE}/a") == tmp_path / "a"
    assert machine_folder("$SCRATCH_HERE") == tmp_path
    assert str(machine_folder("/plain/folder")) == "/plain/folder"
    monkeypatch.setenv("SCRATCH_HERE", "")
    with pytest.raises(ValueError, match=r"\$SCRATCH_HERE, which is not set on") as error:
        machine_folder("$SCRATCH_HERE/a")
    assert "compute.scratch" in str(error.value) and os.uname().nodename in str(error.value)


def test_one_process_makes_what_others_wait_for(tmp_path):
    folder = tmp_path / "new/folder"
    with sole(folder), (folder / "lock").open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (folder / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
