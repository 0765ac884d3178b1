"""Measures without labels against dense and obvious forms, however the pool is cut."""

import json
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import duplicates, gaussian, grid, relu
from pools import table_of

from coreset_ray.core import cosine as cosine_module
from coreset_ray.core.cosine import largest_cosine, nearest_rows, unit_rows
from coreset_ray.core.measures import (
    BINS,
    EDGES,
    Distances,
    agreement,
    chord,
    coverage,
    coverage_curve,
    effective_size,
)
from coreset_ray.distributed import kept
from coreset_ray.distributed.coverage import measure_coresets
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable, read_table, write_table

distance = st.floats(0, 2) | st.integers(0, 2000).map(lambda i: i / 1000)


def same(a: Distances, b: Distances) -> bool:
    alike = np.array_equal(a.histogram, b.histogram)
    return alike and (a.total, a.largest) == (b.total, b.largest)


@settings(max_examples=60, deadline=None)
@given(st.lists(distance, max_size=40), st.lists(st.integers(0, 40), max_size=4), st.randoms())
def test_records_of_any_cut_in_any_order_add_up(values, cuts, random) -> None:
    d = np.array(values, float)
    whole = Distances.of(d)
    pieces = [
        Distances.of(p) for p in np.split(d[random.sample(range(len(d)), len(d))], sorted(cuts))
    ]
    random.shuffle(pieces)
    assert same(sum(pieces[1:], pieces[0]), whole)
    assert len(whole) == len(d) and whole.largest == max(values, default=0)
    exact = float(sum(map(Fraction, values)) / max(1, len(d)))
    assert whole.mean == pytest.approx(exact, abs=2**-32)


@settings(max_examples=60, deadline=None)
@given(st.lists(distance, min_size=1, max_size=40), st.integers(1, BINS), st.floats(0.01, 1))
def test_coverage_and_quantiles_are_those_of_the_rows(values, edge, share) -> None:
    d, radius = np.array(values), edge / 1000
    found = Distances.of(d)
    assert found.coverage(radius) == np.mean(d <= radius)
    assert found.coverage(min(2.0, radius + 0.0005)) == found.coverage(radius)
    q = found.quantile(share)
    exact = np.quantile(d, share, method="inverted_cdf")
    assert exact <= q <= exact + 0.001 + 1e-12 and q <= d.max()


def test_the_curve_rises_to_one() -> None:
    d = np.random.default_rng(0).uniform(0, 1.7, 3000)
    histogram = Distances.of(d).record()["histogram"]
    curve = coverage_curve(histogram)
    assert (np.diff(curve) >= 0).all() and curve[-1] == 1 and curve[0] < 0.01
    assert [coverage(histogram, r) for r in EDGES[::97]] == curve[::97].tolist()


def test_nothing_left_is_covered_at_any_radius() -> None:
    none = Distances.of(np.empty(0))
    assert (coverage_curve(none.histogram) == 1).all() and none.coverage(0.001) == 1
    told = none.record()
    assert [told[n] for n in ("images", "mean", "max", "median", "q95")] == [0] * 5


@pytest.mark.parametrize("radius", [-1, 0, 0.0009, 2.1, float("nan")])
def test_a_radius_that_no_bin_has_is_refused(radius) -> None:
    with pytest.raises(ValueError, match=r"radius=.*expected a chord from 0\.001 to 2"):
        Distances.of(np.zeros(3)).coverage(radius)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_a_quantile_is_of_a_share(share) -> None:
    with pytest.raises(ValueError, match=r"quantile .*: expected a share"):
        Distances.of(np.zeros(3)).quantile(share)


def test_effective_size_is_between_one_and_all() -> None:
    assert effective_size(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_size(np.array([1, 1e-9])) == pytest.approx(1)
    assert effective_size(np.array([0, 2.0, 2.0])) == pytest.approx(2)
    assert effective_size(np.array([1e-300, 1e-300])) == pytest.approx(2)
    w = np.random.default_rng(0).lognormal(0, 3, 500)
    assert effective_size(w) == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert effective_size(w[::-1]) == effective_size(w)  # to the bit


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([0, 0], "none of 2 weights"),
        ([], "none of 0"),
        ([1, -0.5], r"-0\.5 of image 1"),
        ([np.nan], "nan of image 0"),
        ([1, 1, np.inf], "inf of image 2"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(weights, says) -> None:
    with pytest.raises(ValueError, match=says):
        effective_size(np.array(weights, float))


def test_agreement_is_the_overlap_of_pairs() -> None:
    found = agreement([["a", "b", "c"], ["c", "b", "x"], ["y", "z", "a"]], 12)
    assert (found.overlap, found.chance) == ((2 + 1 + 0) / 9, 0.25)
    assert agreement([range(5), range(5)], 5).overlap == 1
    rng = np.random.default_rng(0)
    random = agreement([rng.choice(1000, 100, replace=False).tolist() for _ in range(20)], 1000)
    assert random.overlap == pytest.approx(random.chance, abs=0.01)


@pytest.mark.parametrize(
    ("selections", "n", "says"),
    [
        ([], 5, "0 selections"),
        ([["a"]], 5, "1 selections"),
        ([["a", "b"], ["a"]], 5, "selection 1 has 1 images, the first 2"),
        ([["a", "b"], ["a", "a"]], 5, "selection 1 names 1 images twice"),
        ([["a", "b"], ["a", "b"]], 1, "selections of 2 images: expected 1 to 1"),
        ([[], []], 5, "selections of 0"),
    ],
)
def test_what_cannot_agree_is_refused(selections, n, says) -> None:
    with pytest.raises(ValueError, match=says):
        agreement(selections, n)


def dense_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By definition, of any rows; (q, r) float64."""
    product = np.zeros((len(a), len(b)))
    for j in range(a.shape[1]):
        product += a[:, j, None].astype(float) * b[None, :, j].astype(float)
    length = np.sqrt((a.astype(float) ** 2).sum(1)[:, None] * (b.astype(float) ** 2).sum(1))
    return np.clip(product / np.where(length > 0, length, 1), -1, 1)


@pytest.mark.parametrize("make", [gaussian, relu, duplicates, grid])
@pytest.mark.parametrize("products", [1, 500, 1 << 22])
def test_nearest_rows_equal_a_look_at_every_pair(monkeypatch, make, products) -> None:
    monkeypatch.setattr(cosine_module, "_PRODUCTS", products)
    rng = np.random.default_rng(3)
    unit = unit_rows(make(150, rng).astype(np.float32))
    unit[7], unit[8] = 0, unit[9]
    rows, own = unit[40:], np.r_[np.full(40, -1), np.arange(110)]
    truth = dense_cosine(unit, rows)
    place, cosine = nearest_rows(unit, rows, 6)
    np.testing.assert_allclose(cosine, -np.sort(-truth, axis=1)[:, :6], atol=1e-15)
    np.testing.assert_allclose(np.take_along_axis(truth, place, 1), cosine, atol=1e-15)
    equal = cosine[:, 1:] == cosine[:, :-1]
    assert (cosine[:, 1:] <= cosine[:, :-1]).all() and (np.diff(place)[equal] > 0).all()
    assert [len(set(line)) for line in place.tolist()] == [6] * 150
    np.testing.assert_array_equal(largest_cosine(unit, rows, np.full(150, -1)), cosine[:, 0])
    truth[np.arange(40, 150), np.arange(110)] = -np.inf
    np.testing.assert_allclose(largest_cosine(unit, rows, own), truth.max(axis=1), atol=1e-15)


def test_differences_below_single_precision_are_seen() -> None:
    """Many of these rows have the same float32 product with the query."""
    rng = np.random.default_rng(0)
    query = unit_rows(rng.normal(size=(1, 900)))
    rows = np.repeat(query, 400, axis=0)
    rows[np.arange(400), rng.integers(0, 900, 400)] += rng.normal(size=400).astype(np.float32) / 999
    rows = unit_rows(rows)
    truth = dense_cosine(query, rows)[0]
    assert len(np.unique(query @ rows.T)) < 100
    place, cosine = nearest_rows(query, rows, 20)
    np.testing.assert_array_equal(place[0], np.argsort(-truth, kind="stable")[:20])
    assert largest_cosine(query, rows, np.array([-1]))[0] == cosine[0, 0] < 1


def test_a_row_alone_has_no_other() -> None:
    unit = unit_rows(np.ones((1, 4)))
    assert largest_cosine(unit, unit, np.array([0])).tolist() == [-np.inf]
    assert largest_cosine(unit, unit, np.array([-1])).tolist() == [1.0]
    assert chord(np.array([1.0, 0.0, -1.0])).tolist() == [0, np.sqrt(2), 2]


N = 600


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Embeddings with copies, near-copies and zeros, and made-up clusters, in 7 parts."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(N, 12)).astype(np.float32)
    z[100:140], z[300:320] = z[60], z[61] + rng.normal(size=(20, 12)) / 20
    z[[5, 400]] = 0
    cluster = np.minimum(rng.geometric(0.15, N), 12).astype(np.int32)
    return z, cluster, *laid(tmp_path_factory.mktemp("measures"), z, cluster, 7)


def laid(folder, z, cluster, parts):
    """table, rows by part, folder of clusters, uids. The uids are the same however it is cut."""
    table, rows = table_of(folder / "table", z, parts)
    uid = [f"{i * 7919 % N:032x}" for i in range(N)]
    clusters, first = locate(str(folder / "clusters")), 0
    for part, n in rows.items():
        here = slice(first, first + n)
        read = read_table(table.part(part))
        write_table(table.part(part), read.set_column(0, "uid", pa.array(uid[here])))
        columns = {"uid": pa.array(uid[here]), "cluster": pa.array(cluster[here])}
        write_table(clusters / f"part-{part}.parquet", pa.table(columns))
        first += n
    return table, rows, clusters, np.array(uid)


def manifest(uid, rows, weight=None):
    weight = np.ones(len(rows)) if weight is None else weight
    return pa.table({"uid": pa.array(uid[rows].tolist()), "weight": weight})


def oracle(z, cluster, rows, duplicate):
    """All of one coreset but its histogram; and the distances."""
    cosine = dense_cosine(unit_rows(z), unit_rows(z))
    rest = np.setdiff1d(np.arange(len(z)), rows)
    distances = np.sqrt(2 - 2 * cosine[np.ix_(rest, rows)]).min(axis=1)
    among = cosine[np.ix_(rows, rows)]
    np.fill_diagonal(among, -1)
    hit = np.unique(cluster[rows])
    return distances, {
        "near_duplicates": (among.max(axis=1) >= duplicate).mean() if len(rows) > 1 else 0,
        "clusters": len(hit) / len(np.unique(cluster)),
        "images": np.isin(cluster, hit).mean(),
    }


def coresets(uid):
    rng = np.random.default_rng(1)
    rows = [rng.permutation(N)[:k] for k in (60, 150, 1)]
    rows += [np.arange(95, 130), np.array([5, 400, 60, 100]), np.array([3, 4])]
    return rows, [manifest(uid, r, rng.random(len(r)) + 0.1) for r in rows]


def test_measures_equal_a_look_at_every_pair(pool, ray_local) -> None:
    z, cluster, table, parts, clusters, uid = pool
    rows, kept_rows = coresets(uid)
    told = measure_coresets(table, parts, kept_rows, clusters=clusters, duplicate=0.99)
    assert json.loads(json.dumps(told)) == told and len(told) == len(rows)
    for found, kept_here, coreset in zip(told, rows, kept_rows, strict=True):
        distances, expected = oracle(z, cluster, kept_here, 0.99)
        ours = found["distances"]
        assert found["images"] == len(kept_here) and ours["images"] == N - len(kept_here)
        assert ours["mean"] == pytest.approx(distances.mean(), abs=1e-8)
        assert ours["max"] == pytest.approx(distances.max(), abs=1e-7)
        for name, share in (("median", 0.5), ("q95", 0.95)):
            exact = np.quantile(distances, share, method="inverted_cdf")
            assert exact - 1e-7 <= ours[name] <= exact + 0.001 + 1e-7
        curve = [(distances <= r + 1e-7).mean() for r in EDGES]
        assert np.abs(coverage_curve(ours["histogram"]) - curve).max() < 2 / N
        assert found["near_duplicates"] == pytest.approx(expected["near_duplicates"])
        assert found["clusters_covered"]["clusters"] == expected["clusters"]
        assert found["clusters_covered"]["images"] == pytest.approx(expected["images"])
        assert found["effective_size"] == effective_size(coreset["weight"].to_numpy())
    assert told[4]["near_duplicates"] == 0.5  # the two of zeros are none


@pytest.mark.parametrize(("parts", "block", "held"), [(1, 8192, 16384), (40, 30, 50)])
def test_any_cut_of_the_pool_measures_the_same(
    pool, ray_local, tmp_path, monkeypatch, parts, block, held
) -> None:
    z, cluster, table, cut, clusters, uid = pool
    _, kept_rows = coresets(uid)
    first = measure_coresets(table, cut, kept_rows, clusters=clusters)
    monkeypatch.setattr(kept, "_BLOCK", block)
    monkeypatch.setattr(kept, "_HELD", held)
    order = np.random.default_rng(5).permutation(N)
    moved, rows, folder, moved_uid = laid(tmp_path, z, cluster, parts)
    assert (moved_uid == uid).all()
    shuffled = [kept_rows[i].take(order[order < len(kept_rows[i])]) for i in range(len(kept_rows))]
    assert measure_coresets(moved, rows, shuffled, clusters=folder) == first


def test_order_of_the_rows_does_not_matter(pool, ray_local, tmp_path) -> None:
    z, cluster, table, parts, clusters, uid = pool
    kept_rows = coresets(uid)[1]
    order = np.random.default_rng(6).permutation(N)
    moved, rows, folder, other = laid(tmp_path, z[order], cluster[order], 5)
    renamed = dict(zip(uid[order], other, strict=True))
    names = [pa.array([renamed[u] for u in c["uid"].to_pylist()]) for c in kept_rows]
    again = [c.set_column(0, "uid", n) for c, n in zip(kept_rows, names, strict=True)]
    first = measure_coresets(table, parts, kept_rows, clusters=clusters)
    assert measure_coresets(moved, rows, again, clusters=folder) == first


def test_more_images_kept_leave_no_image_farther(pool, ray_local) -> None:
    _, _, table, parts, _, uid = pool
    order = np.random.default_rng(2).permutation(N)
    told = measure_coresets(table, parts, [manifest(uid, order[:k]) for k in (20, 80, 300, N)])
    for less, more in pairwise(told):
        a, b = (np.asarray(t["distances"]["histogram"]) for t in (less, more))
        covered = N - a.sum() + np.cumsum(a)  # of all images, those kept at distance 0
        assert (covered <= N - b.sum() + np.cumsum(b)).all()
    whole = told[-1]
    assert whole["distances"]["images"] == whole["distances"]["max"] == 0
    assert coverage(whole["distances"]["histogram"], 0.001) == 1
    assert whole["effective_size"] == N and whole["clusters_covered"] is None


def test_points_that_are_all_equal_are_all_covered(ray_local, tmp_path) -> None:
    table, parts = table_of(tmp_path, np.full((50, 3), 7.0), 3)
    uid = np.array([u for p in parts for u in read_table(table.part(p))["uid"].to_pylist()])
    (told,) = measure_coresets(table, parts, [manifest(uid, np.arange(4))], duplicate=1.0)
    assert told["distances"]["max"] == 0 and told["near_duplicates"] == 1


def test_zeros_are_far_from_everything(ray_local, tmp_path) -> None:
    table, parts = table_of(tmp_path, np.zeros((10, 3)), 2)
    uid = np.array([u for p in parts for u in read_table(table.part(p))["uid"].to_pylist()])
    (told,) = measure_coresets(table, parts, [manifest(uid, np.arange(4))])
    assert told["distances"]["max"] == np.sqrt(2) and told["near_duplicates"] == 0
    assert told["distances"]["mean"] == pytest.approx(np.sqrt(2))


def refused(change, uid):
    good = manifest(uid, np.arange(5))
    return {
        "empty": [good, good.slice(0, 0)],
        "strange": [good, manifest(np.append(uid, "f" * 32), np.array([1, N, 2]))],
        "twice": [manifest(uid, np.array([1, 2, 1]))],
        "weightless": [good, good.set_column(1, "weight", pa.array(np.zeros(5)))],
    }[change]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("empty", "coreset 1 is empty"),
        ("strange", "1 of 3 images of coreset 1 are not in the pool .uid 'ffff.* first"),
        ("twice", "coreset 0 names 1 of 3 images twice"),
        ("weightless", "coreset 1: none of 5 weights is above 0"),
    ],
)
def test_coresets_that_cannot_be_measured_are_named(pool, ray_local, change, says) -> None:
    _, _, table, parts, _, uid = pool
    with pytest.raises(ValueError, match=says):
        measure_coresets(table, parts, refused(change, uid))


@pytest.mark.parametrize("duplicate", [0.0, -1, 1.01, float("nan")])
def test_a_duplicate_is_a_cosine(pool, ray_local, duplicate) -> None:
    with pytest.raises(ValueError, match="expected a cosine above 0 and up to 1"):
        measure_coresets(pool[2], pool[3], [], duplicate=duplicate)


def test_parts_that_do_not_fit_are_named(pool, ray_local, tmp_path) -> None:
    z, cluster, *_, uid = pool
    table, parts, clusters, _ = laid(tmp_path, z, cluster, 3)
    good = [manifest(uid, np.arange(5))]
    write_table(clusters / "part-p1.parquet", read_table(clusters / "part-p0.parquet"))
    with pytest.raises(Exception, match="is not of the images in part 'p1'"):
        measure_coresets(table, parts, good, clusters=clusters)
    narrow, _ = table_of(tmp_path / "narrow", z[:, :5], 3)
    mixed = PartedTable(table.folder)
    write_table(mixed.part("p2"), read_table(narrow.part("p2")))
    with pytest.raises(Exception, match="part 'p2' holds embeddings of 5 dimensions"):
        measure_coresets(mixed, parts, good)


def test_no_coreset_is_no_work(pool) -> None:
    assert measure_coresets(pool[2], pool[3], []) == []
