"""What runs share in an object store: leases, versions, local copies; and URIs as text."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_server import Fault

from coreset_ray.core.address import (
    endpoint_of,
    is_remote,
    join,
    kind_of,
    options_of,
    split,
    with_options,
)
from coreset_ray.io import lease as leases
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.lease import Held, Overtaken, hold
from coreset_ray.io.local_copy import local_copy
from coreset_ray.io.published import Published
from coreset_ray.io.workspace import Workspace


def uri_at(server, path: str) -> str:
    return with_options(f"s3://{path}", {"endpoint": server.endpoint, "attempts": "3"})


def at(server, path: str) -> Location:
    return locate(uri_at(server, path))


# --- URIs as text ------------------------------------------------------------------------------

_VALUES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1)


@given(st.dictionaries(st.sampled_from(["region", "attempts", "request_timeout"]), _VALUES))
def test_what_is_joined_is_split_again_whatever_the_values(options):
    assert split(join("s3://bucket/a b/{0..3}/*.tar", options)) == (
        "s3://bucket/a b/{0..3}/*.tar",
        options,
    )


@given(st.text("abc?*[]{}./", max_size=12))
def test_the_question_marks_of_a_glob_are_no_query(key):
    assert split(f"s3://bucket/{key}") == (f"s3://bucket/{key}", {})


def test_a_path_takes_the_options_of_its_kind_and_its_own_go_first():
    shared = {"endpoint": "http://h:1", "region": "eu-west-1", "attempts": "2"}
    assert with_options("data/a?.tar", shared) == "data/a?.tar"
    assert with_options("file:///data", shared) == "file:///data"
    assert split(with_options("s3://b/k", shared))[1] == shared
    own = split(with_options("s3://b/k?region=us-east-1", shared))[1]
    assert own == shared | {"region": "us-east-1"}
    assert split(with_options("gs://b/k", shared))[1] == {"endpoint": "http://h:1", "attempts": "2"}
    assert with_options("hdfs://name:8020/k", shared) == "hdfs://name:8020/k"


def test_every_scheme_has_a_kind_and_its_options():
    schemes = {"s3": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfs"}
    for scheme, kind in (schemes | {"hdfs": "hdfs", "viewfs": "hdfs"}).items():
        assert kind_of(f"{scheme}://x/y") == kind and options_of(kind)
    with pytest.raises(ValueError, match="ftp:// is no store"):
        kind_of("ftp://x/y")


def test_a_file_uri_is_a_local_path():
    assert not is_remote("file:///a%20b") and not is_remote("a/b") and is_remote("s3://b")
    place = locate("file:///tmp/a%20b")
    assert place.local and place.path == place.uri == "/tmp/a b"


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("http://127.0.0.1:9000", ("http", "127.0.0.1:9000")),
        ("https://minio.example/", ("https", "minio.example")),
        ("minio:9000", ("https", "minio:9000")),
        ("http://[::1]:9000", ("http", "[::1]:9000")),
    ],
)
def test_an_endpoint_is_a_scheme_and_a_host(text, means):
    assert endpoint_of(text) == means


@pytest.mark.parametrize("text", ["", "ftp://h", "http://h/path", "http://h:x", "http://h?a=b"])
def test_anything_more_than_an_endpoint_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(f"endpoint {text!r}")):
        endpoint_of(text)


# --- a copy on this machine --------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder of temporary files, for the test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def put(store, key: str, content: bytes) -> None:
    with store.fs.open_output_stream(key) as sink:
        sink.write(content)


def fetched(proxy, key: str) -> int:
    return sum(r.startswith("GET") and r.partition("?")[0].endswith(key) for r in proxy.requests)


def files_of(folder) -> list:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_file_of_a_store_is_fetched_once(store, proxy, bucket, scratch):
    content = os.urandom(100_000)
    put(store, f"{bucket}/w.pth", content)
    first = local_copy(uri_at(proxy, f"{bucket}/w.pth"))
    assert first.name == "w.pth" and first.read_bytes() == content and first.is_relative_to(scratch)
    before = fetched(proxy, "/w.pth")
    assert before > 0
    assert local_copy(uri_at(proxy, f"{bucket}/w.pth")) == first
    assert fetched(proxy, "/w.pth") == before


def test_a_file_that_was_replaced_is_fetched_anew(store, bucket, scratch):
    put(store, f"{bucket}/w.pth", b"old")
    old = local_copy(uri_at(store, f"{bucket}/w.pth"))
    put(store, f"{bucket}/w.pth", b"newer")
    assert local_copy(uri_at(store, f"{bucket}/w.pth")).read_bytes() == b"newer"
    assert old.read_bytes() == b"old", "whoever has it open keeps it"


def test_files_of_one_name_and_size_are_not_mistaken(store, bucket, scratch):
    put(store, f"{bucket}/a/w.pth", b"a")
    put(store, f"{bucket}/b/w.pth", b"b")
    copies = [local_copy(uri_at(store, f"{bucket}/{n}/w.pth")).read_bytes() for n in "ab"]
    assert copies == [b"a", b"b"]


def test_a_copy_is_whole_or_absent(store, proxy, bucket, scratch):
    content = os.urandom(100_000)
    put(store, f"{bucket}/w.pth", content)
    proxy.faults.append(fault := Fault("GET", "/w.pth", "cut"))
    with pytest.raises(OSError, match=rf"s3://{bucket}/w\.pth at {proxy.endpoint}"):
        local_copy(uri_at(proxy, f"{bucket}/w.pth"))
    assert fault.struck == 3 and files_of(scratch) == []
    proxy.faults.clear()
    assert local_copy(uri_at(proxy, f"{bucket}/w.pth")).read_bytes() == content


def test_what_is_no_file_is_not_copied(store, bucket, scratch):
    put(store, f"{bucket}/folder/x", b"x")
    for key in ("none", "folder"):
        with pytest.raises(ValueError, match=rf"s3://{bucket}/{key} is not a file"):
            local_copy(uri_at(store, f"{bucket}/{key}"))
    assert files_of(scratch) == []


# --- leases ------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """The lease's clock: it stands still but for pauses, which call `between` first."""
    clock = SimpleNamespace(now=0.0, between=lambda: None)

    def sleep(seconds: float) -> None:
        clock.between()
        clock.now += seconds

    told = {name: getattr(time, name) for name in ("strftime", "gmtime", "time_ns")}
    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep, **told)
    monkeypatch.setattr(leases, "time", fake)
    monkeypatch.setattr(leases, "_POLL", 10.0)
    return clock


def foreign(folder: Location, number: int, beat: int = 0, **told) -> Location:
    """The claim of a run on another machine."""
    place = folder / f"{number:08d}-{number:032x}.json"
    owner = {"host": "elsewhere", "machine": ["another"], "pid": 7, "started": "1", "since": "then"}
    place.write_json({**owner, "command": "embed", "beat": beat, **told})
    return place


def test_numbers_rise_and_old_claims_are_cleared(store, bucket):
    folder = Workspace(uri_at(store, f"{bucket}/run")).lease
    for number in (1, 2, 3):
        with hold(folder) as lease:
            assert lease.number == number
            lease.check()
            (key,) = store.keys(bucket)
            assert key.startswith(f"run/lease/{number:08d}-")
    assert len(store.keys(bucket)) == 1, "the last, whose number is not given again"


def test_a_living_holder_is_named_and_is_not_disturbed(store, bucket):
    folder = Workspace(uri_at(store, f"{bucket}/run")).lease
    with hold(folder, command="score") as lease:
        says = rf"`coreset-ray score` \(process {os.getpid()} on .*s3://{bucket}/run"
        with pytest.raises(Held, match=says), hold(folder):
            raise AssertionError("two have it")
        lease.check()
    with hold(folder) as after:
        assert after.number > lease.number


def test_a_lease_is_let_go_of_when_the_block_fails(store, bucket):
    folder = at(store, f"{bucket}/lease")
    with pytest.raises(KeyError), hold(folder):
        raise KeyError
    with hold(folder) as lease:
        lease.check()


def test_one_at_a_time_has_it_however_many_ask(store, bucket, monkeypatch):
    monkeypatch.setattr(leases, "_POLL", 0.02)
    folder, start = at(store, f"{bucket}/lease"), threading.Barrier(4)
    inside, entered, failed = set(), [], []

    def turn(name: int) -> None:
        with hold(folder, wait=300) as lease:
            inside.add(name)
            others = inside - {name}
            (folder.parent / "mark.json").write_json(name)
            read = (folder.parent / "mark.json").read_json()
            entered.append((lease.number, lease._id))
            failed.extend([f"{name} beside {others}"] if others or read != name else [])
            inside.discard(name)

    def ask(name: int) -> None:
        start.wait()
        for _ in range(2):
            try:
                turn(name)
            except Exception as error:
                failed.append(repr(error))
                return

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and len(set(entered)) == 8
    assert entered == sorted(entered), "in the order of their numbers"


def test_a_silent_holder_of_another_machine_loses_it_after_its_time(store, bucket, clock):
    folder = at(store, f"{bucket}/lease")
    gone = foreign(folder, 41, entered=True)
    with hold(folder) as lease:
        assert lease.number == 42 and not gone.exists()
        assert leases.TTL < clock.now <= leases.TTL + 2 * leases._POLL
        lease.check()


def test_a_holder_that_changes_its_claim_keeps_it(store, bucket, clock):
    folder = at(store, f"{bucket}/lease")
    claim = foreign(folder, 41, entered=True)
    clock.between = lambda: foreign(folder, 41, beat=int(clock.now) + 1, entered=True)
    says = r"`coreset-ray embed` .process 7 on elsewhere"
    with pytest.raises(Held, match=says), hold(folder, wait=3 * leases.TTL):
        raise AssertionError("two have it")
    assert clock.now >= 3 * leases.TTL and claim.exists()


def test_a_dead_process_of_this_machine_loses_it_at_once(store, bucket, clock):
    folder = at(store, f"{bucket}/lease")
    source = (
        "import os, sys; from coreset_ray.io.filesystem import locate; "
        "from coreset_ray.io.lease import hold; h = hold(locate(sys.argv[1])); h.__enter__(); "
        "os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", source, folder.uri], capture_output=True)
    assert done.returncode == 9, done.stderr
    (key,) = store.keys(bucket)
    assert locate(uri_at(store, f"{bucket}/{key}")).read_json()["entered"] is True
    with hold(folder) as lease:
        assert lease.number == 2 and clock.now == 0.0
    assert key not in store.keys(bucket)


def test_whoever_is_choosing_a_number_is_waited_for(store, bucket, clock):
    folder = at(store, f"{bucket}/lease")
    choosing = folder / f"choosing-{1:032x}.json"
    choosing.write_json({"machine": ["another"], "pid": 7, "started": "1"})
    clock.between = choosing.delete
    with hold(folder, wait=30) as lease:
        assert lease.number == 1 and clock.now == leases._POLL


def test_whoever_was_overtaken_is_told_by_whom(store, bucket):
    folder = at(store, f"{bucket}/lease")
    with hold(folder) as lease:
        waiting = foreign(folder, lease.number + 1)
        lease.check()
        foreign(folder, lease.number + 1, entered=True)
        with pytest.raises(Overtaken, match=r"taken over by `coreset-ray embed` .process 7"):
            lease.check()
        waiting.delete()
        lease.check()
        lease._claim.delete()
        with pytest.raises(Overtaken, match="left to that one"):
            lease.check()


def test_a_claim_that_cannot_be_read_is_somebodys(store, bucket, clock):
    """Half written, or by another version: it counts until it has been silent for long enough."""
    folder = at(store, f"{bucket}/lease")
    put(store, f"{bucket}/lease/{5:08d}-{5:032x}.json", b"{")
    put(store, f"{bucket}/lease/notes.txt", b"not a claim")
    with hold(folder) as lease:
        assert lease.number == 6 and clock.now > leases.TTL
    assert "lease/notes.txt" in store.keys(bucket)


def test_a_lease_is_taken_through_a_store_that_stutters(store, proxy, bucket):
    proxy.faults += [
        Fault("PUT", "choosing", "status", times=1),
        Fault("PUT", "/00000001-", "drop", times=1),
        Fault("GET", "list-type", "status", times=1, status=500),
    ]
    with hold(at(proxy, f"{bucket}/lease")) as lease:
        lease.check()
    assert [fault.struck for fault in proxy.faults] == [1, 1, 1]
    with hold(at(store, f"{bucket}/lease")) as lease:
        assert lease.number == 2


def test_a_store_that_takes_no_claim_gives_no_lease(store, proxy, bucket):
    proxy.faults.append(Fault("PUT", "/00000001-", "status"))
    with pytest.raises(OSError, match=proxy.endpoint), hold(at(proxy, f"{bucket}/lease")):
        raise AssertionError("it has none")
    assert store.keys(bucket) == {}, "nor does it stand in the way of the next"


# --- published versions ------------------------------------------------------------------------


class Lost:
    """A lease that is lost after so many checks."""

    number = 1

    def __init__(self, checks: int):
        self.left = checks

    def check(self) -> None:
        if self.left == 0:
            raise Overtaken("by another")
        self.left -= 1


def publish(published: Published, lease, **record):
    number, folder = published.begin(lease)
    (folder / "manifest.parquet").write_json("rows")
    return published.publish(number, record, lease)


def pointer(published: Published):
    return (published.folder / "current.json").read_json()


def test_versions_in_a_bucket_count_once_they_are_published(store, bucket):
    workspace = Workspace(uri_at(store, f"{bucket}/run"))
    published = workspace.published("standing")
    assert published.current() is None and published.versions() == []
    with hold(workspace.lease) as lease:
        assert publish(published, lease, kept=1).name == "v000001"
        number, folder = published.begin(lease)
        (folder / "manifest.parquet").write_json("half")
        assert (number, published.current().number) == (2, 1)
        assert publish(published, lease, kept=3).number == 3, "a number is never given twice"
    again = Workspace(uri_at(store, f"{bucket}/run")).published("standing")
    assert [(v.number, v.record) for v in again.versions()] == [(1, {"kept": 1}), (3, {"kept": 3})]
    assert again.current() == again.versions()[-1]
    assert again.current().manifest.read_json() == "rows"
    assert pointer(again) == {"version": 3, "folder": "v000003"}


def test_versions_are_in_the_order_of_their_numbers(store, bucket):
    published = Published(at(store, f"{bucket}/standing"))
    for name in ("v000009", "v999999", "v12", "vx", "w000001"):
        (published.folder / name / "done.json").write_json({})
    assert [v.number for v in published.versions()] == [9, 999999]
    assert publish(published, Lost(3)).name == "v1000000"
    assert published.current().number == 1_000_000 and pointer(published)["version"] == 1_000_000


@pytest.mark.parametrize("checks", [1, 2])
def test_what_an_overtaken_run_made_does_not_count(store, bucket, checks):
    """Overtaken before its record was written, and while it was."""
    published = Published(at(store, f"{bucket}/standing"))
    publish(published, Lost(3), kept=1)
    with pytest.raises(Overtaken):
        publish(published, Lost(checks), kept=2)
    assert [v.number for v in published.versions()] == [1]
    assert pointer(published)["version"] == 1
    with pytest.raises(Overtaken):
        published.begin(Lost(0))
    assert publish(published, Lost(3), kept=3).number == 3


def test_a_version_whose_record_is_not_taken_leaves_the_one_before(store, proxy, bucket):
    publish(Published(at(store, f"{bucket}/standing")), Lost(3), kept=1)
    published = Published(at(proxy, f"{bucket}/standing"))
    proxy.faults.append(fault := Fault("PUT", "v000002/done.json", "drop"))
    with pytest.raises(OSError, match=r"v000002/done\.json"):
        publish(published, Lost(3), kept=2)
    assert fault.struck == 3
    assert (published.current().number, pointer(published)["version"]) == (1, 1)
    proxy.faults.clear()
    assert published.publish(2, {"kept": 2}, Lost(2)).number == published.current().number == 2


def test_a_pointer_that_was_lost_is_written_again(store, proxy, bucket):
    published = Published(at(proxy, f"{bucket}/standing"))
    proxy.faults.append(Fault("PUT", "current.json", "status"))
    with pytest.raises(OSError, match=r"current\.json"):
        publish(published, Lost(3), kept=1)
    assert published.current().record == {"kept": 1}, "it counts by its record, not by the pointer"
    proxy.faults.clear()
    published.point()
    assert pointer(published) == {"version": 1, "folder": "v000001"}
