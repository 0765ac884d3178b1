"""A selection checked against its record, and the ledger that makes it possible."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import digits_pool, embed_pixels, write_config

from coreset_ray.cli import main
from coreset_ray.config import load
from coreset_ray.io.filesystem import locate
from coreset_ray.io.ledger import Chunk, Ledger, Record, SumFile, missing
from pipelines import embed, score, select_coreset, verify
from pipelines.inputs import pool_table


@pytest.fixture(scope="module")
def selected(tmp_path_factory, ray_local):
    """The folders of a selection and of the scores and sums it was made from."""
    folder = tmp_path_factory.mktemp("verify")
    train, _ = digits_pool(folder, shards=3, each=30)
    config = load(write_config(folder, train))
    embed_pixels(pool_table(config))
    for stage in (embed, score, select_coreset):
        stage.run(config)
    work = Path(config.workspace)
    return tuple(next((work / kind).iterdir()) for kind in ("selections", "scores", "sums"))


def test_an_honest_run_passes(selected, capsys):
    found = verify.run(f"{selected[0]}/", chunks=2, seed=0)
    assert found["chunks replayed"] == 2 and found["draws recorded"] == 3000
    main(["verify", str(selected[0]), "--chunks", "1"])
    assert "draws replayed" in capsys.readouterr().out
    told = json.loads((selected[0] / "selection.json").read_text())["score"]
    assert told["stability"]["draws"] == 3000
    assert 0 <= told["overlap_of_two_such_selections"]["expected"] <= 1


def tampered(path: Path, change) -> bytes:
    before = path.read_bytes()
    data = json.loads(before)
    change(data)
    path.write_text(json.dumps(data))
    return before


def swap_first_rows(path: Path, column: str) -> bytes:
    before = path.read_bytes()
    rows = pq.read_table(path)
    values = rows[column].to_pylist()
    values[0], values[1] = values[1], values[0]
    place = rows.column_names.index(column)
    pq.write_table(rows.set_column(place, rows.field(place), pa.array(values)), path)
    return before


@pytest.mark.slow
def test_whatever_differs_is_named(selected):
    selection, scores, sums = selected
    done = scores / "done.json"

    def two_marks_moved(record):  # their sum stays what it was
        a, b = (int(chunk[2], 16) for chunk in record["chunks"][:2])
        record["chunks"][0][2], record["chunks"][1][2] = f"{a + 1:016x}", f"{b - 1:016x}"

    def mark_moved(record):
        record["chunks"][0][2] = f"{(int(record['chunks'][0][2], 16) + 1) % 2**64:016x}"

    cases = [
        (done, mark_moved, "not those of the recorded chunks"),
        (done, two_marks_moved, r"draws \d+ to \d+ give"),
        (done, lambda r: r["chunks"].pop(), "are not 3000 draws"),
    ]
    for path, change, message in cases:
        before = tampered(path, change)
        with pytest.raises(verify.Mismatch, match=message):
            verify.run(str(selection), chunks=1000)
        path.write_bytes(before)
    part = next(scores.glob("part-*.parquet"))
    for path, column, message in (
        (part, "score", "does not hold the scores of its sums"),
        (selection / "manifest.parquet", "uid", "the manifest is not the 18"),
    ):
        before = swap_first_rows(path, column)
        with pytest.raises(verify.Mismatch, match=message):
            verify.run(str(selection), chunks=1)
        path.write_bytes(before)
    hidden = sums.rename(sums.with_name("elsewhere"))
    with pytest.raises(verify.Mismatch, match="no longer holds the sums of all 3000 draws"):
        verify.run(str(selection))
    hidden.rename(sums)
    verify.run(str(selection), chunks=1)


def test_no_selection(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(tmp_path)])
    assert stopped.value.code == 2
    assert "is no selection" in capsys.readouterr().err


@given(st.lists(st.integers(0, 40), min_size=2, max_size=8, unique=True), st.integers(0, 40))
def test_gaps_are_what_no_chunk_covers(edges: list[int], last: int) -> None:
    ends = sorted(edges)
    chunks = [Chunk(a, b, 0) for a, b in zip(ends[::2], ends[1::2], strict=False)]
    covered = {t for c in chunks for t in range(c.first, c.last)}
    gaps = missing(chunks[::-1], 0, last)
    assert [t for a, b in gaps for t in range(a, b)] == [t for t in range(last) if t not in covered]


def test_a_ledger_counts_no_draw_twice(tmp_path) -> None:
    ledger = Ledger(locate(tmp_path / "sums"))
    assert ledger.usable(100) == []
    total = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    ledger.write_sum("a.npy", total)
    file = SumFile("a.npy", ("p", "q"), (2, 3))
    for name, spans in (
        ("most", [(0, 30), (60, 100)]),
        ("overlapping", [(20, 40)]),
        ("beside", [(30, 60)]),
        ("beyond", [(90, 120)]),
    ):
        ledger.commit(Record(name, tuple(Chunk(*span, 7) for span in spans), (file,)))
    assert [r.name for r in ledger.usable(100)] == ["most", "beside"]
    assert [r.name for r in ledger.usable(95)] == ["beside"]
    assert [r.name for r in ledger.usable(200)] == ["most", "beside"]
    read = ledger.read_sum(file, ["q", "other"])
    assert list(read) == ["q"]
    np.testing.assert_array_equal(read["q"], total[..., 2:])
    (tmp_path / "sums" / "orphan.npy").write_bytes(b"")
    ledger.clean()
    assert not (tmp_path / "sums" / "orphan.npy").exists()
    ledger.forget(ledger.usable(100))
    assert [r.name for r in ledger.usable(100)] == ["overlapping"]
