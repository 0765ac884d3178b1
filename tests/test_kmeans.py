"""k-means against a plain one, the same on any shards, actors and cuts of the pool."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from matrices import duplicates, gaussian, grid, outliers, relu
from pools import table_of

from coreset_ray.clustering import kmeans_fit
from coreset_ray.clustering.kmeans import Nearest, seeds, shares, space_of, tally
from coreset_ray.clustering.kmeans_fit import Clustering, Found, find
from coreset_ray.clustering.kmeans_shard import Centers, Picked, Shard, leading
from coreset_ray.clustering.neighbors import single_thread
from coreset_ray.distributed.kmeans import find_clusters
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import matrix, read_table


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    single_thread()


def uids(n: int) -> np.ndarray:
    return np.random.default_rng(99).integers(0, 2**64, (n, 2), np.uint64)


def shards_of(z: np.ndarray, cuts: int, count: int, **options) -> list[Shard]:
    """The rows in so many parts, dealt to so many shards."""
    uid, z = uids(len(z)), z.astype(np.float32)
    parts = [
        partial(lambda u, x: (u, x), uid[r], z[r]) for r in np.array_split(range(len(z)), cuts)
    ]
    return [Shard(parts[i::count], **options) for i in range(count)]


def asker(shards: list[Shard]):
    def ask(step: str, *arguments) -> Iterator:
        return (getattr(s, step)(*arguments) for s in reversed(shards))

    return ask


def fit(z: np.ndarray, wanted: Clustering, cuts: int = 1, count: int = 1, **options) -> Found:
    return find(asker(shards_of(z, cuts, count, **options)), len(z), wanted)[1][-1]


def blobs(n: int, c: int, m: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % c
    return 6 * rng.normal(size=(c, m))[label] + rng.normal(size=(n, m)), label


def lloyd(rows: np.ndarray, centers: np.ndarray, spherical: bool, turns: int) -> np.ndarray:
    """The textbook's, in float64."""
    centers = centers.astype(float)
    for _ in range(turns):
        near = np.square(rows[:, None] - centers).sum(2).argmin(1)
        centers = np.array([rows[near == c].mean(0) for c in range(len(centers))])
        if spherical:
            centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    return centers


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_centroids_equal_those_of_the_textbook(spherical: bool, standardize: bool) -> None:
    z = blobs(600, 5)[0].astype(np.float32) * np.geomspace(0.01, 100, 12) + 3
    wanted = Clustering(9, spherical, standardize, iterations=7, tolerance=0.0, seed=3)
    start = fit(z, replace(wanted, iterations=1))
    found = fit(z, wanted)
    rows = z.astype(np.float32).astype(float)
    if standardize:
        rows = (rows - rows.mean(0)) / rows.std(0)
    if spherical:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert start.iterations == 1 and found.reseeded == 0
    expected = lloyd(rows, start.centers.value, spherical, found.iterations - 1)
    width = np.abs(expected).max(0)
    np.testing.assert_allclose(found.centers.value / width, expected / width, atol=2e-4)
    apart = np.square(rows[:, None] - expected).sum(2)
    np.testing.assert_array_equal(found.size, np.bincount(apart.argmin(1), minlength=9))
    inertia = apart.min(1).sum() / (2 if spherical else 1)
    assert found.inertia.sum() == pytest.approx(inertia, rel=1e-3)


@pytest.mark.parametrize("make", [gaussian, relu, grid, duplicates, outliers])
def test_every_row_goes_to_its_nearest_centroid(make) -> None:
    rng = np.random.default_rng(1)
    rows = make(400, rng).astype(np.float32)
    centers = np.concatenate([rows[:40], rows[:9] + np.float32(1e-6), make(30, rng)])
    centers = centers.astype(np.float32)
    group = np.arange(len(centers)) % 2
    own = np.arange(len(rows)) % 2
    cluster, cost = Nearest(centers, group).assign(rows, own)
    apart = np.zeros((len(rows), len(centers)))
    for j in range(rows.shape[1]):
        apart += (rows[:, j, None].astype(float) - centers[None, :, j]) ** 2
    apart[own[:, None] != group] = np.inf
    np.testing.assert_array_equal(cluster, apart.argmin(1))
    np.testing.assert_array_equal(cost, apart.min(1))


def test_a_group_without_centroids_has_no_nearest() -> None:
    found = Nearest(np.ones((2, 3), np.float32), np.zeros(2)).assign(
        np.ones((2, 3), np.float32), np.array([0, 7])
    )
    assert found[0].tolist() == [0, -1] and found[1].tolist() == [0, np.inf]


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("single", [4096, 5])
def test_neither_shards_nor_order_nor_memory_change_a_bit(spherical: bool, single: int) -> None:
    z = outliers(700, np.random.default_rng(2))
    wanted = Clustering(17, spherical, single=single, iterations=12)
    one = fit(z, wanted)
    for cuts, count, held in [(7, 1, 1 << 30), (5, 3, 1 << 30), (9, 2, 20_000), (4, 4, 0)]:
        other = fit(z, wanted, cuts, count, held=held)
        for ours, theirs in zip(vars(one).values(), vars(other).values(), strict=True):
            if isinstance(ours, Centers):
                np.testing.assert_array_equal(ours.group, theirs.group)
                ours, theirs = ours.value, theirs.value
            np.testing.assert_array_equal(ours, theirs)
    order = np.random.default_rng(5).permutation(len(z))
    shuffled = [
        partial(lambda r: (uids(len(z))[r], z[r].astype(np.float32)), r)
        for r in np.array_split(order, 3)
    ]
    other = find(asker([Shard(shuffled)]), len(z), wanted)[1][-1]
    np.testing.assert_array_equal(one.centers.value, other.centers.value)


@pytest.mark.parametrize("step", ["price", "draw", "tally", "farthest"])
def test_a_shard_that_is_lost_is_made_anew(step: str) -> None:
    z = duplicates(300, np.random.default_rng(3))
    wanted = Clustering(20, spherical=False, iterations=6, single=8)
    whole, shards, asked = fit(z, wanted), shards_of(z, 4, 2), 0

    def ask(name: str, *arguments) -> list:
        nonlocal asked
        asked += name == step
        if name == step:  # as Ray restarts an actor: an empty one answers
            shards[asked % 2] = shards_of(z, 4, 2)[asked % 2]
        return [getattr(s, name)(*arguments) for s in shards]

    found = find(ask, len(z), wanted)[1][-1]
    np.testing.assert_array_equal(found.centers.value, whole.centers.value)
    assert asked or step == "farthest"


def test_sums_of_whole_numbers_are_exact_and_bounded() -> None:
    rng = np.random.default_rng(4)
    z = outliers(200, rng).astype(np.float32)
    low, high = z.min(0).astype(float), z.max(0).astype(float)
    for rows in (200, 2**31, 10**12):
        space = space_of(low, high, None, spherical=False, rows=rows)
        worst = np.abs(np.ldexp(np.maximum(-low, high), space.value_bits)).max() * rows
        farthest = np.ldexp(np.square(high - low).sum(), space.cost_bits) * rows
        assert worst < 2**62 and farthest < 2**62
        assert np.ldexp(np.maximum(-low, high), space.value_bits).max() * rows > 2**59
    space = space_of(low, high, None, spherical=False, rows=200)
    rows, near, cost = space.rows(z), np.arange(200) % 3, rng.random(200)
    whole = tally(space, 3, rows, near, cost)
    halves = [tally(space, 3, rows[h], near[h], cost[h]) for h in (slice(90), slice(90, None))]
    both = halves[1] + halves[0]
    np.testing.assert_array_equal(whole.value, both.value)
    np.testing.assert_array_equal(whole.cost, both.cost)
    assert whole.size.tolist() == [67, 67, 66]


def test_a_space_scales_rows_and_reads_distances() -> None:
    z = np.array([[1, 5, 0], [3, 5, 0], [1, 5, -0.0]], np.float32)
    mean, deviation = np.array([2, 5, 0.0]), np.array([1, 0, 0.0])
    space = space_of(z.min(0), z.max(0), (mean, deviation), spherical=False, rows=3)
    assert space.rows(z).tolist() == [[-1, 0, 0], [1, 0, 0], [-1, 0, 0]]
    assert not np.signbit(space.rows(z)[:, 1:]).any()
    assert space.distance(np.array([4.0])) == 2
    unit = space_of(z.min(0), z.max(0), None, spherical=True, rows=3)
    a, b = unit.rows(z)[:2].astype(float)
    cosine = (z[0] @ z[1]) / np.linalg.norm(z[0]) / np.linalg.norm(z[1])
    assert unit.distance(np.square(a - b).sum()) == pytest.approx(1 - cosine, rel=1e-5)


def test_directions_are_not_distances() -> None:
    rng = np.random.default_rng(6)
    ray = np.repeat(np.eye(2), 100, axis=0) + 0.02 * rng.normal(size=(200, 2))
    z = np.abs(ray * np.where(rng.random((200, 1)) < 0.5, 1, 30))
    wanted = Clustering(2, standardize=False)
    assert fit(z, wanted).size.tolist() == [100, 100]
    centers = fit(z, wanted).centers.value
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, atol=1e-6)
    assert fit(z, replace(wanted, spherical=False)).size.min() < 100


def test_the_start_is_better_than_a_random_one() -> None:
    z, label = blobs(1500, 30)
    ours, random = [], []
    for seed in range(5):
        wanted = Clustering(30, spherical=False, standardize=False, seed=seed, iterations=1)
        ours.append(fit(z, wanted).inertia.sum())
        some = z[np.random.default_rng(seed).choice(len(z), 30, replace=False)]
        random.append(np.square(z[:, None] - some).sum(2).min(1).sum())
    assert max(ours) < 0.5 * min(random)
    best = sum(np.square(z[label == c] - z[label == c].mean(0)).sum() for c in range(30))
    found = fit(z, replace(wanted, iterations=100)).inertia.sum()
    assert found < 1.5 * best


def test_seeds_are_weighted_and_differ() -> None:
    rows = np.array([[0.0], [0.0], [1.0], [50.0]], np.float32)
    uniform = np.random.default_rng(0).random((400, 3))
    drawn = np.array([seeds(rows, np.array([1, 1, 2, 0.5]), u[:, None]) for u in uniform])
    assert (np.sort(rows[drawn, 0], axis=1) == [0, 1, 50]).all()
    assert 0.3 < (drawn[:, 0] == 2).mean() < 0.6
    assert (seeds(rows, np.array([0, 1, 0, 0]), np.array([[0.999999]])) == [1]).all()


def test_shares_follow_weights_within_bounds() -> None:
    many = np.array([100, 100, 100])
    assert shares(np.array([6.0, 3.0, 1.0]), many, 10).tolist() == [6, 3, 1]
    assert shares(np.array([1e9, 0.0, 0.0]), many, 10).tolist() == [8, 1, 1]
    assert shares(np.array([9.0, 1.0, 1.0]), np.array([2, 0, 9]), 5).tolist() == [2, 0, 3]


def test_leading_rows_come_by_key_then_uid_and_differ() -> None:
    rows = np.array([[1], [1], [2], [3], [1]], np.float32)
    uid = np.array([[0, 9], [0, 2], [0, 1], [0, 0], [0, 5]], np.uint64)
    all_ = Picked(rows, np.array([0, 0, 0, 0, 1]), uid, np.array([1, 1, 1, 2, 0.0]))
    assert leading([all_], np.array([9, 9])).uid[:, 1].tolist() == [1, 2, 0, 5]
    assert leading([all_], np.array([2, 0])).rows.ravel().tolist() == [2, 1]


def start_at(monkeypatch, value) -> None:
    """Has every k-means of one level start there."""
    centers = Centers(np.array(value, np.float32), np.zeros(len(value), np.int32))
    monkeypatch.setattr(kmeans_fit, "_start", lambda *_: centers)


def test_an_empty_cluster_starts_again_at_the_farthest_row(monkeypatch) -> None:
    z = np.array([[0.0], [1], [2], [40], [40], [41], [100], [100]])
    start_at(monkeypatch, [[0], [900], [901], [902]])
    wanted = Clustering(4, spherical=False, standardize=False)
    found = fit(z, wanted)
    # first 100, 41 and 40, which leave nothing to two others
    assert found.reseeded == 3 + 2 and found.converged
    ends = np.sort(found.centers.value.ravel())
    np.testing.assert_allclose(ends, [0.5, 2, 121 / 3, 100], rtol=1e-6)
    for cuts, count in [(3, 2), (8, 3)]:
        other = fit(z, wanted, cuts, count)
        np.testing.assert_array_equal(found.centers.value, other.centers.value)


def test_rows_that_cancel_out_leave_no_direction(monkeypatch) -> None:
    z = np.array([[1.0, 0], [-1, 0], [0, 1], [0, 1]])
    start_at(monkeypatch, [[0, -1], [0, 1]])
    found = fit(z, Clustering(2, standardize=False))
    assert found.converged and np.allclose(np.linalg.norm(found.centers.value, axis=1), 1)


@pytest.mark.parametrize("single", [4096, 4])
@pytest.mark.parametrize("spherical", [True, False])
def test_as_many_clusters_as_rows_that_differ(spherical: bool, single: int) -> None:
    z = np.repeat(gaussian(24, np.random.default_rng(7)), np.arange(1, 25), axis=0)
    wanted = Clustering(24, spherical, standardize=False, single=single)
    found = fit(z, wanted)
    assert sorted(found.size) == list(range(1, 25)) and found.inertia.sum() < 1e-6
    with pytest.raises(ValueError, match="25 clusters: the pool has only 24 images whose emb"):
        fit(z, replace(wanted, count=25))


@pytest.mark.parametrize("make", [gaussian, relu])
def test_two_levels_find_about_what_one_finds(make) -> None:
    z = np.concatenate([make(1200, np.random.default_rng(9)), np.ones((800, 20))])
    one = fit(z, Clustering(40, spherical=False))
    two = fit(z, Clustering(40, spherical=False, single=39), 3, 2)
    assert len(two.size) == 40 and two.size.min() > 0 and two.size.sum() == 2000
    assert set(two.centers.group) == set(range(6)) == set(range(Clustering(40, single=39).coarse))
    assert two.inertia.sum() < 1.1 * one.inertia.sum()


@pytest.mark.parametrize("count", [-1, 0, 1, 11])
def test_impossible_counts_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"^{count} clusters of a pool of 10 images"):
        Clustering(count).check(10)


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"tolerance": -1.0}, {"single": 1}])
def test_impossible_settings_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="expected at least 1, 0 and 2"):
        replace(Clustering(2), **wrong).check(10)


ROWS = 900


@pytest.fixture(scope="module")
def pool() -> np.ndarray:
    z = outliers(ROWS, np.random.default_rng(8)).astype(np.float32)
    z[100:300] = z[50]
    return z


def written(out) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(out.path).iterdir())}


@pytest.mark.parametrize("single", [10, pytest.param(4096, marks=pytest.mark.slow)])
def test_any_number_of_actors_writes_the_same(pool, ray_local, tmp_path, single) -> None:
    table, parts = table_of(tmp_path / "table", pool, 5)
    wanted, told, files = Clustering(12, single=single), [], []
    for actors in (1, 3):
        out = locate(str(tmp_path / f"out-{actors}"))
        told.append(find_clusters(table, parts, wanted, out, actors=actors))
        files.append(written(out))
    assert files[0] == files[1] and told[0] == told[1]
    names = {f"part-{p}.parquet" for p in parts}
    assert set(files[0]) - names == {"centroids.parquet"} | (
        {"coarse.parquet"} if single == 10 else set()
    )
    centroids = pq.read_table(f"{out.path}/centroids.parquet")
    rows = [pq.read_table(f"{out.path}/part-{p}.parquet") for p in parts]
    found = np.concatenate([r["cluster"].to_numpy() for r in rows])
    np.testing.assert_array_equal(np.bincount(found, minlength=12), centroids["size"].to_numpy())
    z = pool.astype(float)
    z = (z - z.mean(0)) / z.std(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    apart = 1 - (z * matrix(centroids["centroid"])[found]).sum(1)
    distance = np.concatenate([r["distance"].to_numpy() for r in rows])
    np.testing.assert_allclose(distance, apart, atol=1e-3)
    assert told[0]["inertia"] == pytest.approx(distance.sum(), rel=1e-4)
    assert [str(t) for t in rows[0].schema.types] == ["string", "int32", "float"]
    uid = [read_table(table.part(p), ["uid"])["uid"].to_pylist() for p in parts]
    assert [r["uid"].to_pylist() for r in rows] == uid

    kept = {n: os.stat(f"{out.path}/{n}").st_mtime_ns for n in files[1]}
    os.unlink(f"{out.path}/part-p3.parquet")
    assert find_clusters(table, parts, wanted, out, actors=2) == told[0]
    assert written(out) == files[1]
    redone = [n for n in kept if os.stat(f"{out.path}/{n}").st_mtime_ns != kept[n]]
    assert redone == ["part-p3.parquet"]


def test_what_cannot_be_clustered_is_named(ray_local, tmp_path) -> None:
    z = np.arange(60.0).reshape(20, 3) % 7
    table, parts = table_of(tmp_path / "table", z, 2)
    out = locate(str(tmp_path / "out"))
    with pytest.raises(ValueError, match="21 clusters of a pool of 20 images"):
        find_clusters(table, parts, Clustering(21), out, actors=1)
    with pytest.raises(ValueError, match="9 clusters: the pool has only 7 images whose"):
        find_clusters(table, parts, Clustering(9), out, actors=1)
    other, more = table_of(tmp_path / "other", z[:, :2], 3)
    os.rename(other.part("p2").path, table.part("p2").path)
    parts["p2"] = more["p2"]
    with pytest.raises(ValueError, match=r"part 'p2' holds embeddings of 2 dimensions, .* has 3"):
        find_clusters(table, parts, Clustering(3), out, actors=1)
    z[13, 1] = np.nan
    bad, rows = table_of(tmp_path / "bad", z, 2)
    with pytest.raises(ValueError, match="part 'p1': embedding row 3 holds a NaN or infinite"):
        find_clusters(bad, rows, Clustering(3), out, actors=1)
    assert not out.exists()
