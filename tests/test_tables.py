"""Embedding parts that any tool reads, and parts that count only once committed."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.shards import Shard
from coreset_ray.io.tables import (
    QUARANTINE,
    Commit,
    PartedTable,
    content_hash,
    embedding_schema,
    matrix,
    part_name,
    read_table,
    uid_of,
    uid_words,
    write_table,
)
from coreset_ray.io.workspace import Workspace, snapshot_key, snapshot_of

WIDTH = 5
SHARD = Shard("web/00000.tar", "/pool/web/00000.tar", 10_240, 1_700_000_000_000_000_000)


def embeddings(n, seed=0):
    """Values that float16 holds exactly."""
    return np.random.default_rng(seed).integers(-500, 500, (n, WIDTH)).astype(np.float32) / 8


def part(n, dtype="float32", shard=SHARD.name, seed=0):
    schema = embedding_schema(WIDTH, dtype)
    keys = [f"ordner/größe {i}" for i in range(n)]
    flat = pa.array(
        embeddings(n, seed).astype(dtype).ravel(), schema.field("embedding").type.value_type
    )
    columns = [
        pa.array([uid_of(shard, key) for key in keys], pa.string()),
        pa.array([shard] * n, pa.string()),
        pa.array(keys, pa.string()),
        pa.array([f"{i:064x}" for i in range(n)], pa.string()),
        pa.array(range(100, 100 + n), pa.int32()),
        pa.array(range(200, 200 + n), pa.int32()),
        pa.FixedSizeListArray.from_arrays(flat, WIDTH),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def record(shard=SHARD, **changes):
    plain = Commit(shard.name, part_name(shard), 3, 0, 0, "", "c0ffee", "float32")
    return replace(plain, **changes)


# --- what other tools read -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_part_comes_back_as_it_was(tmp_path, dtype):
    table = part(7, dtype)
    write_table(locate(tmp_path / "p.parquet"), table)
    back = read_table(locate(tmp_path / "p.parquet"))
    assert back.equals(table) and back.schema.equals(embedding_schema(WIDTH, dtype))
    np.testing.assert_array_equal(matrix(back["embedding"]), embeddings(7))
    assert matrix(back["embedding"]).dtype == np.float32
    some = read_table(locate(tmp_path / "p.parquet"), ["sha256", "uid"])
    assert some.column_names == ["sha256", "uid"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_polars_reads_it(tmp_path, dtype):
    write_table(locate(tmp_path / "p.parquet"), part(7, dtype))
    frame = polars.read_parquet(tmp_path / "p.parquet")
    value = {"float32": polars.Float32, "float16": polars.Float16}[dtype]
    assert frame.schema["embedding"] == polars.Array(value, WIDTH)
    assert frame.schema["uid"] == polars.String and frame.schema["width"] == polars.Int32
    np.testing.assert_array_equal(np.array(frame["embedding"].to_list(), "f4"), embeddings(7))
    assert frame["key"].to_list() == part(7)["key"].to_pylist()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_duckdb_reads_it(tmp_path, dtype):
    write_table(locate(tmp_path / "p.parquet"), part(7, dtype))
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"select embedding, key, width, typeof(embedding), typeof(width) "
            f"from '{tmp_path}/p.parquet' order by width"
        ).fetchall()
    assert {row[3] for row in rows} == {"FLOAT[]"}  # it widens float16, and drops the fixed size
    assert {row[4] for row in rows} == {"INTEGER"}
    np.testing.assert_array_equal(np.array([row[0] for row in rows], "f4"), embeddings(7))
    assert [row[1] for row in rows] == part(7)["key"].to_pylist()


def test_parquet_carries_no_extension_type(tmp_path):
    write_table(locate(tmp_path / "p.parquet"), part(3))
    file = pq.ParquetFile(tmp_path / "p.parquet")
    assert not any(isinstance(f.type, pa.BaseExtensionType) for f in file.schema_arrow)
    assert all("ray" not in str(f.metadata) for f in file.schema_arrow)


# --- identity --------------------------------------------------------------------------------


def test_a_uid_is_32_hex_digits_of_shard_and_key():
    uid = uid_of("a.tar", "k")
    assert re.fullmatch(r"[0-9a-f]{32}", uid) and uid == uid_of("a.tar", "k")
    assert uid == "6d03cf30b487f487a252edad97185db5", (
        "identities must never change: tables of last year hold them"
    )
    assert len({uid_of("a", "bc"), uid_of("ab", "c"), uid_of("", "abc"), uid_of("abc", "")}) == 4


@given(st.sets(st.tuples(st.text("ab/. ", max_size=4), st.text("ab/. ", max_size=4)), max_size=30))
def test_uids_differ_by_shard_and_by_key(pairs):
    assert len({uid_of(shard, key) for shard, key in pairs}) == len(pairs)


@given(st.lists(st.text("0123456789abcdef", min_size=32, max_size=32), max_size=20))
def test_words_sort_as_the_strings_do(uids):
    words = uid_words(pa.array(uids, pa.string()))
    assert words.shape == (len(uids), 2) and words.dtype == np.uint64
    order = np.lexsort((words[:, 1], words[:, 0]))
    assert [uids[i] for i in order] == sorted(uids)
    chunks = [pa.array(uids[:3], pa.string()), pa.array(uids[3:], pa.string())]
    np.testing.assert_array_equal(uid_words(pa.chunked_array(chunks)), words)


# --- names of parts --------------------------------------------------------------------------

_NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300),
    st.sampled_from(["../../etc/passwd", "/abs.tar", "a/../b.tar", "..", ".tar", "東京/ü.tar"]),
    st.text("./\\\0\n ~$*", min_size=1, max_size=8),
)


@given(_NAMES, st.integers(0, 2**62), st.integers(-(2**62), 2**62))
def test_a_part_name_is_a_safe_file_name(name, size, mtime):
    safe = part_name(Shard(name, "anywhere", size, mtime))
    assert re.fullmatch(r"[A-Za-z0-9_-]{13,93}", safe)
    assert safe == part_name(Shard(name, "elsewhere", size, mtime)), "the place is no part of it"


@given(_NAMES, _NAMES, st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_part_names_differ_by_name_size_and_time(one, other, size, mtime, more):
    assume(one != other and more)
    variants = [(one, size, mtime), (other, size, mtime), (one, size + more, mtime)]
    variants += [(one, size, mtime + more)]
    names = {part_name(Shard(n, "u", s, t)) for n, s, t in variants}
    assert len(names) == 4
    assert len({name.lower() for name in names}) == 4, "on a file system that ignores case too"


def test_a_part_name_shows_the_shard():
    assert part_name(SHARD).startswith("web_00000-")


# --- commits ---------------------------------------------------------------------------------


def no_rows():
    return pa.Table.from_pylist([], schema=QUARANTINE)


def faults():
    rows = [{"shard": SHARD.name, "key": "k\n1", "reason": "zero bytes"}]
    return pa.Table.from_pylist(rows, schema=QUARANTINE)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_commit_is_found_by_its_shard(tmp_path):
    table = PartedTable(locate(tmp_path))
    assert table.committed([SHARD]) == {}
    commit = record(quarantined=1)
    table.commit(commit, part(3), faults())
    assert table.committed([SHARD]) == {SHARD.name: commit}
    assert read_table(table.part(commit.part)).equals(part(3))
    assert read_table(table.quarantine(commit.part)).equals(faults())
    name = commit.part
    assert files(tmp_path) == [
        *(f"parts/{name}.done.json", f"parts/{name}.parquet", f"quarantine/{name}.parquet")
    ]


def test_no_file_for_no_images_and_no_faults(tmp_path):
    table = PartedTable(locate(tmp_path))
    table.commit(record(rows=0), None, no_rows())
    assert files(tmp_path) == [f"parts/{part_name(SHARD)}.done.json"]
    assert table.committed([SHARD])[SHARD.name].rows == 0


def test_a_part_without_its_record_does_not_count(tmp_path):
    table = PartedTable(locate(tmp_path))
    table.commit(record(), part(3), no_rows())
    (tmp_path / "parts" / f"{part_name(SHARD)}.done.json").unlink()
    assert table.committed([SHARD]) == {}


@pytest.mark.parametrize("change", [{"size": 1}, {"mtime_ns": 1}, {"name": "web/00001.tar"}])
def test_another_shard_is_not_committed_by_this_one(tmp_path, change):
    table = PartedTable(locate(tmp_path))
    table.commit(record(), part(3), no_rows())
    assert table.committed([replace(SHARD, **change)]) == {}
    assert table.committed([replace(SHARD, uri="/moved/00000.tar")]) == {SHARD.name: record()}


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_crash_at_any_write_leaves_nothing_that_counts(tmp_path, monkeypatch, dies_at):
    table = PartedTable(locate(tmp_path))
    replacing, written = Location.replacing, []

    def dying(self):
        if len(written) == dies_at:
            raise OSError("the machine is gone")
        written.append(self.path)
        return replacing(self)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "replacing", dying)
        with pytest.raises(OSError, match="gone"):
            table.commit(record(), part(3), faults())
    assert len(written) == dies_at and table.committed([SHARD]) == {}
    table.commit(record(), part(3), faults())
    assert table.committed([SHARD]) == {SHARD.name: record()}
    assert read_table(table.part(part_name(SHARD))).equals(part(3))


# --- writes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, error):
    target = locate(tmp_path / "new" / "file")
    with pytest.raises(error), target.replacing() as sink:
        sink.write(b"half")
        raise error
    assert not target.exists() and files(tmp_path) == []
    target.write_json({"old": 1})
    with pytest.raises(error), target.replacing() as sink:
        sink.write(b"half")
        sink.flush()
        raise error
    assert target.read_json() == {"old": 1} and files(tmp_path) == ["new/file"]
    with target.replacing() as sink:
        sink.write(b'{"new": 2}')
        assert target.read_json() == {"old": 1}, "not before the block ends"
    assert target.read_json() == {"new": 2} and files(tmp_path) == ["new/file"]


def test_a_write_that_fails_uploads_nothing_to_a_store():
    from pyarrow import fs

    target = Location(fs._MockFileSystem(), "file")
    with pytest.raises(ValueError), target.replacing() as sink:
        sink.write(b"half")
        raise ValueError
    assert not target.exists()
    with target.replacing() as sink:
        sink.write(b"whole")
        assert not target.exists()
    with target.open_stream() as stream:
        assert stream.read() == b"whole"


@pytest.mark.parametrize("uri", ["ftp://host/x", "http://host/x", "nonsense://x"])
def test_a_scheme_that_is_not_known(uri):
    with pytest.raises(ValueError, match="s3://") as error:
        locate(uri)
    assert uri.partition(":")[0] in str(error.value)


def test_a_location_gives_back_its_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("a/b", f"{tmp_path}/a/b/", f"file://{tmp_path}/a/b", "./a/x/../b"):
        location = locate(uri)
        assert location.path == f"{tmp_path}/a/b" == location.uri
        assert locate(location.uri) == location
    assert locate("~/x").path.startswith("/")


# --- hashes and snapshots --------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.integers(0, 12), max_size=4))
def test_the_content_hash_is_of_rows_not_of_chunks(cuts):
    table = part(12)
    edges = [0, *sorted(cuts), 12]
    pieces = [table.slice(a, b - a) for a, b in pairwise(edges)]
    assert content_hash(pa.concat_tables(pieces)) == content_hash(table)


def test_the_content_hash_sees_every_row():
    table = part(6)
    seen = {content_hash(table), content_hash(table.slice(1)), content_hash(table.slice(0, 5))}
    seen |= {content_hash(table.take([1, 0, 2, 3, 4, 5])), content_hash(part(6, shard="b.tar"))}
    seen |= {content_hash(part(6, seed=1)), content_hash(part(0))}
    other = [*table["sha256"].to_pylist()[:-1], "f" * 64]
    seen.add(content_hash(table.set_column(3, "sha256", pa.array(other))))
    assert len(seen) == 8
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for digest in seen)


def test_a_snapshot_does_not_depend_on_the_order_of_its_parts():
    commits = [
        record(replace(SHARD, name=f"{i}.tar"), content=f"c{i}", rows=i, quarantined=i)
        for i in range(5)
    ]
    snapshot = snapshot_of("table", commits)
    assert snapshot == snapshot_of("table", reversed(commits))
    assert (snapshot["rows"], snapshot["quarantined"]) == (10, 10)
    assert json.loads(json.dumps(snapshot)) == snapshot
    moved = [replace(c, part="elsewhere", precision="bfloat16") for c in commits]
    assert snapshot_key(snapshot_of("table", moved)) == snapshot_key(snapshot)
    changed = [*commits[:-1], replace(commits[-1], content="other")]
    assert snapshot_key(snapshot_of("table", changed)) != snapshot_key(snapshot)
    assert snapshot_key(snapshot_of("other", commits)) != snapshot_key(snapshot)


def test_a_stage_counts_once_it_is_finished(tmp_path):
    stage = Workspace(str(tmp_path)).stage("scores", "blindcs", "abc")
    assert stage.name == "blindcs-abc" and stage.done() is None
    assert stage.finish({"rows": 3}) == {"rows": 3}
    again = Workspace(str(tmp_path)).stage("scores", "blindcs", "abc")
    assert again.done() == {"rows": 3} and again == stage
    assert files(tmp_path) == ["scores/blindcs-abc/done.json"]
