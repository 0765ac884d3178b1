"""Methods on last-layer gradients and predictions, against the slow and obvious forms."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls
from scipy.special import rel_entr
from scipy.stats import chisquare
from signal_columns import CLASSES, pool_with_signals

from coreset_ray import catalog
from coreset_ray.core.alone import select_alone
from coreset_ray.core.divergence import divergences, on_grid, row_divergences
from coreset_ray.core.gradient_distance import closest, nearest_alike, served_by
from coreset_ray.core.gradients import Gradients, approach, gradients_of, outer_sum, predicted
from coreset_ray.core.pool import Pool
from coreset_ray.core.pursuit import Pursuit

N = 70


def pool(n: int = N, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    uid = np.sort(rng.integers(0, 2**64, (n, 2), np.uint64), axis=0)
    return pool_with_signals(rng.normal(size=(n, 5)).astype(np.float32), uid, seed)


def with_columns(of: Pool, **columns: np.ndarray) -> Pool:
    return Pool(of.uid, {**of.columns, **{f"proxy.{n}": v for n, v in columns.items()}})


def materialised(of: Pool, label: np.ndarray) -> np.ndarray:
    """The gradients themselves, (n, c·(h + 1)) float64."""
    residual = of["proxy.probability"] - np.eye(CLASSES)[label]
    feature = np.column_stack([of["proxy.feature"], np.ones(len(of))]).astype(np.float64)
    return np.einsum("nc,nh->nch", residual, feature).reshape(len(of), -1)


def trained(of: Pool) -> tuple[Gradients, np.ndarray]:
    return gradients_of(of, of["proxy.label"]), materialised(of, of["proxy.label"])


def selected(name: str, of: Pool, k: int, *, kept: Any = None, seed: int = 0, **params: Any):
    return select_alone(catalog.build_selector(name, params), of, k, seed, kept=kept)


def test_factored_gradients_are_the_gradients() -> None:
    of, g = trained(pool())
    near: Mapping[str, float] = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(of.length, np.linalg.norm(g, axis=1), **near)
    np.testing.assert_allclose(of.products(of.take(slice(3, 9))), g @ g[3:9].T, **near)
    np.testing.assert_allclose(of.squares(), (g**2).sum(axis=1), **near)
    matrix = np.random.default_rng(1).normal(size=(CLASSES, 7))
    np.testing.assert_allclose(of.along(matrix), g @ matrix.ravel(), **near)
    feature = np.column_stack([pool()["proxy.feature"], np.ones(N)])
    np.testing.assert_allclose(of.outputs(matrix), feature @ matrix.T, **near)
    weight = np.random.default_rng(2).normal(size=N)
    np.testing.assert_allclose(of.total(weight).ravel(), weight @ g, **near)
    some = np.array([7, 2, 40])
    np.testing.assert_allclose(of.total(weight[:3], some).ravel(), weight[:3] @ g[some], **near)


def test_inner_products_are_exact_whatever_the_blocks() -> None:
    of, _ = trained(pool())
    whole = of.products(of)
    for one in (0, 5, N - 1):
        np.testing.assert_array_equal(of.products(of.take([one]))[:, 0], whole[:, one])
        np.testing.assert_array_equal(of.products_with(np.arange(N), one), whole[:, one])
    np.testing.assert_array_equal(np.diag(whole), of.squares())
    matrix = np.random.default_rng(1).normal(size=(CLASSES, 7))
    parts = [of.take(rows).along(matrix) for rows in np.array_split(np.arange(N), 9)]
    np.testing.assert_array_equal(np.concatenate(parts), of.along(matrix))
    left = np.rint(np.random.default_rng(3).normal(size=(N, 4)) * 2.0**20) * 2.0**-22
    left[0, 0] = 1.0  # the largest: already on its grid, so that sums of whole numbers are the sum
    exact = [
        [sum(int(a * 2**24) * int(b * 2**24) for a, b in zip(x, y, strict=True)) for y in left.T]
        for x in of.feature.T
    ]
    found = outer_sum(left, of.feature, np.arange(N))
    order = np.random.default_rng(4).permutation(N)
    np.testing.assert_array_equal(outer_sum(left[order], of.feature, order), found)
    np.testing.assert_allclose(found.T, np.array(exact, float) * 2.0**-48, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("signed", [False, True])
def test_rows_that_cannot_come_closer_are_passed_over_rightly(signed: bool) -> None:
    given = pool()
    if signed:
        given = with_columns(given, feature=given["proxy.feature"] - np.float32(0.4))
    of, g = trained(given)
    nearest = np.full(N, np.inf)
    square, products = of.squares(), of.products(of)
    for one in (3, 60, 11, 12):
        approach(of.residual, of.feature, of.length, square, one, nearest)
    rows = np.array([3, 60, 11, 12])
    apart = (square[:, None] + square[rows] - 2 * products[:, rows]).clip(min=0)
    np.testing.assert_array_equal(nearest, apart.min(axis=1))
    slow = ((g[:, None] - g[rows]) ** 2).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(nearest, slow, rtol=1e-4, atol=1e-4)
    assert (nearest[rows] == 0).all()


def test_labels_without_an_output_are_named() -> None:
    of = pool()
    label = of["proxy.label"].copy()
    label[5] = CLASSES
    with pytest.raises(ValueError, match=r"proxy.label of row 5 is 4: expected 0 to 3"):
        selected("glister", with_columns(of, label=label), 5)


# divergence of predictions


def slow_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    p, q = p.astype(np.float64), q.astype(np.float64)
    return (rel_entr(p, q).sum(axis=-1) + rel_entr(q, p).sum(axis=-1)) / 2


def test_divergence_is_that_of_both_directions() -> None:
    p = pool()["proxy.probability"]
    grid, log = on_grid(p)
    slow = slow_divergence(p[:, None], p[None])
    np.testing.assert_allclose(divergences(grid, log, grid, log), slow, atol=2e-5)
    other = np.random.default_rng(0).permutation(N)
    rows = row_divergences(grid, log, grid[other], log[other])
    np.testing.assert_allclose(rows, slow[np.arange(N), other], atol=2e-5)
    hard = np.eye(3, dtype=np.float32)[[0, 0, 1]]  # probabilities of 0 and 1
    apart = divergences(*on_grid(hard), *on_grid(hard))
    assert apart[0, 1] == 0 and np.isfinite(apart).all() and apart[0, 2] > 80


def test_contextual_diversity_covers_predictions() -> None:
    of, k = pool(), 12
    found = selected("contextual_diversity", of, k)
    p = of["proxy.probability"]
    apart = slow_divergence(p[:, None], p[None])
    rows = found.rows[:1].tolist()
    while len(rows) < k:
        rows.append(int(apart[rows].min(axis=0).argmax()))
    assert found.rows.tolist() == rows
    radius = apart[rows].min(axis=0).max()
    np.testing.assert_allclose(found.gains[1:].min(), apart[rows[:-1], rows[-1]].min(), atol=2e-5)
    assert radius <= found.gains[-1] + 2e-5  # what is left lies closer than the last one did


def test_cal_keeps_those_least_like_their_neighbours() -> None:
    of = pool()
    p, neighbor = of["proxy.probability"], of["knn.neighbor"][:, :3].copy()
    neighbor[4], neighbor[9, 1:] = -1, -1
    given = Pool(of.uid, {**of.columns, "knn.neighbor": neighbor})
    slow = [np.mean([slow_divergence(p[i], p[j]) for j in n if j >= 0] or [0]) for i, n in
            enumerate(neighbor)]  # fmt: skip
    found = selected("cal", given, N, neighbors=3)
    assert found.rows.tolist() == np.argsort(-np.array(slow), kind="stable").tolist()
    np.testing.assert_allclose(found.gains, np.array(slow)[found.rows], atol=2e-5)
    assert found.rows[-1] == 4 and found.gains[-1] == 0
    fewer = selected("cal", given, N, neighbors=1)
    assert fewer.rows.tolist() != found.rows.tolist()


# BADGE


def test_badge_draws_in_proportion_to_squared_distances() -> None:
    of = pool(9)
    g = materialised(of, predicted(of))
    kept = np.array([2, 5])
    square = ((g[:, None] - g[kept]) ** 2).sum(axis=2).min(axis=1)
    draws = [selected("badge", of, 1, kept=kept, seed=s) for s in range(800)]
    counts = np.bincount([int(d.rows[0]) for d in draws], minlength=9)
    likely = square > 0
    assert counts[~likely].sum() == 0 and not likely[kept].any()
    expected = square[likely] / square[likely].sum() * 800
    assert chisquare(counts[likely], expected).pvalue > 1e-3
    for draw in draws[:20]:
        np.testing.assert_allclose(draw.gains, square[draw.rows], rtol=1e-4)


def test_badge_starts_anywhere_and_goes_on_where_all_are_alike() -> None:
    of = pool(6)
    first = [int(selected("badge", of, 1, seed=s).rows[0]) for s in range(400)]
    assert chisquare(np.bincount(first, minlength=6)).pvalue > 1e-3
    alike = with_columns(
        *(of,),
        probability=np.repeat(of["proxy.probability"][:1], 6, axis=0),
        feature=np.repeat(of["proxy.feature"][:1], 6, axis=0),
    )
    found = selected("badge", alike, 6)
    assert sorted(found.rows) == list(range(6)) and (found.gains[1:] == 0).all()


# CRAIG


def slow_craig(of: Pool, k: int) -> tuple[list[int], list[float]]:
    label = of["proxy.label"]
    g = materialised(of, label)
    apart = np.linalg.norm(g[:, None] - g[None], axis=2)
    alike = label[:, None] == label
    similar = np.where(alike, apart[alike].max() - apart, 0)
    rows, gains = [], []
    for _ in range(k):
        best = similar[:, rows].max(axis=1, initial=0)
        gain = np.maximum(similar, best[:, None]).sum(axis=0) - best.sum()
        gain[rows] = -1
        rows.append(int(gain.argmax()))
        gains.append(gain[rows[-1]])
    return rows, gains


def test_craig_is_facility_location_among_gradients_of_a_label() -> None:
    of, k = pool(), 15
    found = selected("craig", of, k, neighbors=N)
    rows, gains = slow_craig(of, k)
    assert found.rows.tolist() == rows
    np.testing.assert_allclose(found.gains, gains, rtol=1e-4)
    label = of["proxy.label"]
    g = materialised(of, label)
    weight = np.zeros(N)
    for i in range(N):
        own = [j for j in sorted(rows) if label[j] == label[i]] or sorted(rows)
        weight[own[int(np.linalg.norm(g[own] - g[i], axis=1).argmin())]] += 1
    np.testing.assert_array_equal(found.weights, weight[rows])


@pytest.mark.parametrize("neighbors", [1, 4, N])
@pytest.mark.parametrize("k", [1, 2, 30, N])
def test_weights_of_craig_count_every_row_once(neighbors: int, k: int) -> None:
    of = pool()
    assert selected("craig", of, k, neighbors=neighbors).weights.sum() == N
    kept = np.array([1, 2, 3])
    beside = selected("craig", of, k - 3, neighbors=neighbors, kept=kept) if k > 3 else None
    assert beside is None or beside.weights.sum() <= N - 3


def test_with_few_neighbours_craig_is_near_the_dense_form() -> None:
    of = pool(150)
    label = of["proxy.label"]
    g = materialised(of, label)
    apart = np.linalg.norm(g[:, None] - g[None], axis=2)

    def value(rows: np.ndarray) -> float:
        near = [apart[i, [j for j in rows if label[j] == label[i]]].min() for i in range(150)]
        return float(np.mean(near))

    dense, sparse = (value(selected("craig", of, 20, neighbors=m).rows) for m in (150, 12))
    random = np.mean([value(np.random.default_rng(s).permutation(150)[:20]) for s in range(5)])
    assert dense <= sparse * 1.02 and sparse < dense + (random - dense) / 3


def test_nearest_gradients_lie_in_blocks_of_any_size(monkeypatch) -> None:
    of, label = trained(pool())[0], pool()["proxy.label"]
    whole, served = nearest_alike(of, label, 6), served_by(of, label, np.arange(0, N, 5))
    monkeypatch.setattr("coreset_ray.core.gradient_distance._BLOCK", 40)
    for a, b in zip(nearest_alike(of, label, 6), whole, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(served_by(of, label, np.arange(0, N, 5)), served)
    assert (label[whole[0]] == label[:, None]).all()


def test_the_closest_columns_and_their_ties() -> None:
    square = np.random.default_rng(0).integers(0, 5, (30, 11)).astype(float)
    for count in (1, 4, 11):
        order = np.sort(np.argsort(square, axis=1, kind="stable")[:, :count], axis=1)
        np.testing.assert_array_equal(closest(square, count), order)


# GradMatch


def slow_gradmatch(g: np.ndarray, k: int, ridge: float) -> tuple[list[int], np.ndarray, list]:
    """Rows, weights and the objective after each choice, by least squares on stacked columns."""
    mean, rows, weight, values = g.mean(axis=0), [], np.zeros(0), []
    for _ in range(k):
        gain = g @ (mean - weight @ g[rows])
        gain[rows] = -np.inf
        rows.append(int(gain.argmax()))
        stacked = np.vstack([g[rows].T, np.sqrt(ridge) * np.eye(len(rows))])
        weight, left = nnls(stacked, np.concatenate([mean, np.zeros(len(rows))]))
        values.append(left**2)
    return rows, weight, values


@pytest.mark.parametrize("ridge", [1.0, 1e-3])
def test_gradmatch_is_orthogonal_matching_pursuit(ridge: float) -> None:
    of, k = pool(), 30
    g = materialised(of, of["proxy.label"])
    rows, weight, values = slow_gradmatch(g, k, ridge)
    found = selected("gradmatch", of, k, ridge=ridge)
    same = k if ridge == 1.0 else 10  # later ones differ by less than the grid can tell
    assert found.rows[:same].tolist() == rows[:same]
    if same == k:
        np.testing.assert_allclose(found.weights, N * weight, atol=1e-4)
    value = ((g.mean(axis=0) - found.weights / N @ g[found.rows]) ** 2).sum()
    value += ridge * ((found.weights / N) ** 2).sum()
    np.testing.assert_allclose(value, values[-1], rtol=1e-3)
    assert (found.weights >= 0).all()


def test_the_residual_of_matching_pursuit_falls() -> None:
    of = pool()
    g = materialised(of, of["proxy.label"])
    mean, before = g.mean(axis=0), np.inf
    for k in (1, 2, 3, 5, 8, 13, 21, 34, 55, N):
        found = selected("gradmatch", of, k)
        w = found.weights / N
        left = ((mean - w @ g[found.rows]) ** 2).sum() + (w**2).sum()
        assert left <= before + 1e-12
        before = left
    assert before < 0.2 * (mean**2).sum()


def test_the_active_set_solves_what_nnls_does() -> None:
    rng = np.random.default_rng(0)
    for ridge in (1e-6, 0.1, 1.0):
        a, aim = rng.normal(size=(40, 12)), rng.normal(size=12)
        a[7], a[9] = a[3], -a[3]  # columns that say the same, and the opposite
        pursuit, before = Pursuit(40, ridge), np.inf
        for j in range(40):
            weight = pursuit.add(a[: j + 1] @ a[j], float(a[j] @ aim))
            stacked = np.vstack([a[: j + 1].T, np.sqrt(ridge) * np.eye(j + 1)])
            exact, left = nnls(stacked, np.concatenate([aim, np.zeros(j + 1)]))
            np.testing.assert_allclose(weight, exact, atol=1e-7)
            assert left <= before + 1e-12
            before = left


# GLISTER and RETRIEVE


def mean_loss(of: Pool, label: np.ndarray, step: np.ndarray) -> float:
    """Mean cross-entropy after `step`, (c, h + 1), is taken off the last layer."""
    feature = np.column_stack([of["proxy.feature"], np.ones(len(of))])
    logit = np.log(of["proxy.probability"].astype(np.float64)) - feature @ step.T
    logit -= logit.max(axis=1, keepdims=True)
    log = logit - np.log(np.exp(logit).sum(axis=1, keepdims=True))
    return float(-log[np.arange(len(of)), label].mean())


def slow_steps(
    judged: Pool, g: np.ndarray, k: int, begun: list[int], skip: list[int], refresh: int
) -> tuple[list[int], list[float]]:
    """By differences of the loss itself, one coordinate of the last layer after another."""
    rate, label, rows, gains = 0.1, judged["proxy.label"], [], []
    while len(rows) < k:
        at = (rate * g[begun + rows].mean(axis=0) if begun + rows else 0 * g[0]).reshape(CLASSES, 7)
        slope = np.empty((CLASSES, 7))
        for place in np.ndindex(slope.shape):
            bump = np.zeros_like(slope)
            bump[place] = 1e-5
            up, down = mean_loss(judged, label, at - bump), mean_loss(judged, label, at + bump)
            slope[place] = (up - down) / 2e-5
        gain = rate * g @ slope.ravel()
        gain[rows + begun + skip] = -np.inf
        best = np.argsort(-gain, kind="stable")[: min(refresh, k - len(rows))]
        gains.extend(gain[best])
        rows.extend(best.tolist())
    return rows, gains


@pytest.mark.parametrize("refresh", [1, 4, 50])
@pytest.mark.parametrize("kept", [[], [30, 2, 9]])
def test_glister_follows_the_slope_of_the_loss(refresh: int, kept: list[int]) -> None:
    of = pool()
    g = materialised(of, of["proxy.label"])
    rows, gains = slow_steps(of, g, 12, kept, [], refresh)
    found = selected("glister", of, 12, refresh=refresh, kept=np.array(kept, int))
    assert found.rows.tolist() == rows
    np.testing.assert_allclose(found.gains, gains, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("refresh", [1, 4, 50])
@pytest.mark.parametrize("kept", [[], [30, 2, 9]])
def test_retrieve_follows_the_slope_of_the_labelled_loss(refresh: int, kept: list[int]) -> None:
    of = pool()
    g = materialised(of, predicted(of))
    judged = of.take(np.array(kept)) if kept else of
    rows, gains = slow_steps(judged, g, 12, [], kept, refresh)
    found = selected("retrieve", of, 12, refresh=refresh, kept=np.array(kept, int))
    assert found.rows.tolist() == rows
    np.testing.assert_allclose(found.gains, gains, rtol=1e-4, atol=1e-6)


def test_a_step_on_what_glister_chooses_lowers_the_loss_more_than_a_random_one() -> None:
    of = pool()
    label, g = of["proxy.label"], materialised(of, of["proxy.label"])

    def after(rows: np.ndarray) -> float:
        return mean_loss(of, label, 0.1 * g[rows].mean(axis=0).reshape(CLASSES, 7))

    start = mean_loss(of, label, np.zeros((CLASSES, 7)))
    random = [after(np.random.default_rng(s).permutation(N)[:10]) for s in range(20)]
    assert after(selected("glister", of, 10, refresh=1).rows) < min(*random, start)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("craig", "neighbors", 0),
        ("cal", "neighbors", 0),
        ("gradmatch", "ridge", 0.0),
        ("glister", "rate", -1.0),
        ("glister", "refresh", 0),
        ("retrieve", "rate", 0.0),
        ("retrieve", "refresh", 0),
    ],
)
def test_settings_without_a_meaning_are_named(name: str, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{setting}={value}: expected"):
        replace(catalog.build_selector(name, {}), **{setting: value})
