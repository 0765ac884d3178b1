"""Object stores, over HTTP: the whole chain, long listings, and stores that fail for a while."""

import dataclasses
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest
from pools import digits_pool, tiny_encoder, write_config
from store_server import Fault

from coreset_ray import cli
from coreset_ray.config import load, plain
from coreset_ray.core.address import with_options
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.ledger import Chunk, Ledger, Record, SumFile
from coreset_ray.io.shards import Shard, list_shards
from coreset_ray.io.sources import make_shards
from coreset_ray.io.tables import QUARANTINE, Commit, PartedTable, part_name, read_table
from coreset_ray.models.recipe import Recipe
from pipelines import embed, evaluate, export, run, select_coreset, verify
from pipelines.inputs import pool_table, workspace_of

SECRET = "hunter2hunter2"


def at(server, path: str, **options) -> Location:
    """A place in a store, behind a proxy or not, that is given up soon."""
    told = {"endpoint": server.endpoint, "attempts": "3", **options}
    return locate(with_options(f"s3://{path}", told))


# --- URIs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a/b?endpoint=http://127.0.0.1:9000&region=eu-west-1",
        "s3://bucket/a/b?anonymous=true&attempts=2&region=us-east-1&request_timeout=1.5",
        "gs://bucket/a/b?anonymous=true&endpoint=http://127.0.0.1:4443",
        "abfs://container@account.dfs.core.windows.net/a/b",
        "abfss://account.blob.core.windows.net/container/a/b?credential_kind=anonymous",
        "abfs://account@127.0.0.1:10000/container/a/b?enable_tls=false",
    ],
)
def test_a_uri_keeps_its_authority_and_options_on_the_way_to_a_worker(uri):
    place = locate(uri)
    assert place.uri == uri and locate(place.uri) == place
    below = place / "x" / "y.json"
    assert below.uri == uri.replace("/a/b", "/a/b/x/y.json")
    assert locate(below.uri).path == below.path == f"{place.path}/x/y.json"
    assert below.parent.parent == place
    assert "?" not in str(place) and str(place) == uri.partition("?")[0]


def test_the_path_is_the_bucket_and_the_key_whatever_its_letters():
    place = locate("s3://bucket/a b#?é%25.tar?endpoint=http://127.0.0.1:9000")
    assert place.path == "bucket/a b#?é%.tar"
    assert locate(place.uri).path == place.path
    assert (place / "50% #1?.tar").path == "bucket/a b#?é%.tar/50% #1?.tar"
    assert locate((place / "50% #1?.tar").uri).path == (place / "50% #1?.tar").path


def test_an_endpoint_as_pyarrow_writes_it_is_understood():
    place = locate("s3://b/k?endpoint_override=127.0.0.1:9000&scheme=http")
    assert place.uri == "s3://b/k?endpoint=http://127.0.0.1:9000"


def test_one_filesystem_a_process_and_retries_survive_being_sent():
    place = locate("s3://b/k?endpoint=http://127.0.0.1:9000&attempts=5")
    assert locate("s3://b/other?attempts=5&endpoint=http://127.0.0.1:9000").fs is place.fs
    assert pickle.loads(pickle.dumps(place)).fs is place.fs
    assert locate("s3://b/k?endpoint=http://127.0.0.1:9000&attempts=6").fs is not place.fs


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        (f"s3://AKIAKEY:{SECRET}@bucket/a", "key or password"),
        (f"s3://{SECRET}@bucket/a", "AWS_ACCESS_KEY_ID"),
        (f"gs://{SECRET}@bucket/a", "GOOGLE_APPLICATION_CREDENTIALS"),
        (f"abfs://container:{SECRET}@account.dfs.core.windows.net/a", "AZURE_CLIENT_SECRET"),
        (f"s3://bucket/a?secret_key={SECRET}", "'secret_key'"),
        (f"abfs://c@account.dfs.core.windows.net/a?sig={SECRET}&sv=2", "'sig'"),
        (f"s3://bucket/a?endpoint=http://me:{SECRET}@host", "http://HOST:PORT"),
        ("s3://bucket/a?attempts=0&region=x", "attempts='0'"),
        ("s3://bucket/a?anonymous=yes&region=x", "true or false"),
        ("ftp://host/a", "ftp:// is no store"),
    ],
)
def test_what_a_uri_may_not_say_is_refused_without_repeating_a_secret(uri, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        locate(uri)
    assert SECRET not in str(error.value) and error.value.__cause__ is None


def test_what_cannot_be_reached_says_so_in_one_message():
    places = {
        "s3://b/k?endpoint=http://127.0.0.1:1&attempts=1": "AWS_ACCESS_KEY_ID",
        "gs://b/k?endpoint=http://127.0.0.1:1&attempts=1&request_timeout=1&anonymous=true": "gs://",
    }
    for uri, says in places.items():
        with pytest.raises(OSError, match=re.escape(says)) as error:
            locate(uri).exists()
        assert "127.0.0.1:1" in str(error.value) and "same command again" in str(error.value)


def test_hdfs_without_java_says_what_is_missing():
    if os.environ.get("JAVA_HOME"):
        pytest.skip("there may be one")
    with pytest.raises(OSError, match=r"hdfs://name:8020/a: Unable.*JAVA_HOME") as error:
        locate("hdfs://name:8020/a")
    assert "\n" not in str(error.value)


def test_hdfs_writes_beside_and_renames(tmp_path, monkeypatch):
    """On a filesystem that calls itself so: what is half sent is never under the name."""
    fs = _Hdfs(pa.fs.LocalFileSystem())
    place = Location(pa.fs.PyFileSystem(fs), f"{tmp_path}/a/done.json", "hdfs://n:1/a/done.json")
    place.write_json({"a": 1})
    place.write_json({"a": 2})
    assert place.read_json() == {"a": 2}
    assert fs.moved == 2 and [p.name for p in (tmp_path / "a").iterdir()] == ["done.json"]
    monkeypatch.setattr("coreset_ray.io.filesystem._send", _half)
    with pytest.raises(OSError, match="gone"):
        place.write_json({"a": 3})
    assert place.read_json() == {"a": 2}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["done.json"]


def _half(filesystem, path, content):
    with filesystem.open_output_stream(path) as stream:
        stream.write(content[:3])
    raise OSError("gone")


class _Hdfs(pa.fs.FSSpecHandler):
    """pyarrow's local filesystem under another name, whose rename does not replace."""

    def __init__(self, fs):
        self.local, self.moved = fs, 0

    def get_type_name(self):
        return "hdfs"

    def create_dir(self, path, recursive):
        self.local.create_dir(path, recursive=recursive)

    def open_output_stream(self, path, metadata):
        return self.local.open_output_stream(path)

    def open_input_stream(self, path):
        return self.local.open_input_file(path)

    def get_file_info(self, paths):
        return self.local.get_file_info(paths)

    def delete_file(self, path):
        self.local.delete_file(path)

    def move(self, source, target):
        if os.path.exists(target):
            raise OSError("it exists")
        self.local.move(source, target)
        self.moved += 1


# --- configuration ---------------------------------------------------------------------------


def read(folder: Path, pool: str = "s3://p/*.tar", **sections):
    return load(write_config(folder, pool, **({"workspace": "s3://w/x"} | sections)))


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"workspace": f"s3://K:{SECRET}@w/x"}, "workspace: a s3:// path holds a key"),
        ({"evaluate": {"test": {"shards": f"s3://b/t?token={SECRET}"}}}, "evaluate.test.shards.0"),
        ({"export": {"out": f"gs://{SECRET}@b/out"}}, "export.out"),
        ({"storage": {"endpoint": f"http://u:{SECRET}@h"}}, "storage"),
        ({"storage": {"secret_key": SECRET}}, "storage.secret_key"),
        ({"compute": {"scratch": "s3://b/scratch"}}, "compute.scratch"),
        (
            {"embed": {"encoders": [{"name": "timm:x", "weights": f"s3://K:{SECRET}@b/w"}]}},
            "embed.encoders.0.weights",
        ),
        ({"workspace": "w", "pool": "p", "storage": {"attempts": 2}}, "no path of"),
        ({"pool": "gs://p", "storage": {"endpoint": "http://h"}}, "gs and s3"),
        ({"storage": {"attempts": 0}}, "storage.attempts"),
    ],
)
def test_the_configuration_refuses_secrets_and_settings_without_effect(tmp_path, sections, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        read(tmp_path, **sections)
    assert SECRET not in str(error.value)


def test_storage_reaches_every_path_and_no_fingerprint(tmp_path):
    bare = read(tmp_path, storage={"region": "us-east-1"})
    told = read(tmp_path, storage={"endpoint": "http://127.0.0.1:9000", "attempts": 2})
    root = workspace_of(told).root
    assert root.uri == "s3://w/x?attempts=2&endpoint=http://127.0.0.1:9000"
    assert pool_table(told).stage.name == pool_table(bare).stage.name
    own = read(
        tmp_path,
        workspace="s3://w/x?endpoint=http://127.0.0.1:9001",
        storage={"endpoint": "http://127.0.0.1:9000"},
    )
    assert workspace_of(own).root.uri == "s3://w/x?endpoint=http://127.0.0.1:9001"
    assert plain(told)["workspace"] == "s3://w/x"


def test_pipelines_take_paths_with_their_options():
    """A path of the configuration that is used as it stands would lose `storage`."""
    folder = Path(cli.__file__).parent.parent / "pipelines"
    for file in folder.glob("*.py"):
        source = file.read_text()
        taken = re.findall(r"(?:locate|Workspace|list_shards|label_mark)\(\w*config\.\w.*", source)
        assert not taken, (file.name, taken)


# --- listing and files -----------------------------------------------------------------------


def test_more_than_a_thousand_keys_are_listed(store, bucket):
    fs, count = store.fs, 1203
    with fs.open_output_stream(f"{bucket}/pool/x/00000.tar") as sink:
        sink.write(b"tar")
    with ThreadPoolExecutor(8) as pool:
        names = [f"{bucket}/pool/x/{i:05d}.tar" for i in range(1, count)]
        list(pool.map(lambda name: fs.copy_file(f"{bucket}/pool/x/00000.tar", name), names))
    options = {"endpoint": store.endpoint}
    for entry in (f"s3://{bucket}/pool", f"s3://{bucket}/pool/*/0????.tar"):
        shards = list_shards([entry], f"s3://{bucket}/pool", options)
        assert [s.name for s in shards] == [f"x/{i:05d}.tar" for i in range(count)]
        assert all(s.size == 3 and s.mtime_ns > 0 for s in shards)
    assert locate(shards[-1].uri).info().size == 3
    assert len(at(store, f"{bucket}/pool/x").listing()) == count


def test_a_list_of_shards_and_its_lines_are_reached_by_the_same_options(store, bucket, tmp_path):
    for key in ("a b.tar", "c.tar"):
        with store.fs.open_output_stream(f"{bucket}/{key}") as sink:
            sink.write(b"tar")
    lines = f"# pool\ns3://{bucket}/a b.tar\ns3://{bucket}/{{c,a b}}.tar\n"
    (tmp_path / "list.txt").write_text(lines)
    with store.fs.open_output_stream(f"{bucket}/list.txt") as sink:
        sink.write(lines.encode())
    for entry in (f"@{tmp_path}/list.txt", f"@s3://{bucket}/list.txt"):
        shards = list_shards([entry], options={"endpoint": store.endpoint})
        assert [s.name for s in shards] == ["a b.tar", "c.tar"]
        assert [locate(s.uri).path for s in shards] == [f"{bucket}/a b.tar", f"{bucket}/c.tar"]


@pytest.mark.slow
def test_shards_are_made_in_a_bucket_and_read_as_a_source_again(store, bucket):
    out = at(store, f"{bucket}/digits")
    made = make_shards("digits", out.uri, per_shard=500)
    assert made["splits"]["train"]["samples"] == 1437
    names = {"classes.txt", *(f"train/{i:05d}.tar" for i in range(3)), "test/00000.tar"}
    assert store.keys(bucket).keys() == {f"digits/{name}" for name in names}
    train = with_options(f"s3://{bucket}/digits/train/*.tar", dict(out.options))
    again = make_shards(train, at(store, f"{bucket}/b").uri, shuffle=False)
    assert again["splits"] == {"train": {"samples": 1437, "shards": 2}}
    with pytest.raises(ValueError, match=r"already holds shards.*00000\.tar"):
        make_shards("digits", out.uri)


def test_files_that_are_not_there_are_no_errors_of_the_store(store, bucket):
    place = at(store, f"{bucket}/none")
    assert not place.exists() and place.listing() == []
    place.delete()
    place.delete_folder()
    with pytest.raises(FileNotFoundError):
        place.read_json()
    with store.fs.open_output_stream(f"{bucket}/empty.json"):
        pass
    assert not at(store, f"{bucket}/empty.json").exists(), "what a failed write may leave"


def test_a_bucket_that_is_not_there_is_named(store):
    with pytest.raises(OSError, match=r"s3://no-such-bucket/a\.json .*endpoint and region"):
        at(store, "no-such-bucket/a.json").write_json({})


# --- a store that fails ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["status", "drop", "lose"])
def test_a_write_that_fails_for_a_while_is_tried_again(store, proxy, bucket, kind):
    proxy.faults.append(fault := Fault("PUT", "/a.json", kind, times=2, status=500))
    at(proxy, f"{bucket}/a.json").write_json({"a": 1})
    assert fault.struck == 2 and fault.seen == 3
    assert at(store, f"{bucket}/a.json").read_json() == {"a": 1}


def test_a_write_that_keeps_failing_is_given_up_and_leaves_nothing(store, proxy, bucket):
    proxy.faults.append(fault := Fault("PUT", "/a.json", "status", status=503))
    with pytest.raises(OSError, match=rf"s3://{bucket}/a\.json at {proxy.endpoint}.*503") as error:
        at(proxy, f"{bucket}/a.json").write_json({"a": 1})
    assert fault.seen == 3, "bounded"
    assert "credentials" in str(error.value) and "\n" not in str(error.value)
    assert store.keys(bucket) == {}
    proxy.faults.clear()
    at(proxy, f"{bucket}/a.json").write_json({"a": 1})
    assert list(store.keys(bucket)) == ["a.json"]


def test_an_error_in_the_middle_of_writing_publishes_nothing(store, bucket):
    place = at(store, f"{bucket}/a.json")
    place.write_json({"a": 1})
    with pytest.raises(KeyError), place.replacing() as sink:
        sink.write(b"half")
        raise KeyError
    assert place.read_json() == {"a": 1}


def test_a_large_file_goes_up_in_parts_and_is_whole_or_absent(store, proxy, bucket):
    content, place = os.urandom(25 << 20), at(proxy, f"{bucket}/large")
    proxy.faults.append(fault := Fault("PUT", "partNumber=2", "status", status=500))
    with pytest.raises(OSError, match="large"), place.replacing() as sink:
        sink.write(content)
    assert fault.seen == 3 and store.keys(bucket) == {}
    fault.times = fault.struck + 1  # once more
    with place.replacing() as sink:
        sink.write(content)
    assert fault.struck == 4 and fault.seen == 5
    with place.open_file() as source:
        assert source.read() == content


@pytest.mark.parametrize("kind", ["cut", "drop", "status", "slow"])
def test_a_read_that_fails_for_a_while_goes_on(store, proxy, bucket, kind):
    content = os.urandom(9 << 20)
    with store.fs.open_output_stream(f"{bucket}/x.tar") as sink:
        sink.write(content)
    fault = Fault("GET", "/x.tar", kind, times=2, seconds=2.5, after=1)
    proxy.faults.append(fault)
    with at(proxy, f"{bucket}/x.tar", request_timeout="1").open_stream() as stream:
        pieces = list(iter(lambda: stream.read(1 << 20), b""))
    assert b"".join(pieces) == content and fault.struck == 2


def test_a_read_that_keeps_failing_names_the_file(store, proxy, bucket):
    sums = Ledger(at(proxy, f"{bucket}/sums"))
    sums.write_sum("a.npy", np.zeros((2, 1, 4), np.int64))
    proxy.faults.append(fault := Fault("GET", "a.npy", "cut"))
    with pytest.raises(OSError, match=rf"s3://{bucket}/sums/a\.npy at .*partial file"):
        sums.read_sum(SumFile("a.npy", ("p",), (4,)), ["p"])
    assert fault.struck == 3


# --- commits -----------------------------------------------------------------------------------


def test_a_part_counts_only_with_its_record(store, proxy, bucket):
    """Killed, as far as the store sees, between a part and its record."""
    shard = Shard("a.tar", "a.tar", 3, 1)
    record = Commit(shard.name, part_name(shard), 2, 0, 0, "", "c", "float32")
    rows = pa.table({"uid": ["a", "b"]})
    table = PartedTable(at(proxy, f"{bucket}/t"))
    proxy.faults.append(Fault("PUT", "done.json", "drop"))
    with pytest.raises(OSError, match=r"done\.json"):
        table.commit(record, rows, QUARANTINE.empty_table())
    assert list(store.keys(bucket)) == [f"t/parts/{record.part}.parquet"]
    assert table.committed([shard]) == {}
    proxy.faults.clear()
    table.commit(record, rows, QUARANTINE.empty_table())
    assert table.committed([shard]) == {shard.name: record}
    order = [r for r in proxy.requests if r.startswith("PUT")]
    assert order[-1].endswith("done.json"), "the record comes last"
    assert read_table(table.part(record.part)).num_rows == 2


def test_sums_without_a_record_are_swept_and_those_with_one_stay(store, bucket):
    ledger = Ledger(at(store, f"{bucket}/sums"))
    ledger.write_sum("kept.npy", np.ones((2, 1, 3), np.int64))
    chunk, file = Chunk(0, 5, 1), SumFile("kept.npy", ("p",), (3,))
    ledger.commit(Record("r", (chunk,), (file,)))
    ledger.write_sum("stray.npy", np.ones((2, 1, 3), np.int64))
    ledger.clean()
    assert store.keys(bucket).keys() == {"sums/kept.npy", "sums/r.json"}
    (record,) = ledger.usable(5)
    ledger.forget([record])
    assert store.keys(bucket) == {}


# --- the chain -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(store, tmp_path_factory, ray_local):
    """The same small run on local files and with shards in one bucket, the workspace in another."""
    folder = tmp_path_factory.mktemp("chain")
    train, test = digits_pool(folder, shards=3, each=40)
    settings = {"seeds": [0], "weighted": False}
    here = load(write_config(folder, train, evaluate={"test": {"shards": str(test)}, **settings}))
    shards, work = store.bucket("chain-shards"), store.bucket("chain-work")
    store.put(shards, train, "train/")
    store.put(shards, test, "test/")
    there = load(
        write_config(
            folder,
            f"s3://{shards}/train/*.tar",
            workspace=f"s3://{work}/runs/one",
            evaluate={"test": {"shards": f"s3://{shards}/test"}, **settings},
            storage={"endpoint": store.endpoint, "attempts": 3},
        )
    )
    return here, run.run(unjudged(here)), there, run.run(unjudged(there))


def unjudged(config):
    return config.model_copy(update={"evaluate": None})


def manifest(config):
    return read_table(select_coreset.finished(config)[0].folder / "manifest.parquet")


def test_the_chain_on_a_store_gives_what_it_gives_on_files(chain, store):
    here, local, there, remote = chain
    assert manifest(there).equals(manifest(here))
    assert (remote["images"], remote["kept"]) == (local["images"], local["kept"]) == (120, 24)
    (ours, made), (theirs, _) = export.finished(there), export.finished(here)
    assert ours.name == theirs.name, "where files lie is no part of what they are"
    for name in made["shards"]:
        with (ours.folder / name).open_file() as a, (theirs.folder / name).open_file() as b:
            assert a.read() == b.read()
    folders = {key.split("/")[2] for key in store.keys("chain-work")}
    assert folders >= {"embeddings", "snapshots", "sums", "scores", "selections", "exports"}
    assert not [key for key in store.keys("chain-work") if "partial" in key]
    assert store.keys("chain-shards").keys() == {
        *(f"train/{i:05d}.tar" for i in range(3)),
        *(f"test/{i:05d}.tar" for i in range(2)),
    }, "the shards are only read"


@pytest.mark.slow
def test_a_finished_chain_is_not_repeated_and_verifies(chain, store):
    there, remote = chain[2:]
    before = store.keys("chain-work")
    assert run.run(unjudged(there)) == remote
    assert store.keys("chain-work") == before
    selection = select_coreset.finished(there)[0].folder
    assert verify.run(selection.uri, chunks=1)["kept"] == 24


@pytest.mark.slow
def test_a_coreset_is_judged_as_on_files(chain):
    here, _, there, _ = chain
    assert evaluate.run(there)["report"] == evaluate.run(here)["report"]


@pytest.mark.slow
def test_weights_in_the_store_are_the_same_encoder(chain, store, tmp_path):
    there, entry = chain[2], tiny_encoder(tmp_path)
    with store.fs.open_output_stream("chain-work/weights/w.pth") as sink:
        sink.write(Path(entry["weights"]).read_bytes())
    (spec,) = there.embed.encoders
    uri = "s3://chain-work/weights/w.pth"
    moved = there.replace("embed", encoders=(dataclasses.replace(spec, weights=uri),))
    assert pool_table(moved).stage.name == pool_table(there).stage.name
    config = moved.model_copy(update={"workspace": "s3://chain-work/runs/weights"})
    assert embed.run(config)["rows"] == 120
    assert contents(config) == contents(there)
    gone = there.replace("embed", encoders=(dataclasses.replace(spec, weights=uri + "x"),))
    with pytest.raises(ValueError, match=r"test_vit.*/weights/w\.pthx is not a file"):
        pool_table(gone).stage  # noqa: B018


@pytest.mark.slow
def test_images_and_labels_named_by_uri_are_found(chain, store):
    """A manifest to keep, a CSV of labels and a folder for the export, all in the store."""
    there = chain[2]
    kept = select_coreset.finished(there)[0].folder / "manifest.parquet"
    index = read_table(export.finished(there)[0].folder / "index.parquet")
    lines = [f"{shard},{key},1" for shard, key in zip(*_places(there), strict=True)]
    with store.fs.open_output_stream("chain-work/labels.csv") as sink:
        sink.write("\n".join(["shard,key,label", *lines, ""]).encode())
    assert len(index) == 24
    config = there.replace("select", method="k_center", params={}, keep=str(kept), budget=5)
    config = config.replace("export", out="s3://chain-work/out")
    select_coreset.make(config)
    export.run(config)
    assert {"out/00000.tar", "out/done.json"} <= store.keys("chain-work").keys()
    again = manifest(config)["uid"].to_pylist()
    assert len(again) == 5 and not {*again} & {*manifest(there)["uid"].to_pylist()}
    given = config.replace("signals", labels="s3://chain-work/labels.csv", classes="auto")
    with pytest.raises(ValueError, match=r"names 1 classes"):
        select_coreset.make(given.replace("select", method="cal", params={}, keep=None))


def _places(config):
    table = pool_table(config)
    rows = [
        read_table(table.parts.part(c.part), ["shard", "key"])
        for c in table.parts.committed(table.shards).values()
    ]
    rows = pa.concat_tables(rows)
    return rows["shard"].to_pylist(), rows["key"].to_pylist()


def contents(config):
    """What the parts hold, by shard."""
    table = pool_table(config)
    return {n: c.content for n, c in table.parts.committed(table.shards).items()}


@pytest.mark.slow
def test_a_shard_that_cannot_be_read_is_named_and_the_others_are_kept(chain, proxy):
    there = chain[2].model_copy(update={"workspace": "s3://chain-work/runs/broken"})
    there = there.replace("storage", endpoint=proxy.endpoint)
    proxy.faults.append(fault := Fault("GET", "train/00001.tar", "cut"))
    with pytest.raises(RuntimeError, match="1 of 3 shards could not be read") as error:
        embed.run(there)
    assert "00001.tar: OSError: AWS Error NETWORK_CONNECTION" in str(error.value)
    assert fault.struck == 3, "bounded, and not by Ray once more"
    table = pool_table(there)
    done = table.parts.committed(table.shards)
    assert {*done} == {"00000.tar", "00002.tar"}
    proxy.faults.clear()
    proxy.requests.clear()
    assert embed.run(there)["rows"] == 120
    read = {r for r in proxy.requests if r.startswith("GET /chain-shards/train")}
    assert {r.rpartition("/")[2] for r in read} == {"00001.tar"}


@pytest.mark.slow
def test_a_workspace_that_stops_taking_parts_loses_none(chain, store, proxy):
    there = chain[2].model_copy(update={"workspace": "s3://chain-work/runs/full"})
    there = there.replace("storage", endpoint=proxy.endpoint)
    proxy.faults.append(Fault("PUT", "done.json", "status", after=1))
    with pytest.raises(RuntimeError, match="was not committed: s3://chain-work") as error:
        embed.run(there)
    assert "503" in str(error.value) and proxy.endpoint in str(error.value)
    keys = [k for k in store.keys("chain-work") if k.startswith("runs/full/")]
    assert len([k for k in keys if k.endswith("done.json")]) == 1
    proxy.faults.clear()
    assert embed.run(there)["rows"] == 120
    assert contents(there) == contents(chain[2])


@pytest.mark.slow
def test_a_store_that_stutters_is_ridden_out(chain, proxy):
    """500, 503, dropped connections and bodies that end early, all through an embedding."""
    there = chain[2].model_copy(update={"workspace": "s3://chain-work/runs/stutter"})
    there = there.replace("storage", endpoint=proxy.endpoint, attempts=6)
    proxy.faults += [
        Fault("GET", "train/00000.tar", "cut", times=1),
        Fault("GET", "train/00001.tar", "status", times=2, status=500),
        Fault("GET", "list-type", "status", times=1),
        Fault("HEAD", "train/00002.tar", "drop", times=1),
        Fault("PUT", ".parquet", "status", times=2),
        Fault("PUT", "done.json", "lose", times=1),
    ]
    assert embed.run(there)["rows"] == 120
    assert [fault.struck for fault in proxy.faults] == [1, 2, 1, 1, 2, 1]
    assert contents(there) == contents(chain[2])


def test_an_unreachable_workspace_is_one_message(chain, tmp_path, capsys):
    path = write_config(
        tmp_path,
        "s3://chain-shards/train/*.tar",
        workspace="s3://chain-work/x",
        storage={"endpoint": "http://127.0.0.1:1", "attempts": 1},
    )
    with pytest.raises(SystemExit) as exit:
        cli.main(["embed", str(path)])
    said = capsys.readouterr().err
    assert exit.value.code == 1
    assert said.count("\n") == 1 and "127.0.0.1:1" in said and "Traceback" not in said
    assert "storage" in said and "AWS_ACCESS_KEY_ID" in said


@pytest.mark.slow
def test_trainings_keep_their_checkpoints_in_the_store(chain, store):
    recipe = Recipe(epochs=1, image_size=8, padding=0, flip=False, batch_size=32)
    config = chain[2].replace("evaluate", resnet=recipe, probe=None)
    rows = evaluate.run(config)["results"]
    assert {r["method"] for r in rows} == {"blindcs", "random"}
    assert [k for k in store.keys("chain-work") if "/training/" in k and k.endswith("state.pt")]


@pytest.mark.slow
def test_the_command_line_with_credentials_from_the_environment(chain, store, tmp_path):
    path = write_config(
        tmp_path,
        "s3://chain-shards/train/*.tar",
        workspace="s3://chain-work/runs/cli",
        storage={"endpoint": store.endpoint},
    )
    line = [sys.executable, "-m", "coreset_ray.cli", "run", str(path)]
    keys = {"AWS_ACCESS_KEY_ID": "AKIAX", "AWS_SECRET_ACCESS_KEY": SECRET, "RAY_ADDRESS": "local"}
    outcome = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **keys})
    assert outcome.returncode == 0, outcome.stderr
    assert "Manifest: s3://chain-work/runs/cli/selections/" in outcome.stdout
    assert SECRET not in outcome.stdout + outcome.stderr
    for key in store.keys("chain-work"):
        with store.fs.open_input_file(f"chain-work/{key}") as source:
            assert SECRET.encode() not in source.read(), key
