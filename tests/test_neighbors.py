"""Nearest neighbours against a search of every pair, on any number of actors."""

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from matrices import gaussian, grid, relu
from pools import digits_pool, embed_pixels, table_of, write_config

from coreset_ray import cli
from coreset_ray.clustering.neighbors import Neighbors, best, choose_kind, recall
from coreset_ray.config import load
from coreset_ray.core.cosine import unit_rows
from coreset_ray.distributed import neighbors
from coreset_ray.distributed.neighbors import Search, find_neighbors
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import read_table, uid_words
from pipelines import embed, signal_knn
from pipelines.inputs import filled, pool_table


def oracle(z: np.ndarray, uid: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By every pair, sorted; similarities as the method measures them."""
    unit = unit_rows(z).astype(np.float64)
    similarity = np.zeros((len(z), len(z)))
    for j in range(z.shape[1]):
        similarity += unit[:, j, None] * unit[None, :, j]
    found = np.empty((len(z), k), int)
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        found[i] = sorted(others, key=lambda j: (-similarity[i, j], *uid[j]))[:k]
    return found, np.take_along_axis(similarity, found, 1).astype(np.float32)


def test_rows_have_length_one_or_zero() -> None:
    z = np.concatenate([gaussian(9, np.random.default_rng(0)), np.zeros((1, 20))])
    z *= np.geomspace(1e-12, 1e12, 10)[:, None]
    unit = unit_rows(z.astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1.0] * 9 + [0.0], atol=1e-6)
    np.testing.assert_array_equal(unit_rows(z[:4]), unit_rows(z)[:4])


@pytest.mark.parametrize("make", [gaussian, relu, grid])
def test_neighbours_equal_a_search_of_every_pair(make) -> None:
    rng = np.random.default_rng(1)
    z = make(300, rng).astype(np.float32)
    z[5:9], z[20] = z[4], 0
    uid = rng.integers(0, 3, (300, 2)).astype(np.uint64)
    uid[:, 1] = rng.permutation(300)
    place, similarity = Neighbors(unit_rows(z), "flat").search(unit_rows(z), 10)
    chosen = best(similarity, place, uid[place], np.arange(300), 10)
    found, expected = oracle(z, uid, 10)
    measured = np.take_along_axis(similarity, chosen, 1).astype(np.float32)
    np.testing.assert_array_equal(measured, expected)
    ours = np.take_along_axis(place, chosen, 1)
    apart = expected[:, -1] - np.sort(-expected, axis=1)[:, -1]  # ties at the end may go beyond
    same = (ours == found).all(axis=1)
    assert same[np.array([len(set(row)) == 10 for row in expected.tolist()])].all(), apart


def test_recall_counts_what_was_found() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(truth[:, ::-1], truth) == 1
    assert recall(np.array([[1, 2, 9, -1], [5, 0, 0, 0]]), truth) == 3 / 8


def test_every_pair_is_compared_while_that_is_cheap() -> None:
    assert [choose_kind(n) for n in (500_000, 500_001, 50_000_001)] == ["flat", "ivf", "ivfpq"]


ROWS, PARTS = 2400, 7


def files(out) -> dict[str, tuple]:
    names = sorted(n for n in os.listdir(out.path) if n.endswith(".parquet"))
    read = {n: pq.read_table(f"{out.path}/{n}") for n in names}
    return {
        n: tuple(t[c].combine_chunks().to_pylist() for c in ("uid", "neighbor", "similarity"))
        for n, t in read.items()
    }


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(ROWS, 16))
    z[100:140] = z[60]
    folder = tmp_path_factory.mktemp("neighbors")
    return *table_of(folder / "table", z, PARTS), z.astype(np.float32)


@pytest.mark.parametrize(
    "kind", ["ivf", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("flat", "ivfpq"))]
)
def test_any_number_of_actors_writes_the_same(
    table, ray_local, tmp_path, monkeypatch, kind
) -> None:
    monkeypatch.setattr(neighbors, "_BLOCK", 800)
    embedded, parts, z = table
    search = Search(10, 16, kind, 8, 3)
    told, written = [], []
    for actors, threads in ((1, 1), (3, 2)) if kind == "ivf" else ((1, 1), (3, 2), (7, 1)):
        out = locate(str(tmp_path / f"out-{actors}"))
        told.append(find_neighbors(embedded, parts, search, out, actors=actors, threads=threads))
        written.append(files(out))
    assert all(w == written[0] for w in written) and all(t == told[0] for t in told)
    names = [f"part-{p}.parquet" for p in parts]
    assert sorted(names) == list(written[0])
    uid = np.concatenate([uid_words(read_table(embedded.part(p), ["uid"])["uid"]) for p in parts])
    found, similarity = oracle(z, uid, 10)
    ours = np.concatenate([written[0][n][2] for n in names])
    if kind == "flat":
        assert told[0] == {"recall": 1.0}
        np.testing.assert_array_equal(ours, similarity)
        return
    rows = np.concatenate([written[0][n][1] for n in names])
    assert told[0]["recall"] == pytest.approx(recall(rows, found), abs=0.05)
    assert 0.5 < told[0]["recall"] < 1


def test_only_missing_parts_are_searched(table, ray_local, tmp_path) -> None:
    embedded, parts, _ = table
    out, search = locate(str(tmp_path)), Search(5, 16, "flat", 1, 1)
    find_neighbors(embedded, parts, search, out, actors=2)
    before = files(out)
    marks = {n: os.stat(tmp_path / n).st_mtime_ns for n in before}
    (tmp_path / "part-p3.parquet").unlink()
    find_neighbors(embedded, parts, search, out, actors=1)
    assert files(out) == before
    redone = [n for n in before if os.stat(tmp_path / n).st_mtime_ns != marks[n]]
    assert redone == ["part-p3.parquet"]


def test_what_cannot_be_searched_is_named(table, ray_local, tmp_path) -> None:
    embedded, parts, _ = table
    search = Search(5, 15, "flat", 1, 1)
    with pytest.raises(Exception, match=r"part 'p\d' holds embeddings of 16 .*, .* has 15"):
        find_neighbors(embedded, parts, search, locate(str(tmp_path)), actors=1)
    z = np.ones((40, 3))
    z[33, 2] = np.inf
    bad, rows = table_of(tmp_path / "bad", z, 2)
    with pytest.raises(Exception, match="part 'p1': embedding row 13 holds a NaN or infinite"):
        find_neighbors(bad, rows, Search(5, 3, "flat", 1, 1), locate(str(tmp_path)), actors=1)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, ray_local):
    folder = tmp_path_factory.mktemp("signals")
    train, _ = digits_pool(folder, shards=3, each=60)
    path = write_config(folder, train, signals={"knn": {"k": 7}})
    embed_pixels(pool_table(load(path)))
    embed.run(load(path))
    return path


def test_the_signal_is_written_once(embedded, caplog) -> None:
    config = load(embedded)
    record = signal_knn.run(config)
    stage, *_ = signal_knn.stage_of(config)
    parts = filled(pool_table(config).snapshot())
    rows = [pq.read_table(f"{stage.folder.path}/part-{p}.parquet") for p in parts]
    assert sum(len(r) for r in rows) == 180 and record["kind"] == "flat" and record["k"] == 7
    neighbor = np.concatenate([r["neighbor"].to_pylist() for r in rows])
    assert neighbor.shape == (180, 7) and ((neighbor >= 0) & (neighbor < 180)).all()
    assert (neighbor != np.arange(180)[:, None]).all()
    with caplog.at_level("INFO"):
        assert signal_knn.run(config) == record
    assert "nothing to do" in caplog.text
    other = config.model_copy(update={"signals": load(embedded, ["signals.knn.k=6"]).signals})
    assert signal_knn.stage_of(other)[0].folder != stage.folder


def test_a_poor_index_is_warned_of(embedded, caplog) -> None:
    poor = load(embedded, ["signals.knn.index=ivf", "signals.knn.lists=4", "signals.knn.probes=1"])
    record = signal_knn.run(poor)
    assert record["recall"] < 0.95 and "raise signals.knn.probes" in caplog.text


@pytest.mark.parametrize("k", [180, 500])
def test_more_neighbours_than_images_are_refused(embedded, capsys, k) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["signals", "--only", "knn", str(embedded), f"signals.knn.k={k}"])
    assert stop.value.code == 2
    assert f"signals.knn.k={k}: the pool has 180 images" in capsys.readouterr().err
