"""BlindCS against its equations, written out slowly, and against what a draw must be."""

import dataclasses
import itertools
import statistics
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import M, duplicates, gaussian, grid, in_shards, outliers, relu, tally
from scipy import stats

import coreset_ray
from coreset_ray.core import batched
from coreset_ray.core.columns import Columns, columns_of
from coreset_ray.core.draws import place_of
from coreset_ray.core.pool import Pool, pool_of
from coreset_ray.core.random import draw_words, uid_uniform, unit_interval
from coreset_ray.core.rounding import rounding_effect
from coreset_ray.core.run import score_columns, tally_shards
from coreset_ray.core.slices import draw_points, draw_slices
from coreset_ray.scores.blindcs import BlindCS

UNIT = 2**32


def l1(point: np.ndarray, rows: np.ndarray) -> np.ndarray:
    total = np.zeros(len(rows))
    for j in range(len(point)):
        total = total + np.abs(rows[:, j] - point[j])
    return total


def draws_of(
    method: BlindCS, columns: Columns, seed: int, first: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Dimensions and points of draws."""
    spread, per_slice = columns.spread, method.draws_per_slice
    dims = draw_slices(spread, seed, first, count, method.dims, per_slice)
    return dims, draw_points(spread, method.sampling, seed, first, dims)


def oracle(z: np.ndarray, method: BlindCS, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and redundancy by Eq. 4 to 9, in float64; only the draws are the method's."""
    n = len(z)
    dims, points = draws_of(method, columns_of(pool_of(z)), seed, 0, method.draws)
    coverage, redundancy = np.zeros(n), np.zeros(n)
    for d, s in zip(dims, points, strict=True):
        reduced = z[:, d].astype(np.float64)  # Eq. 4
        k = int(np.argmin(l1(s, reduced)))  # Eq. 5
        coverage[k] += 1  # Eq. 6
        away = l1(reduced[k], reduced)
        others = [i for i in range(n) if i != k]
        last = sorted(away[others])[min(method.neighbors, n - 1) - 1]
        near = [i for i in others if away[i] <= last]
        coinciding = [i for i in near if away[i] == 0]
        if coinciding:
            redundancy[coinciding] += 1 / len(coinciding)
        else:
            v = away[near] ** -method.exponent  # Eq. 7
            redundancy[near] += v / v.sum()  # Eq. 8
    return coverage, redundancy


@pytest.mark.parametrize("n", [2, 3, 50, 400])
@pytest.mark.parametrize("make", [gaussian, relu, duplicates, grid])
def test_equals_the_equations(make, n: int) -> None:
    z = make(n, np.random.default_rng(n)).astype(np.float32)
    alphas = sorted({1, max(1, n // 3), n - 1, n + 5})
    seen = set()
    for dims, alpha, beta in itertools.product([1, 2, 3, 10], alphas, [0.0, 1.0, 2.5, 4.0]):
        method = BlindCS(draws=30, dims=dims, neighbors=alpha, exponent=beta, tie_break="none")
        columns = score_columns(method, pool_of(z), seed=n)[0]
        coverage, redundancy = oracle(z, method, seed=n)
        case = f"{dims=} {alpha=} {beta=}"
        np.testing.assert_array_equal(columns["coverage"], coverage, err_msg=case)
        np.testing.assert_allclose(
            columns["redundancy"], redundancy, rtol=0, atol=1e-6, err_msg=case
        )
        np.testing.assert_allclose(
            columns["score"], coverage - redundancy, rtol=0, atol=1e-6, err_msg=case
        )
        assert coverage.sum() == method.draws
        seen.add(columns["score"].tobytes())
    assert n < 50 or len(seen) > 10  # the settings did change the answer


@pytest.mark.parametrize("make", [gaussian, relu, duplicates, grid, outliers])
def test_what_is_left_out_of_a_search_never_matters(make) -> None:
    """A pool larger than the sample that guesses a radius, where most rows are never looked at."""
    z = make(5500, np.random.default_rng(0)).astype(np.float32)
    for dims, alpha in ((1, 40), (2, 1), (2, 200), (2, 5499), (3, 40), (4, 40)):
        method = BlindCS(draws=12, dims=dims, neighbors=alpha, exponent=1.0)
        columns = score_columns(method, pool_of(z), 3)[0]
        coverage, redundancy = oracle(z, method, 3)
        np.testing.assert_array_equal(columns["coverage"], coverage)
        np.testing.assert_allclose(columns["redundancy"], redundancy, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sample", [1, 7, 400])
@pytest.mark.parametrize("make", [gaussian, relu, duplicates, grid, outliers])
def test_shards_and_the_sample_change_nothing(make, sample: int) -> None:
    """Even a sample that guesses badly; rows in shards of 1 to 250."""
    rng = np.random.default_rng(sample)
    columns = columns_of(pool_of(make(400, rng).astype(np.float32)))
    index = columns.index
    rough = np.ascontiguousarray(index.sample[:, rng.permutation(400)[:sample]])
    shards = in_shards(columns, [1, 70, 320], rough)
    for settings_ in (
        {"dims": 2},
        {"dims": 1},
        {"dims": 3, "draws_per_slice": 5},
        {"dims": 6, "sampling": "uniform"},
        {"dims": 2, "sampling": "gaussian", "neighbors": 399, "exponent": 2.5},
        {"dims": 2, "cover": "random"},
        {"dims": 2, "redundancy": False},
    ):
        method = BlindCS(**{"draws": 60, "neighbors": 30} | settings_)
        whole = tally(method, columns, 5, 0, 60)
        assert whole[:, 0].sum(axis=1).tolist() == [30, 30]
        parts = tally_shards(method, shards, 5, 0, 60)
        np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole, err_msg=f"{method}")


def test_sampling_distributions() -> None:
    """Uniform and gaussian points, by SciPy; the settings of the paper's Table 5."""
    z = np.random.default_rng(2).exponential(size=(501, 1)).astype(np.float32)
    column = z[:, 0].astype(np.float64)
    laws = {
        "uniform": stats.uniform(column.min(), np.ptp(column)),
        "gaussian": stats.norm(column.mean(), column.std()),
    }
    for name, law in laws.items():
        method = BlindCS(dims=1, sampling=name)
        points = draws_of(method, columns_of(pool_of(z)), 9, 0, 20_000)[1][:, 0]
        for other, wrong in laws.items():
            fits = stats.kstest(points, wrong.cdf).pvalue > 0.001
            assert fits == (other == name), (name, other, law)


def test_random_cover_is_uniform_and_no_redundancy_takes_nothing() -> None:
    z = gaussian(12, np.random.default_rng(1))
    method = BlindCS(draws=12_000, cover="random", neighbors=3)
    coverage = score_columns(method, pool_of(z), 0)[0]["coverage"]
    assert coverage.sum() == 12_000 and stats.chisquare(coverage).pvalue > 0.001
    assert (
        stats.chisquare(score_columns(BlindCS(draws=12_000), pool_of(z), 0)[0]["coverage"])[1]
        < 0.001
    )
    plain, without = (
        score_columns(BlindCS(draws=500, redundancy=r), pool_of(z), 0)[0] for r in (True, False)
    )
    np.testing.assert_array_equal(plain["coverage"], without["coverage"])
    assert not without["redundancy"].any()
    np.testing.assert_array_equal(without["score"], without["coverage"])


def test_draws_of_a_slice_share_dimensions_and_not_points() -> None:
    columns = columns_of(pool_of(gaussian(20, np.random.default_rng(0))))
    dims, points = draws_of(BlindCS(draws_per_slice=4), columns, 3, 6, 14)
    group = np.arange(6, 20) // 4
    for g in set(group.tolist()):
        assert len(np.unique(dims[group == g], axis=0)) == 1
    assert len(np.unique(dims, axis=0)) == len(set(group.tolist()))
    assert len(np.unique(points)) == points.size
    plain = draws_of(BlindCS(), columns, 3, 6, 14)
    np.testing.assert_array_equal(plain[0][2], dims[2])  # draw 8 leads its slice


def test_one_image() -> None:
    with pytest.warns(UserWarning, match="one and the same embedding"):
        assert coreset_ray.score(np.ones((1, 3)), draws=5).tolist() == [0.0]


# The draws themselves


@given(st.integers(0, 2**64 - 1), st.integers(1, 6), st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_draw_depends_on_its_number_alone(seed: int, dims: int, cuts: list[int]) -> None:
    method = BlindCS(dims=dims)
    slices = columns_of(pool_of(gaussian(20, np.random.default_rng(0))))
    whole = draws_of(method, slices, seed, 0, 60)
    edges = [0, *sorted(cuts), 60]
    pieces = [draws_of(method, slices, seed, a, b - a) for a, b in itertools.pairwise(edges)]
    for all_at_once, by_chunk in zip(whole, zip(*pieces, strict=True), strict=True):
        np.testing.assert_array_equal(all_at_once, np.concatenate(by_chunk))


def test_points_are_the_inverse_of_the_triangular_distribution() -> None:
    """Eq. 3, by SciPy: among the dimensions are ones whose median is the minimum or maximum."""
    rng = np.random.default_rng(1)
    z = np.stack([rng.normal(size=101), np.maximum(rng.normal(size=101) - 1, 0)], axis=1)
    z = np.concatenate([z, -z[:, 1:], rng.exponential(size=(101, 1)) * 1e3], axis=1)
    method = BlindCS(dims=2)
    slices = columns_of(pool_of(z))
    dims, points = draws_of(method, slices, 5, 0, 500)
    u = unit_interval(draw_words(5, 0, 500, 4)[:, 2:])
    low, mode, high = slices.spread.low[dims], slices.spread.mode[dims], slices.spread.high[dims]
    span = high - low
    assert (low == mode).any() and (mode == high).any() and ((low < mode) & (mode < high)).any()
    expected = stats.triang.ppf(u, (mode - low) / span, low, span)
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-9 * span.max())


@pytest.mark.parametrize("make", [gaussian, relu, np.random.Generator.exponential])
def test_points_follow_the_triangular_distribution(make) -> None:
    if make is np.random.Generator.exponential:
        z = np.random.default_rng(2).exponential(size=(75, 1)).astype(np.float32)
    else:
        z = make(75, np.random.default_rng(2))[:, :1].astype(np.float32)
    column = z[:, 0].astype(np.float64)
    method = BlindCS(dims=1)
    points = draws_of(method, columns_of(pool_of(z)), 9, 0, 20_000)[1][:, 0]
    low, span = column.min(), np.ptp(column)
    triangle = stats.triang((np.median(column) - low) / span, low, span)
    assert stats.kstest(points, triangle.cdf).pvalue > 0.001
    assert stats.kstest(points, stats.norm(column.mean(), column.std()).cdf).pvalue < 0.001


@pytest.mark.parametrize("n", [2, 3, 6, 7])
def test_minimum_median_and_maximum(n: int) -> None:
    z = gaussian(n, np.random.default_rng(n)).astype(np.float32)
    slices = columns_of(pool_of(z))
    for j, column in enumerate(z.T.astype(float).tolist()):
        assert slices.spread.low[j] == min(column) and slices.spread.high[j] == max(column)
        assert slices.spread.mode[j] == pytest.approx(statistics.median(column), abs=1e-12)


@pytest.mark.parametrize(("dims", "live"), [(1, 7), (2, 5), (3, 4), (4, 4)])
def test_dimensions_are_distinct_and_every_choice_as_likely(dims: int, live: int) -> None:
    method = BlindCS(dims=dims)
    slices = columns_of(pool_of(np.random.default_rng(0).normal(size=(9, live))))
    picked = draws_of(method, slices, 11, 0, 24_000)[0]
    choices = {p: 0 for p in itertools.permutations(range(live), dims)}
    for row in picked.tolist():
        choices[tuple(row)] += 1  # a repeated dimension is a KeyError here
    assert stats.chisquare(list(choices.values())).pvalue > 0.001


# One draw, and sums of draws


@pytest.mark.parametrize("make", [gaussian, relu, duplicates, grid])
@pytest.mark.parametrize("beta", [0.0, 2.5, 4.0, 80.0])
def test_each_draw_gives_one_and_takes_one(make, beta: float) -> None:
    method = BlindCS(draws=60, neighbors=30, exponent=beta)
    prepared = columns_of(pool_of(make(90, np.random.default_rng(4))))
    for t in range(method.draws):
        coverage, redundancy = tally(method, prepared, 1, t, t + 1).sum(axis=0)
        assert coverage.sum() == 1
        assert redundancy.sum() / UNIT == pytest.approx(1, abs=1e-6)
        assert redundancy.min() >= 0
        assert redundancy[coverage.argmax()] == 0  # never on the image that covers
        assert np.count_nonzero(redundancy) <= 30 or make is not gaussian


@given(st.integers(0, 250), st.integers(0, 250))
@settings(max_examples=30, deadline=None)
def test_tallies_add_exactly(a: int, b: int) -> None:
    a, b = sorted((a, b))
    method = BlindCS(neighbors=9)
    prepared = columns_of(pool_of(relu(40, np.random.default_rng(5))))
    pieces = [tally(method, prepared, 6, *ends) for ends in ((0, a), (a, b), (b, 250))]
    np.testing.assert_array_equal(tally(method, prepared, 6, 0, 250), sum(pieces))


def test_tallies_add_exactly_across_chunks_of_random_numbers() -> None:
    method = BlindCS(neighbors=5)
    prepared = columns_of(pool_of(gaussian(12, np.random.default_rng(6))))
    cut = 8192 + 7
    whole = tally(method, prepared, 0, 0, 17_000)
    halves = tally(method, prepared, 0, 0, cut) + tally(method, prepared, 0, cut, 17_000)
    np.testing.assert_array_equal(whole, halves)
    assert whole[:, 0].sum() == 17_000


def test_scores_balance_to_zero() -> None:
    for make in (gaussian, relu, duplicates, grid):
        z = make(80, np.random.default_rng(7))
        assert abs(coreset_ray.score(z, draws=500, neighbors=20).sum()) < 1e-4


# Pools out of the ordinary


@pytest.mark.parametrize("tie_break", ["none", "uniform"])
def test_of_five_copies_one_is_taken_first(tie_break: str) -> None:
    rng = np.random.default_rng(8)
    image = rng.permutation(np.repeat(np.arange(40), 5))
    z = rng.normal(size=(40, 16))[image]
    kept = coreset_ray.select(z, 40, draws=20_000, neighbors=50, tie_break=tie_break)
    assert sorted(image[kept.rows]) == list(range(40))
    random = coreset_ray.select(z, 40, method="random")
    assert len(set(image[random.rows])) < 40


def test_constant_dimensions_are_never_drawn_and_named() -> None:
    z = gaussian(30, np.random.default_rng(9))[:, :6]
    dead = np.insert(z, [0, 3, 6], [5.0, -1.0, 0.0], axis=1)
    method = BlindCS(draws=300, neighbors=10)
    with_dead, facts = score_columns(method, pool_of(dead), 2)
    assert facts == {
        "dimensions": 9,
        "constant_dimensions_dropped": [0, 4, 8],
        "neighbors_used": 10,
    }
    without = score_columns(method, pool_of(z), 2)[0]
    np.testing.assert_array_equal(with_dead["score"], without["score"])
    assert score_columns(BlindCS(draws=3), pool_of(z), 2)[1]["neighbors_used"] == 29


def test_a_pool_of_one_image_over_and_over_scores_zero() -> None:
    z = np.full((6, 3), 2.5)
    with pytest.warns(UserWarning, match="all 6 images have one and the same embedding"):
        columns, facts = score_columns(BlindCS(draws=50), pool_of(z), 0)
    assert all(not column.any() for column in columns.values())
    assert facts["constant_dimensions_dropped"] == [0, 1, 2]
    with pytest.warns(UserWarning):
        kept = coreset_ray.select(z, 2, draws=50, tie_break="none")
    assert kept.rows.tolist() == [0, 1] and kept.weights.tolist() == [1, 1]


def test_more_dims_than_vary_is_refused() -> None:
    z = np.insert(gaussian(10, np.random.default_rng(0))[:, :3], 1, 7.0, axis=1)
    assert coreset_ray.score(z, draws=5, dims=3).shape == (10,)
    with pytest.raises(ValueError, match=r"dims=4: only 3 of the 4 .* at most 3"):
        coreset_ray.score(z, draws=5, dims=4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_bad_row_is_named_as_the_caller_counts(bad: float) -> None:
    z = gaussian(20, np.random.default_rng(0))
    z[13, 2] = z[17, 5] = bad
    uid = np.stack([np.arange(20)[::-1], np.zeros(20)], axis=1).astype(np.uint64)
    for identity in (None, uid):
        with pytest.raises(ValueError, match=r"row 13 .*\(2 such rows\)"):
            coreset_ray.score(z, draws=5, uid=identity)
    with pytest.raises(ValueError, match="row 13"):
        columns_of(Pool(pool_of(gaussian(20, np.random.default_rng(0))).uid, {"embedding": z}))


def test_layout_and_float_type_of_the_embedding_do_not_matter() -> None:
    z = gaussian(30, np.random.default_rng(3)).astype(np.float16)
    expected = coreset_ray.score(z, draws=100)
    for same in (z.astype(">f4"), z.astype(float), np.asfortranarray(z, np.float32), z.tolist()):
        np.testing.assert_array_equal(coreset_ray.score(same, draws=100), expected)


# From scores to ranks and weights


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=30))
def test_weights_are_scores_scaled_to_one(values: list[float]) -> None:
    """Eq. 10 as (s - min) / (max - min)."""
    score = np.array(values)
    w = BlindCS().weight(score, score.min(), score.max())
    if np.ptp(score) == 0:
        assert (w == 1).all()
        return
    assert w[score.argmin()] == 0 and w[score.argmax()] == 1
    assert ((w >= 0) & (w <= 1)).all()
    order = np.argsort(score, kind="stable")
    assert (np.diff(w[order]) >= 0).all()


def test_weights_span_the_pool_not_the_coreset() -> None:
    z = gaussian(50, np.random.default_rng(10))
    score = coreset_ray.score(z, draws=400)
    kept = coreset_ray.select(z, 5, draws=400)
    expected = (score[kept.rows] - score.min()) / (score.max() - score.min())
    np.testing.assert_allclose(kept.weights, expected, atol=1e-12)
    assert kept.weights.min() > 0.1


def test_ties_are_broken_as_told() -> None:
    """Few draws with one neighbour leave most rows at exactly zero."""
    z = gaussian(200, np.random.default_rng(11))
    settings = {"draws": 10, "neighbors": 1}
    score = coreset_ray.score(z, **settings)
    zero = np.flatnonzero(score == 0)
    assert len(zero) > 150

    def ranked(seed: int, tie_break: str) -> list[int]:
        method = BlindCS(**settings, tie_break=tie_break)
        pool = pool_of(z)
        key = method.rank_key(score, pool.uid, seed)
        return [i for i in np.argsort(-key, kind="stable") if score[i] == 0]

    assert ranked(0, "none") == ranked(1, "none") == zero.tolist()
    assert ranked(0, "uniform") != ranked(1, "uniform") != zero.tolist()
    np.testing.assert_array_equal(
        BlindCS().rank_key(score, pool_of(z).uid, 3) - score,
        (score + uid_uniform(3, pool_of(z).uid, use=1)) - score,
    )
    rows = coreset_ray.select(z, 200, **settings, tie_break="none").rows
    assert [i for i in rows if score[i] == 0] == zero.tolist()


def test_the_smallest_uid_covers_when_rows_coincide() -> None:
    rng = np.random.default_rng(12)
    z = np.repeat(rng.normal(size=(10, 8)), 3, axis=0)
    uid = rng.permutation(30).astype(np.uint64)
    pool = Pool(np.stack([uid, uid], axis=1), {"embedding": z})
    coverage = score_columns(BlindCS(draws=500), pool, 0)[0]["coverage"]
    smallest = [3 * g + int(np.argmin(uid[3 * g : 3 * g + 3])) for g in range(10)]
    assert set(np.flatnonzero(coverage)) == set(smallest)


def test_an_ordinary_run_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coreset_ray.select(relu(60, np.random.default_rng(0)), 0.5, draws=100)


def test_a_pool_on_a_device_gives_the_same_bits() -> None:
    """The form that GPUs use, here on the CPU."""
    columns = columns_of(pool_of(gaussian(90, np.random.default_rng(3)).astype(np.float32)))
    held = dataclasses.replace(columns, resident=batched.resident(columns.index, "cpu"))
    for settings_ in ({}, {"dims": 3}, {"cover": "random"}, {"draws_per_slice": 20}):
        method = BlindCS(**{"neighbors": 12} | settings_)
        expected = tally(method, columns, 1, 0, 80)
        np.testing.assert_array_equal(tally(method, held, 1, 0, 80), expected)


FLOAT16_SETTINGS = [
    {"dims": 2},
    {"dims": 5},
    {"dims": 2, "draws_per_slice": 40, "points_per_draw": 3},
    {"dims": 2, "cover": "random"},
]


@pytest.mark.parametrize("settings_", FLOAT16_SETTINGS)
@pytest.mark.parametrize("make", [gaussian, relu, grid])
def test_float16_columns_hold_the_same_numbers(make, settings_: dict) -> None:
    """Of embeddings that float16 holds, denormal ones among them: the same bits as float32."""
    z = (make(500, np.random.default_rng(1)) * np.geomspace(1e-7, 1e3, M)).astype(np.float16)
    half, full = columns_of(pool_of(z)), columns_of(pool_of(z.astype(np.float32)))
    assert half.index.value.dtype == np.uint16 and full.index.value.dtype == np.float32
    method = BlindCS(draws=120, neighbors=20, **settings_)
    expected = tally(method, full, 3, 0, 120)
    np.testing.assert_array_equal(tally(method, half, 3, 0, 120), expected)
    parts = tally_shards(method, in_shards(half, [1, 70, 320]), 3, 0, 120)
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), expected)
    held = dataclasses.replace(half, resident=batched.resident(half.index, "cpu"))
    np.testing.assert_array_equal(tally(method, held, 3, 0, 120), expected)


def test_every_float16_is_read_as_it_is() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)][None].copy()
    index = columns_of(pool_of(finite.T)).index
    found = [place_of(index, np.array([0]), i)[0] for i in range(finite.size)]
    np.testing.assert_array_equal(found, finite[0].astype(np.float64))


def test_rounding_says_what_it_does() -> None:
    z = gaussian(400, np.random.default_rng(0)).astype(np.float32)
    fine = rounding_effect(BlindCS(draws=500, neighbors=20), 0, z, "float16")
    coarse = rounding_effect(BlindCS(draws=500, neighbors=20), 0, z * 3e-7, "float16")
    assert fine["rows"] == 400 and fine["draws"] == 500
    assert fine["correlation"]["score"] > 0.99 > 0.9 > coarse["correlation"]["score"]
    exact = rounding_effect(BlindCS(draws=500), 0, np.round(z * 8) / 8, "float16")
    assert set(np.round(list(exact["correlation"].values()), 12)) == {1.0}


def test_rows_that_coincide_end_a_slice_too() -> None:
    """On a lattice the radius that is guessed around many rows at one place shrinks to nothing."""
    z = np.round(np.random.default_rng(0).normal(size=(3000, 6))).astype(np.float32)
    for each in (16, 64):
        found = coreset_ray.score(z, neighbors=1, draws=960, draws_per_slice=each)
        assert np.isfinite(found).all()
