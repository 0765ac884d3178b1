"""Geometric methods against slow, obvious forms, and the properties that their papers print."""

from itertools import combinations

import numpy as np
import pytest

from coreset_ray import select
from coreset_ray.core.alone import select_alone
from coreset_ray.core.exact import dots, grid_rows
from coreset_ray.core.nearest import lower, nearest, squares
from coreset_ray.core.pool import Pool, pool_of, uid_order
from coreset_ray.core.random import uid_uniform
from coreset_ray.core.spherical import cluster, first_centers, first_clock, standard_rows
from coreset_ray.selectors.herding import Herding
from coreset_ray.selectors.k_center import KCenter
from coreset_ray.selectors.medoids import Medoids, earned
from coreset_ray.selectors.simcore import SimCore


def pool(n: int, m: int = 7, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, m)) + rng.normal(size=m)
    return pool_of(z.astype(np.float32), rng.integers(0, 2**64, (n, 2), np.uint64))


def short(of: Pool) -> np.ndarray:
    """Rows of length 1, rounded as herding rounds them."""
    return grid_rows(of["embedding"], 14).astype(np.float64)


def mean_errors(rows: np.ndarray, order: np.ndarray) -> np.ndarray:
    """‖mean of the first k - mean of all‖ for every k from 1."""
    means = np.cumsum(rows[order], axis=0) / np.arange(1, len(order) + 1)[:, None]
    return np.linalg.norm(means - rows.mean(axis=0), axis=1)


def test_herding_keeps_the_mean_nearest_to_the_pools() -> None:
    """As DeepCore writes it: each next row is the one that brings the mean nearest. On rows of
    equal length, which rounding leaves them but for 2^-14, both forms agree."""
    of = pool(60)
    rows, mean = short(of), short(of).mean(axis=0)
    found = select_alone(Herding(), of, 40, 0)
    w, left = mean.copy(), list(range(60))
    for step, row in enumerate(found.rows):
        gains = rows[left] @ w
        assert row == left[int(np.argmax(gains))]
        assert found.gains[step] == pytest.approx(gains.max(), abs=1e-6)
        so_far = rows[found.rows[:step]].sum(axis=0)
        apart = np.linalg.norm((so_far + rows[left]) / (step + 1) - mean, axis=1)
        assert apart[left.index(row)] <= apart.min() + 1e-3 / (step + 1)
        w += mean - rows[row]
        left.remove(int(row))


def test_error_of_herdings_mean_falls_as_one_over_k() -> None:
    """k times the error stays bounded, where that of rows drawn at random grows as √k."""
    of = pool(2000, 5)
    rows, k = short(of), np.arange(1, 401)
    herded = k * mean_errors(rows, select_alone(Herding(), of, 400, 0).rows)
    drawn = k * mean_errors(rows, np.random.default_rng(0).permutation(2000)[:400])
    assert herded.max() < 2
    assert herded[200:].max() < 1.5 * herded[:200].max()
    assert drawn[300:].mean() > 4 * herded[300:].mean()


def test_equal_rows_are_herded_by_uid() -> None:
    uid = np.stack([np.zeros(8), [5, 3, 1, 7, 2, 0, 6, 4]], axis=1).astype(np.uint64)
    same = np.full((8, 2), 0.5, np.float32)
    found = select_alone(Herding(), pool_of(same, uid), 8, 0).rows
    assert found.tolist() == np.argsort(uid[:, 1]).tolist()


def squared(of: Pool) -> np.ndarray:
    rows = grid_rows(of["embedding"]).astype(np.float64)
    return ((rows[:, None] - rows[None]) ** 2).sum(axis=2)


def test_k_center_takes_the_farthest_row_every_time() -> None:
    of = pool(80)
    apart, key = squared(of), uid_uniform(3, of.uid)
    found = select_alone(KCenter(), of, 50, 3)
    chosen = [int(np.argmax(key))]
    while len(chosen) < 50:
        nearest = apart[:, chosen].min(axis=1)
        nearest[chosen] = -1
        chosen.append(int(np.argmax(nearest)))
        assert found.gains[len(chosen) - 1] == pytest.approx(nearest.max(), abs=1e-12)
    assert found.rows.tolist() == chosen


@pytest.mark.parametrize("seed", range(8))
def test_k_center_covers_within_twice_the_smallest_radius(seed: int) -> None:
    """Of every choice of k rows (Gonzalez, 1985)."""
    of = pool(11, 3, seed)
    apart = np.sqrt(squared(of))
    for k in (1, 2, 3, 4):
        best = min(apart[:, list(c)].min(axis=1).max() for c in combinations(range(11), k))
        found = apart[:, select_alone(KCenter(), of, k, seed).rows].min(axis=1).max()
        assert best <= found <= 2 * best


def test_k_center_goes_round_what_is_kept_already() -> None:
    of = pool(40)
    kept = np.array([4, 30])
    first = select_alone(KCenter(), of, 1, 0, kept=kept).rows[0]
    assert first == np.argmax(squared(of)[:, kept].min(axis=1))


def test_nearest_rows_are_exact_whatever_single_precision_says() -> None:
    """Rows a step of the grid apart, which float32 products cannot tell."""
    rng = np.random.default_rng(0)
    z = np.repeat(rng.normal(size=(40, 300)), 5, axis=0)
    rows = grid_rows(z + rng.normal(size=z.shape) * 1e-7)
    rows[7] = 0
    centers = np.concatenate([rows[::3], rows[:4]])
    exact = dots(rows, centers)
    which, product = nearest(rows, centers)
    np.testing.assert_array_equal(which, exact.argmax(axis=1))
    np.testing.assert_array_equal(product, exact.max(axis=1))
    assert (rows @ centers.T).argmax(axis=1).tolist() != which.tolist()
    square = squares(rows)
    apart = np.maximum(square[:, None] + squares(centers) - 2 * exact, 0)
    gain = rng.random(len(rows))
    expected = np.minimum(gain, apart.min(axis=1))
    lower(gain, rows, square, centers)
    np.testing.assert_array_equal(gain, expected)


def blobs(sizes: list[int], seed: int = 0) -> tuple[Pool, np.ndarray]:
    """Groups of rows far apart, and the group of each row."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    z = 5 * rng.normal(size=(len(sizes), 12))[group] + 0.3 * rng.normal(size=(len(group), 12))
    uid = np.sort(rng.integers(0, 2**63, len(group), np.uint64))
    return pool_of(z.astype(np.float32), np.stack([uid, uid], axis=1)), group


def test_clusters_are_those_of_plain_k_means() -> None:
    of = pool(300)
    of = of.take(uid_order(of.uid))
    rows = standard_rows(of["embedding"])
    z = of["embedding"].astype(np.float64)
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    np.testing.assert_allclose(rows, z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-6)
    fixed = np.array([3, 77])
    centers, which, cosine = cluster(rows, of.uid, 6, 1, iterations=30, fixed=fixed)
    plain = rows[[*fixed, *first_centers(rows, of.uid, 6, 1, fixed)]].astype(np.float64)
    for _ in range(30):
        own = (rows @ plain.T).argmax(axis=1)
        for c in range(2, 8):
            total = rows[own == c].astype(np.float64).sum(axis=0)
            plain[c] = total / np.linalg.norm(total)
    np.testing.assert_allclose(centers, plain, atol=1e-6)
    np.testing.assert_array_equal(which, own)
    np.testing.assert_allclose(cosine, (rows @ plain.T).max(axis=1), atol=1e-6)


def test_first_centers_are_drawn_by_squared_distance() -> None:
    """Of rows in two directions, all but one in the first: the second centre is always the one."""
    z = np.tile([1.0, 0.0], (50, 1))
    z[20] = [0.0, 1.0]
    of = pool_of(z.astype(np.float32))
    none = np.empty(0, np.int64)
    for seed in range(20):
        found = first_centers(grid_rows(z), of.uid, 5, seed, none)
        assert len(found) == 2 and 20 in found
    rate = np.array([0.0, 1.0, 3.0])
    counts = np.bincount([first_clock(rate, of.uid[:3], 0, use) for use in range(2000)])
    assert counts[0] == 0 and 1350 < counts[2] < 1650


def test_medoids_are_the_members_nearest_the_centres() -> None:
    of, group = blobs([40, 25, 10, 5])
    found = select_alone(Medoids(), of, 4, 0)
    assert group[found.rows].tolist() == [0, 1, 2, 3]
    assert found.gains.tolist() == [40, 25, 10, 5]
    rows = standard_rows(of["embedding"]).astype(np.float64)
    for g, row in enumerate(found.rows):
        own = np.flatnonzero(group == g)
        assert row == own[np.argmax(rows[own] @ rows[own].sum(axis=0))]


def test_a_cluster_that_holds_a_kept_row_is_served() -> None:
    of, group = blobs([40, 25, 10, 5])
    kept = np.array([np.flatnonzero(group == 1)[3]])
    found = select_alone(Medoids(), of, 3, 0, kept=kept).rows
    assert sorted(group[found]) == [0, 2, 3]


def test_many_medoids_are_shared_between_cells_by_size() -> None:
    of, group = blobs([300, 150, 50])
    found = select_alone(Medoids(), of, 100, 0).rows
    np.testing.assert_allclose(np.bincount(group[found]), [60, 30, 10], atol=3)


def test_shares_of_cells_are_in_proportion() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        sizes = rng.integers(0, 60, 7)
        served = rng.binomial(sizes, 0.1)
        k = int(rng.integers(0, (sizes - served).sum() + 1))
        share = earned(k, sizes, served)
        assert share.sum() == k and (share >= 0).all() and (share + served <= sizes).all()
    exact = 20 * np.array([50, 30, 20]) / 100
    assert earned(20, np.array([50, 30, 20]), np.zeros(3, int)).tolist() == exact.tolist()


def test_simcore_takes_what_is_nearest_the_target_in_turn() -> None:
    of, group = blobs([60, 30, 30])
    rng = np.random.default_rng(1)
    like = [np.flatnonzero(group == g)[0] for g in (1, 2)]
    target = np.repeat(of["embedding"][like], 5, axis=0)
    target = target + 0.1 * rng.normal(size=target.shape).astype(np.float32)
    method = SimCore(clusters=2)
    found = select_alone(method, of, 20, 0, target=target)
    assert np.bincount(group[found.rows]).tolist() == [0, 10, 10]
    centers = method._centers(target, 0)
    cosine = grid_rows(of["embedding"]).astype(np.float64) @ centers.T.astype(np.float64)
    left, expected = list(range(len(of))), []
    for turn in range(20):
        expected.append(left.pop(int(np.argmax(cosine[left, turn % 2]))))
    assert found.rows.tolist() == expected
    kept = np.flatnonzero(group == 1)[:10]
    after = select_alone(method, of, 10, 0, target=target, kept=kept).rows
    assert (group[after] == 2).all()


def test_prototypicality_keeps_what_lies_far_from_its_centre() -> None:
    """Sorscher et al., 2022, section 5, in their plain words: the hard images are the far ones."""
    of, center_of = blobs([30, 50])
    z = of["embedding"].astype(np.float64)
    middle = np.stack([z[center_of == c].mean(axis=0) for c in range(2)])
    distance = np.linalg.norm(z - middle[center_of], axis=1).astype(np.float32)
    told = {"clusters.distance": distance}
    kept = select(of["embedding"], 12, method="prototypicality", signals=told).rows
    far = sorted(range(80), key=lambda i: -distance[i])[:12]
    assert sorted(kept.tolist()) == sorted(far)
