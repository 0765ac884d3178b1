"""Draws by an index of the slice, and many points a draw: the same sums, the same expectation."""

import itertools
from typing import Any

import numpy as np
import pytest
from matrices import M, Make, duplicates, gaussian, grid, in_shards, outliers, relu, tally
from scipy import stats

from coreset_ray.core.cells import cover_and_penalise_slices
from coreset_ray.core.columns import Columns, columns_of, index_columns
from coreset_ray.core.draws import cover_and_penalise
from coreset_ray.core.pool import Pool, pool_of
from coreset_ray.core.run import tally_shards
from coreset_ray.core.slices import draw_points, draw_slices, spread_points
from coreset_ray.scores.blindcs import BlindCS

UNIT = 2**32


def far_off(n: int, rng: np.random.Generator) -> np.ndarray:
    """Differences close to the last digit of float32."""
    return 1e4 + 0.01 * rng.normal(size=(n, M))


MAKES = [gaussian, relu, duplicates, grid, outliers, far_off]


def slices_of(
    columns: Columns, rng: np.random.Generator, slices: int, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """dims (slices, 2); points (slices · draws, 2, 2), some on rows, some outside the pool."""
    dims = np.array([rng.permutation(columns.spread.live)[:2] for _ in range(slices)])
    low, high = columns.spread.low[dims], columns.spread.high[dims]
    u = rng.random((slices, draws, 2, 2)) * 1.3 - 0.15
    points = low[:, None, None] + u * (high - low)[:, None, None]
    for s in range(slices):
        rows = rng.integers(0, len(columns), draws // 2)
        points[s, : draws // 2, 0] = columns.index.value[dims[s]][:, rows].T
    return dims, points.reshape(-1, 2, 2)


def both(
    columns: Columns,
    dims: np.ndarray,
    points: np.ndarray,
    alpha: int,
    exponent: float,
    rough: Columns | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums by the index of each slice, of `rough` if given, and by `draws.cover_and_penalise`."""
    index = (rough or columns).index
    ours, theirs = np.zeros((2, 2, len(columns)), np.int64)
    each = len(points) // len(dims)
    starts = np.arange(len(dims) + 1) * each
    cover_and_penalise_slices(index, dims, points, starts, alpha, exponent, UNIT, ours)
    for number in range(points.shape[1]):
        cover_and_penalise(
            *(columns.index, np.repeat(dims, each, axis=0), points[:, number].copy()),
            *(np.full(len(points), -1), alpha if number == 0 else 0, exponent, UNIT, theirs),
        )
    return ours, theirs


@pytest.mark.parametrize("n", [2, 3, 7, 60, 700, 6000])
@pytest.mark.parametrize("make", MAKES)
def test_equals_the_plain_kernel(make: Make, n: int) -> None:
    rng = np.random.default_rng(n)
    pool = pool_of(make(n, rng).astype(np.float32))
    uid = rng.permutation(n).astype(np.uint64)
    columns = columns_of(Pool(np.stack([uid, uid], axis=1), {"embedding": pool["embedding"]}))
    if len(columns.spread.live) < 2:
        return
    exponents = itertools.cycle([4.0, 0.0, 2.5, 4.0, 1.0, 80.0])
    for alpha in sorted({0, 1, 2, max(1, n // 50), max(1, n // 4), n - 2, n - 1, n + 5}):
        dims, points = slices_of(columns, rng, 3, 10 if n < 6000 else 6)
        for _ in range(2):
            exponent = next(exponents)
            ours, theirs = both(columns, dims, points, alpha, exponent)
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{alpha=} {exponent=}")
            assert ours[0].sum() == 2 * len(points)
            assert ours[1].any() == (alpha > 0)


@pytest.mark.parametrize("make", MAKES)
def test_a_sample_of_other_rows_changes_nothing(make: Make) -> None:
    """Cells as bad as can be: most of them empty, or all rows in one, or points between strips."""
    rng = np.random.default_rng(1)
    whole = columns_of(pool_of(make(500, rng).astype(np.float32)))
    index = whole.index
    few, width = index.sample[:, ::40], np.float32(index.sample.std())
    for sample in (few[:, :1], few, few + width, index.sample * np.float32(1e-9), -few * 2):
        sample = np.ascontiguousarray(sample)
        rough = index_columns(index.value, index.uid, whole.spread, sample, 500)
        for alpha in (1, 3, 60, 499):
            dims, points = slices_of(whole, rng, 3, 10)
            np.testing.assert_array_equal(*both(whole, dims, points, alpha, 4.0, rough))


@pytest.mark.parametrize("seed", range(48))
def test_any_sample_gives_the_same(seed: int) -> None:
    """Strips that end far from a point of theirs, with rows of the next strip nearer."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice([20, 100, 500, 3000]))
    whole = columns_of(pool_of(MAKES[seed % len(MAKES)](n, rng).astype(np.float32)))
    index, few = whole.index, rng.permutation(n)[: rng.integers(1, 40)]
    sample = np.ascontiguousarray(index.sample[:, few] * np.float32(rng.choice([0.3, 1, 2])))
    rough = index_columns(index.value, index.uid, whole.spread, sample, n)
    dims, points = slices_of(whole, rng, 4, 60)
    alpha = int(rng.choice([1, 2, 10, n // 3]))
    np.testing.assert_array_equal(*both(whole, dims, points, alpha, 4.0, rough))


# Settings of the method


SETTINGS = [
    {"draws_per_slice": 40, "points_per_draw": 3},
    {"draws_per_slice": 20},
    {"points_per_draw": 3},
    {"draws_per_slice": 5, "points_per_draw": 2},
    {"dims": 3, "draws_per_slice": 30, "points_per_draw": 2},
    {"dims": 1, "points_per_draw": 2, "sampling": "uniform"},
    {"draws_per_slice": 20, "points_per_draw": 2, "sampling": "gaussian", "exponent": 2.5},
    {"draws_per_slice": 20, "points_per_draw": 3, "cover": "random"},
    {"draws_per_slice": 20, "points_per_draw": 3, "redundancy": False},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_neither_chunks_nor_shards_matter(settings: dict) -> None:
    rng = np.random.default_rng(2)
    columns = columns_of(pool_of(relu(400, rng).astype(np.float32)))
    shards = in_shards(columns, [1, 70, 320])
    given: dict[str, Any] = {"neighbors": 30} | settings
    method = BlindCS(**given)
    whole = tally(method, columns, 5, 0, 170)
    cuts = [0, 1, 17, 63, 64, 130, 170]
    pieces = [tally(method, columns, 5, a, b) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(sum(pieces), whole)
    parts = tally_shards(method, shards, 5, 0, 170)
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole)
    named = method.columns(whole.sum(axis=0))
    assert named["coverage"].sum() == pytest.approx(170)
    assert named["redundancy"].sum() == pytest.approx(170 if method.redundancy else 0, abs=1e-4)
    np.testing.assert_allclose(named["score"], named["coverage"] - named["redundancy"], atol=1e-9)


def test_further_points_cover_and_do_not_penalise() -> None:
    """Against a search over all rows; redundancy is that of one point a draw."""
    columns = columns_of(pool_of(gaussian(50, np.random.default_rng(3)).astype(np.float32)))
    many, one = BlindCS(points_per_draw=3, neighbors=9), BlindCS(neighbors=9)
    coverage, redundancy = tally(many, columns, 4, 0, 200).sum(axis=0)
    np.testing.assert_array_equal(redundancy, tally(one, columns, 4, 0, 200).sum(axis=0)[1])
    dims = draw_slices(columns.spread, 4, 0, 200, 2, 1)
    points = spread_points(columns.spread, "triangular", 4, 0, dims, 1, 3)
    rows = [
        np.abs(columns.index.value[d] - p[:, None]).sum(axis=0).argmin()
        for d, three in zip(dims, points, strict=True)
        for p in three
    ]
    np.testing.assert_array_equal(coverage, np.bincount(rows, minlength=50))


@pytest.mark.parametrize("bad", [{"points_per_draw": 0}, {"points_per_draw": 2**52}])
def test_points_per_draw_is_checked(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"points_per_draw=.*expected"):
        BlindCS(**bad)


# Points


@pytest.mark.parametrize(("per_slice", "each"), [(1, 1), (1, 4), (7, 1), (7, 3)])
def test_points_are_a_function_of_seed_and_draw(per_slice: int, each: int) -> None:
    spread = columns_of(pool_of(gaussian(20, np.random.default_rng(0)))).spread
    dims = draw_slices(spread, 3, 0, 60, 2, per_slice)
    whole = spread_points(spread, "triangular", 3, 0, dims, per_slice, each)
    for a, b in itertools.pairwise([0, 0, 5, 14, 40, 60]):
        part = spread_points(spread, "triangular", 3, a, dims[a:b], per_slice, each)
        np.testing.assert_array_equal(part, whole[a:b])
    assert len(np.unique(whole[..., 0])) == 60 * each
    if per_slice == 1:
        plain = draw_points(spread, "triangular", 3, 0, dims)
        np.testing.assert_array_equal(whole[:, 0], plain)


def test_every_point_of_a_slice_is_uniform_and_slices_are_independent() -> None:
    """Each by itself over slices, in both dimensions; and together they lie evenly."""
    spread = columns_of(pool_of(np.stack([np.zeros(2), np.ones(2)]))).spread
    dims = np.tile([0, 1], (8000, 1))
    points = spread_points(spread, "uniform", 1, 0, dims, 4, 3).reshape(2000, 12, 2)
    for number, j in itertools.product(range(12), range(2)):
        assert stats.kstest(points[:, number, j], "uniform").pvalue > 1e-4
        later = np.corrcoef(points[:-1, number, j], points[1:, number, j])[0, 1]
        assert abs(later) < 4 / np.sqrt(2000)
    assert abs(np.corrcoef(points[:, 5].T)[0, 1]) < 4 / np.sqrt(2000)
    inside = (points < 0.5).all(axis=2).sum(axis=1)  # 3 of 12 expected
    assert inside.var() < 0.6 * 12 * 0.25 * 0.75


# Expectation and halves


def runs_of(method: BlindCS, columns: Columns, draws: int, count: int) -> np.ndarray:
    """(count, 2, n): coverage and redundancy of a draw, from runs of their own seeds."""
    named = [
        method.columns(tally(method, columns, 100 + seed, 0, draws).sum(axis=0))
        for seed in range(count)
    ]
    return np.array([[c["coverage"], c["redundancy"]] for c in named]) / draws


def test_expectations_are_those_of_the_plain_estimator() -> None:
    columns = columns_of(pool_of(relu(60, np.random.default_rng(6)).astype(np.float32)))
    many = BlindCS(neighbors=12, draws_per_slice=50, points_per_draw=4)
    plain = runs_of(BlindCS(neighbors=12), columns, 2500, 40)
    ours = runs_of(many, columns, 4000, 40)

    def z_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        error = np.sqrt((a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / 40)
        return (a.mean(axis=0) - b.mean(axis=0)) / error

    z = np.stack([*z_of(ours, plain), z_of(ours[:, 0] - ours[:, 1], plain[:, 0] - plain[:, 1])])
    assert np.abs(z).max() < 5 and (z**2).mean() < 1.6
    wrong = z_of(4 * ours[:, 0], plain[:, 0])  # points not divided by their number
    assert np.median(wrong) > 20
    one_slice = np.repeat(runs_of(many, columns, 50, 1), 40, axis=0)  # and always the same
    assert (z_of(one_slice, plain) ** 2).mean() > 20


def test_halves_by_slices_are_independent() -> None:
    """Over runs; halves that cut each slice are not."""
    columns = columns_of(pool_of(gaussian(60, np.random.default_rng(7)).astype(np.float32)))
    method = BlindCS(neighbors=12, draws_per_slice=40, points_per_draw=4)
    apart, within = [], []
    for seed in range(150):
        total = tally(method, columns, seed, 0, 400)
        apart.append(total[:, 0])
        cut = [tally(method, columns, seed, 40 * g, 40 * g + 20) for g in range(10)]
        half = np.sum(cut, axis=(0, 1))
        within.append([half[0], total.sum(axis=0)[0] - half[0]])

    def correlation(pairs: list) -> float:
        a, b = np.array(pairs, float).transpose(1, 0, 2)
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))

    assert abs(correlation(apart)) < 0.06
    assert correlation(within) > 0.2
