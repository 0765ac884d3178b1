"""Counter-based random numbers, budgets, ranking, and pools."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coreset_ray.core.pool import Pool, pool_of, uid_order
from coreset_ray.core.random import below, check_seed, draw_words, uid_uniform, unit_interval
from coreset_ray.core.selection import resolve_budget, top_rows

SEEDS = st.integers(0, 2**64 - 1)


def uids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (n, 2), np.uint64)


# Words


@given(SEEDS, st.integers(0, 2**40), st.integers(1, 9), st.lists(st.integers(0, 30), max_size=4))
def test_words_do_not_depend_on_chunks(seed: int, first: int, width: int, cuts: list[int]) -> None:
    whole = draw_words(seed, first, 30, width)
    assert whole.shape == (30, width) and whole.dtype == np.uint64
    edges = [0, *sorted(cuts), 30]
    pieces = [draw_words(seed, first + a, b - a, width) for a, b in itertools.pairwise(edges)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


@pytest.mark.parametrize("width", [1, 4, 5])
def test_no_word_comes_twice(width: int) -> None:
    """Within a stream, or in two streams of different seeds (also of ones a bit apart)."""
    seeds = [0, 1, 2, 2**32, 2**63, 2**64 - 1]
    words = np.concatenate([draw_words(seed, 0, 3000, width).ravel() for seed in seeds])
    assert len(np.unique(words)) == len(words) == 6 * 3000 * width


def test_words_are_uniform_in_every_byte() -> None:
    octets = draw_words(7, 10**6, 20_000, 2).view(np.uint8).reshape(-1, 8)
    for place in range(8):
        counts = np.bincount(octets[:, place], minlength=256)
        assert stats.chisquare(counts).pvalue > 0.0005


def test_words_of_one_draw_are_not_related() -> None:
    u = unit_interval(draw_words(3, 0, 20_000, 4))
    correlation = np.corrcoef(np.concatenate([u[:-1], u[1:]], axis=1).T)
    assert np.abs(correlation - np.eye(8)).max() < 0.04


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_unit_interval_is_exact(words: list[int]) -> None:
    u = unit_interval(np.array(words, np.uint64))
    assert u.tolist() == [(word >> 11) / 2**53 for word in words]
    assert u.min() >= 0 and u.max() < 1


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(1, 2**32))
def test_below_is_exact(words: list[int], bound: int) -> None:
    value = below(np.array([*words, 0, 2**64 - 1], np.uint64), bound)
    assert value.tolist()[:-2] == [((word >> 32) * bound) >> 32 for word in words]
    assert value[-2] == 0 and value[-1] == bound - 1


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 100, 1280])
def test_below_is_uniform(bound: int) -> None:
    counts = np.bincount(below(draw_words(1, 0, 50_000, 1)[:, 0], bound).astype(int))
    assert len(counts) == bound
    assert bound == 1 or stats.chisquare(counts).pvalue > 0.001


# A number for each identity


def test_uid_uniform_is_uniform() -> None:
    positions = np.stack([np.zeros(20_000), np.arange(20_000)], axis=1).astype(np.uint64)
    for uid in (uids(20_000), positions, positions[:, ::-1]):
        for seed in (0, 1, 2**64 - 1):
            u = uid_uniform(seed, uid)
            assert u.shape == (20_000,) and u.min() >= 0 and u.max() < 1
            assert stats.kstest(u, "uniform").pvalue > 0.0005
            assert len(np.unique(u)) == 20_000


@given(SEEDS, st.integers(0, 63))
def test_uid_uniform_depends_on_seed_and_both_halves(seed: int, bit: int) -> None:
    uid = uids(50)
    flip = np.uint64(1 << bit)
    u = uid_uniform(seed, uid)
    for other in (
        uid_uniform(seed ^ (1 << bit), uid),
        uid_uniform(seed, uid ^ np.array([flip, 0], np.uint64)),
        uid_uniform(seed, uid ^ np.array([0, flip], np.uint64)),
        uid_uniform(seed, uid[:, ::-1]),
    ):
        assert (u != other).all()
        assert abs(np.corrcoef(u, other)[0, 1]) < 0.75


@given(SEEDS)
def test_uid_uniform_is_a_function_of_the_row_alone(seed: int) -> None:
    uid = uids(30)
    whole = uid_uniform(seed, uid)
    np.testing.assert_array_equal(whole[[4, 2, 29]], uid_uniform(seed, uid[[4, 2, 29]]))


def test_seeds_do_not_collide() -> None:
    """A hundred seeds, neighbours and far apart: no two give a row the same number."""
    uid = np.stack([np.zeros(200), np.arange(200)], axis=1).astype(np.uint64)
    seeds = [*range(50), *(2**64 - 1 - i for i in range(50))]
    numbers = np.concatenate([uid_uniform(seed, uid) for seed in seeds])
    assert len(np.unique(numbers)) == len(numbers)


@pytest.mark.parametrize("seed", [-1, 2**64, True, np.bool_(False), 1.5, 1.0, "0", None, [0]])
def test_bad_seeds_are_refused(seed: object) -> None:
    for use in (
        check_seed,
        lambda s: draw_words(s, 0, 1, 1),
        lambda s: uid_uniform(s, uids(2)),
    ):
        with pytest.raises(ValueError, match=r"seed=.*expected an integer from 0 to 2\*\*64 - 1"):
            use(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.int32(5), np.uint64(2**64 - 1)])
def test_good_seeds_are_taken(seed: int) -> None:
    assert check_seed(seed) == int(seed) and type(check_seed(seed)) is int
    np.testing.assert_array_equal(draw_words(seed, 0, 2, 3), draw_words(int(seed), 0, 2, 3))


# Budget


@given(st.integers(1, 10**9), st.data())
def test_a_count_is_a_count(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    assert resolve_budget(k, n) == resolve_budget(np.int64(k), n) == k
    for wrong in (-1 - k, n + 1 + k):
        with pytest.raises(ValueError, match=f"budget={wrong}: .*0 to {n}"):
            resolve_budget(wrong, n)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_a_fraction_is_the_nearest_count(n: int, fraction: float) -> None:
    k = resolve_budget(fraction, n)
    assert type(k) is int and 0 <= k <= n
    assert abs(k - fraction * n) <= 0.5
    assert resolve_budget(np.float64(fraction), n) == k


def test_fractions_of_the_paper() -> None:
    """Table 2 of the paper: coreset sizes at prune rates of 30, 50, 70, 80 and 90%."""
    keep = [0.7, 0.5, 0.3, 0.2, 0.1]
    imagenet = [896_817, 640_584, 384_350, 256_233, 128_117]
    assert [resolve_budget(f, 1_281_167) for f in keep] == imagenet
    assert [resolve_budget(f, 2_700) for f in keep] == [1_890, 1_350, 810, 540, 270]


@pytest.mark.parametrize(
    "budget", [1.0001, -1e-9, float("nan"), float("inf"), True, np.bool_(1), "5", None, [1]]
)
def test_other_budgets_are_refused(budget: object) -> None:
    with pytest.raises(ValueError, match="budget="):
        resolve_budget(budget, 10)  # type: ignore[arg-type]


def test_one_and_one_point_zero_differ() -> None:
    assert resolve_budget(1, 10) == 1
    assert resolve_budget(1.0, 10) == 10


# Ranking


@st.composite
def ranked_pools(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, int]], int]:
    """Few different keys, and identities that often share a half."""
    n = draw(st.integers(1, 40))
    value = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, np.inf])
    half = st.sampled_from([0, 1, 2, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
    identities = st.lists(st.tuples(half, half), min_size=n, max_size=n, unique=True)
    keys = st.lists(value, min_size=n, max_size=n)
    return draw(keys), draw(identities), draw(st.integers(0, n))


@given(ranked_pools())
def test_top_rows_equals_sorting(case: tuple[list[float], list[tuple[int, int]], int]) -> None:
    keys, identities, k = case
    order = sorted(range(len(keys)), key=lambda i: (-keys[i], identities[i]))
    uid = np.array(identities, np.uint64)
    assert top_rows(np.array(keys), uid, k).tolist() == order[:k]
    assert uid_order(uid).tolist() == sorted(range(len(keys)), key=lambda i: identities[i])


def test_top_rows_refuses_nan() -> None:
    with pytest.raises(AssertionError, match="NaN"):
        top_rows(np.array([1.0, np.nan]), uids(2), 1)


# Pools


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (np.zeros(3), r"shape \(3,\): expected \(n, m\)"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\): .*n ≥ 1"),
        (np.zeros((3, 0)), r"shape \(3, 0\): .*m ≥ 1"),
        (np.zeros((2, 2), int), "dtype int64: expected a floating-point"),
        (np.zeros((2, 2), complex), "dtype complex128"),
        (np.array([["a"]]), "dtype <U1"),
        (np.array([[None]]), "dtype object"),
        ([[0.0, np.nan]], "row 0"),
    ],
)
def test_embeddings_of_another_kind_are_refused(embedding: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool_of(embedding)


@pytest.mark.parametrize(
    "uid",
    [
        np.zeros((3, 2), np.int64),
        np.zeros(3, np.uint64),
        np.zeros((4, 2), np.uint64),
        np.zeros((3, 3), np.uint64),
        [[0, 1], [0, 2], [0, 3]],
    ],
)
def test_identities_of_another_kind_are_refused(uid: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uid has .*expected \(3, 2\) uint64"):
        pool_of(np.zeros((3, 2)), uid)


def test_two_rows_with_one_identity_are_refused() -> None:
    uid = np.array([[0, 1], [5, 6], [1, 0], [5, 6]], np.uint64)
    with pytest.raises(ValueError, match="rows 1 and 3"):
        pool_of(np.zeros((4, 2)), uid)


def test_default_identity_is_the_position() -> None:
    assert pool_of(np.zeros((3, 1))).uid.tolist() == [[0, 0], [0, 1], [0, 2]]


def test_a_view_holds_only_what_was_asked_for() -> None:
    pool = Pool(uids(4), {"a": np.arange(4.0), "b": np.zeros((4, 2))})
    view = pool.restrict(["b"])
    assert len(view) == 4 and set(view.columns) == {"b"}
    with pytest.raises(KeyError, match=r"column 'a' .*needs"):
        view["a"]
    with pytest.raises(ValueError, match=r"needs the column 'c'.*\['a', 'b'\]"):
        pool.restrict(["a", "c"])
    with pytest.raises(ValueError, match="read-only"):
        pool["a"][0] = 1
    assert pool.columns["a"].flags.writeable


@given(st.lists(st.integers(0, 3), max_size=8))
def test_take_takes_the_rows_named(rows: list[int]) -> None:
    pool = Pool(uids(4), {"a": np.arange(4.0), "b": np.arange(8.0).reshape(4, 2)})
    taken = pool.take(np.array(rows, np.int64))
    assert len(taken) == len(rows)
    assert taken["a"].tolist() == rows
    assert taken["b"].tolist() == [[2 * r, 2 * r + 1] for r in rows]
    np.testing.assert_array_equal(taken.uid, pool.uid[rows])


def test_one_seed_gives_each_use_its_own_numbers() -> None:
    """Else ties of a coreset would be broken in the order of the random choice beside it."""
    uid = np.stack([np.zeros(2000, np.uint64), np.arange(2000, dtype=np.uint64)], axis=1)
    first, second = uid_uniform(3, uid), uid_uniform(3, uid, use=1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert not np.isin(second, first).any()
