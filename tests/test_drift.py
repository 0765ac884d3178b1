"""How new data differ from old: shift, coverage, new clusters and the labels they deserve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset_ray.clustering.drift import clusters_of, labels_to_cover, radius_of, shift
from coreset_ray.core.cosine import unit_rows

RANDOM = np.random.default_rng(0)


def blob(center: int, n: int, width: float = 0.05, m: int = 8) -> np.ndarray:
    """Rows of length 1 about an axis."""
    rows = width * RANDOM.normal(size=(n, m))
    rows[:, center] += 1
    return unit_rows(rows.astype(np.float32))


def test_a_shift_is_measured_in_deviations_of_the_old() -> None:
    old = RANDOM.normal(2, 3, size=(4000, 3)).astype(np.float32)
    new = old + np.array([0, 3, -6], np.float32)
    np.testing.assert_allclose(shift(old, new), [0, 1, -2], atol=0.05)


def test_a_dimension_that_did_not_vary_has_moved_without_measure() -> None:
    old, new = np.zeros((5, 2), np.float32), np.array([[0, 1], [0, 1]], np.float32)
    assert shift(old, new).tolist() == [0, np.inf]


def test_the_radius_covers_what_it_should() -> None:
    cosine = np.linspace(-1, 1, 1001)
    assert ((cosine >= radius_of(cosine)).mean()) == pytest.approx(0.95, abs=0.001)


def test_data_that_are_covered_deserve_no_label() -> None:
    new = blob(0, 50)
    assert labels_to_cover(new, np.ones(50), 0.9) == 0
    assert labels_to_cover(new[:0], np.ones(0), 0.9) == 0


@pytest.mark.parametrize("groups", [1, 3, 5])
def test_each_tight_group_that_nothing_covers_takes_a_label(groups) -> None:
    new = np.concatenate([blob(i, 40, 0.01) for i in range(groups)])
    assert labels_to_cover(new, np.zeros(len(new)), 0.9) == groups


def test_rows_of_zeros_are_bought_one_by_one() -> None:
    """Nothing covers them, and buying ends."""
    rows = np.zeros((40, 4), np.float32)
    assert labels_to_cover(rows, np.zeros(40), 0.5) == 40 - 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.floats(0.2, 0.99), st.integers(0, 2**32 - 1))
def test_what_is_bought_covers_and_no_less_does_by_greed(n, radius, seed) -> None:
    """Against a slow greedy cover, written the obvious way."""
    random = np.random.default_rng(seed)
    rows = unit_rows(random.normal(size=(n, 4)).astype(np.float32))
    cosine = random.uniform(-1, 1, n)
    alike = rows.astype(np.float64) @ rows.T >= radius
    left = {i for i in range(n) if cosine[i] < radius}
    outside, bought = sorted(left), 0
    while len(left) > int(0.05 * n):
        best = max(outside, key=lambda i: (len(left & set(np.flatnonzero(alike[i]))), -i))
        left -= set(np.flatnonzero(alike[best])) | {best}
        bought += 1
    assert labels_to_cover(rows, cosine, radius) == bought


def test_a_cluster_that_only_new_data_have_is_new() -> None:
    old = np.concatenate([blob(0, 300), blob(1, 300)])
    new = np.concatenate([blob(0, 100), blob(1, 100), blob(2, 100)])
    found = clusters_of(old, new, 0)
    assert found.old.sum() == pytest.approx(1) and found.new.sum() == pytest.approx(1)
    assert found.fresh.any() and (found.centroids[found.fresh].argmax(axis=1) == 2).all()
    assert found.new[found.fresh].sum() == pytest.approx(1 / 3, abs=0.02)
    assert not clusters_of(old, old[::2], 0).fresh.any()
