"""What halves of draws say of a repeated run, against simulations."""

import numpy as np
import pytest

from coreset_ray.core import stability
from coreset_ray.core.ranks import RankSearch, count_digits, ordered_bits, values_of


def top(score: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-score)[:k].tolist())


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("r", [-0.5, 0.0, 0.3, 0.9, 1.0])
def test_overlap_is_that_of_normal_scores(fraction: float, r: float) -> None:
    rng = np.random.default_rng(0)
    n, k = 1_000_000, round(1_000_000 * fraction)
    a, noise = rng.normal(size=(2, n))
    b = r * a + np.sqrt(1 - r * r) * noise
    seen = len(top(a, k) & top(b, k)) / k
    assert stability.overlap(r, fraction) == pytest.approx(seen, abs=0.015)


def test_halves_foretell_a_repeated_run_and_the_price_of_an_overlap() -> None:
    """Signal and noise of known size: the whole has half the noise variance of its halves."""
    rng = np.random.default_rng(1)
    n, draws, noise = 100_000, 1000, 2.0
    signal = rng.normal(size=n)

    def run(times: float) -> tuple[np.ndarray, np.ndarray]:
        return tuple(signal + rng.normal(size=n) * noise * np.sqrt(2 / times) for _ in range(2))

    a, b = run(1)
    sums = [x.sum() for x in (a, b, a * a, b * b, a * b)]
    halves = stability.correlation(sums, n)
    assert halves == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
    other = np.mean(run(1), axis=0)
    expected = np.corrcoef((a + b) / 2, other)[0, 1]
    whole = stability.repeatability(halves)
    assert whole == pytest.approx(expected, abs=0.01)

    needed = stability.draws_for(0.5, 0.1, whole, draws)
    longer = [np.mean(run(needed / draws), axis=0) for _ in range(2)]
    k = n // 10
    assert len(top(longer[0], k) & top(longer[1], k)) / k == pytest.approx(0.5, abs=0.02)
    assert stability.draws_for(0.5, 0.1, 0.0, draws) is None
    assert stability.draws_for(0.5, 0.1, 1.0, draws) == draws


def simulated(n: int, rng: np.random.Generator, tail: float):
    """Runs of which few rows stand out (BlindCS on a pool with near-duplicates is like that):
    two halves of one, the whole, and another whole."""
    signal = 0.2 * rng.normal(size=n) + tail * rng.exponential(size=n) ** 3
    halves = [signal + 2 * rng.normal(size=n) for _ in range(2)]
    other = signal + 2 / np.sqrt(2) * rng.normal(size=n)
    return halves, np.mean(halves, axis=0), other


@pytest.mark.parametrize("tail", [0.0, 0.2])
def test_overlaps_are_foretold_where_scores_are_not_normal(tail: float) -> None:
    n = 200_000
    (a, b), whole, other = simulated(n, np.random.default_rng(3), tail)
    share = {}
    for f in stability.FRACTIONS:
        k = round(f * n)
        share[f] = len(top(a, k) & top(b, k)) / k
    r = float(np.corrcoef(a, b)[0, 1])
    told = stability.report({"score": r}, share, 0.0, 1000, n)
    worst = 0.0
    for f in (*stability.FRACTIONS, 0.02, 0.2):
        k = round(f * n)
        seen = len(top(whole, k) & top(other, k)) / k
        if f in share:
            assert told["top"][str(f)]["repeat"] == pytest.approx(seen, abs=0.04)
        assert stability.expected_overlap(told, f) == pytest.approx(seen, abs=0.07)
        worst = max(worst, stability.overlap(stability.repeatability(r), f) - seen)
    assert stability.expected_overlap(told, 1.0) == 1.0
    if tail:
        assert worst > 0.1, "the correlation alone promises too much"


def test_a_few_images_are_not_counted() -> None:
    """Of 900, the top 1% are nine: what they share says less than the correlation does."""
    shared = {0.01: 0.9, 0.3: 0.5}
    told = stability.report({"score": 0.2}, shared, 0.0, 1000, 900)
    assert told["top"]["0.01"]["correlation"] == stability.repeatability(0.2)
    assert stability.overlap(stability.correlation_of(0.5, 0.3), 0.3) == pytest.approx(0.5)
    expected = stability.repeatability(stability.correlation_of(0.5, 0.3))
    assert told["top"]["0.3"]["correlation"] == expected
    for top_ in told["top"].values():
        del top_["correlation"]  # as reports once were
    assert stability.expected_overlap(told, 0.2) == stability.overlap(told["repeat"]["score"], 0.2)
    assert [stability.correlation_of(s, 0.1) for s in (0.0, 1.0)] == [-1.0, 1.0]


def test_noise_is_said_in_words_and_signal_is_not() -> None:
    overlaps = dict.fromkeys(stability.FRACTIONS, 0.2)
    noisy = stability.report({"score": 0.01, "coverage": 0.5}, overlaps, 0.1, 1000, 500)
    words = stability.in_words(noisy)
    assert words and "mostly noise" in words and "0.02" in words and "10% by chance" in words
    nothing = stability.report({"score": -0.1}, overlaps, 0.1, 1000, 500)
    assert "can be told" in (stability.in_words(nothing) or "")
    assert stability.in_words(stability.report({"score": 0.9}, overlaps, 0, 1000, 300)) is None


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_ranks_are_found_by_counting(kind) -> None:
    """Whatever the numbers: negative, zero, huge, tiny, and many alike, in five places."""
    rng = np.random.default_rng(2)
    values = (rng.standard_t(1, (4, 700)) * 10.0 ** rng.integers(-30, 30, (4, 700))).astype(kind)
    values[1, :300] = 0
    values[2] = 7
    ranks = np.tile([0, 349, 350, 699], (4, 1))
    bits = ordered_bits(values)
    search = RankSearch(ranks, bits.dtype.type)
    rounds = 0
    while not search.done:
        found, shift = search.question()
        places = [
            np.stack([count_digits(b, f, shift) for b, f in zip(part, found, strict=True)])
            for part in np.split(bits, [3, 100, 101, 600], axis=1)
        ]
        search.answer(np.sum(places, axis=0))
        rounds += 1
    assert rounds == 4
    np.testing.assert_array_equal(values_of(search.found), np.sort(values, axis=1)[:, ranks[0]])
