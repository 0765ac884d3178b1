"""Scores of training dynamics against slow, obvious loops over rows."""

import itertools
import math

import numpy as np
import pytest
from signal_columns import dynamics

from coreset_ray import catalog
from coreset_ray.core.pool import Pool

N, T, C = 40, 25, 5


def pool(n: int = N, t: int = T, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    logits = np.cumsum(rng.normal(size=(n, t, C)), axis=1)
    return of(dynamics(logits, rng.integers(0, C, n)))


def of(columns: dict[str, np.ndarray]) -> Pool:
    n = len(next(iter(columns.values())))
    uid = np.stack([np.zeros(n), np.arange(n)], axis=1).astype(np.uint64)
    return Pool(uid, columns)


def score(name: str, of: Pool, **params: float) -> np.ndarray:
    return catalog.build(name, params).score(of, 0)  # type: ignore[attr-defined]


def rows(name: str, of: Pool) -> list[list[float]]:
    return of[f"dynamics.{name}"].tolist()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def forgotten(correct: list[bool]) -> int:
    if not any(correct):
        return len(correct) + 1
    return sum(a and not b for a, b in itertools.pairwise(correct))


def deviation(values: list[float]) -> float:
    return math.sqrt(mean([(v - mean(values)) ** 2 for v in values]))


def windows(values: list[float], width: int) -> list[list[float]]:
    return [values[i : i + width] for i in range(len(values) - width + 1)]


def tdds(change: list[float], width: int, decay: float) -> float:
    norms = [deviation(w[1:]) * math.sqrt(width - 1) for w in windows(change, width)]
    after = range(len(norms) - 1, -1, -1)
    return sum(decay * (1 - decay) ** a * r for a, r in zip(after, norms, strict=True))


ORACLES = {
    "aum": lambda p: [-mean(r) for r in rows("margin", p)],
    "elfs": lambda p: [-mean(r) for r in rows("margin", p)],
    "forgetting": lambda p: [forgotten(r) for r in rows("correct", p)],
    "el2n": lambda p: [mean(r[:10]) for r in rows("error_norm", p)],
    "dyn_unc": lambda p: [
        mean([deviation(w) for w in windows(r, 10)]) for r in rows("target_probability", p)
    ],
    "tdds": lambda p: [tdds(r, 10, 0.9) for r in rows("change", p)],
    "entropy": lambda p: [r[-1] for r in rows("entropy", p)],
    "least_confidence": lambda p: [1 - r[-1] for r in rows("confidence", p)],
    "margin": lambda p: [
        1 - (a[-1] - b[-1])
        for a, b in zip(rows("confidence", p), rows("runner_up", p), strict=True)
    ],
}


@pytest.mark.parametrize("name", ORACLES)
def test_scores_equal_a_loop_over_rows(name: str) -> None:
    found, expected = score(name, pool()), ORACLES[name](pool())
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert len(np.unique(found)) > 3


@pytest.mark.parametrize("name", ORACLES)
def test_layout_in_memory_does_not_matter(name: str) -> None:
    columns = pool().columns
    turned = of({k: np.asfortranarray(v) for k, v in columns.items()})
    np.testing.assert_array_equal(score(name, turned), score(name, of(dict(columns))))


def test_settings_change_what_is_counted() -> None:
    given = pool()
    for name, params, oracle in [
        ("el2n", {"epochs": 3}, lambda p: [mean(r[:3]) for r in rows("error_norm", p)]),
        (
            "tdds",
            {"window": 4, "decay": 0.3},
            lambda p: [tdds(r, 4, 0.3) for r in rows("change", p)],
        ),
        ("tdds", {"window": T}, lambda p: [tdds(r, T, 0.9) for r in rows("change", p)]),
        ("dyn_unc", {"window": T}, lambda p: [deviation(r) for r in rows("target_probability", p)]),
    ]:
        np.testing.assert_allclose(score(name, given, **params), oracle(given), rtol=1e-9)


def test_ranges() -> None:
    given = pool(500)
    for name, low, high in [
        ("aum", -1, 1),
        ("forgetting", 0, T + 1),
        ("el2n", 0, math.sqrt(2)),
        ("dyn_unc", 0, 0.5),
        ("entropy", 0, math.log(C)),
        ("least_confidence", 0, 1 - 1 / C),
        ("margin", 0, 1),
    ]:
        found = score(name, given)
        assert low - 1e-6 <= found.min() < found.max() <= high + 1e-6, name


def test_what_is_never_learned_is_hardest_and_what_never_changes_moves_nothing() -> None:
    logits = np.random.default_rng(0).normal(size=(6, T, C))
    logits[1] = [9, 0, 0, 0, 0]  # wrong throughout
    logits[2] = [0, 9, 0, 0, 0]  # right throughout
    logits[3, ::2], logits[3, 1::2] = [9, 0, 0, 0, 0], [0, 9, 0, 0, 0]  # right every other time
    given = of(dynamics(logits, np.ones(6, int)))
    for name in ("aum", "forgetting", "el2n"):
        found = score(name, given)
        assert found.argmax() == 1 and found.argmin() == 2, name
    assert score("forgetting", given)[1:4].tolist() == [T + 1, 0, T // 2]
    for name in ("dyn_unc", "tdds"):
        assert score(name, given)[1] == score(name, given)[2] == 0, name
    assert score("dyn_unc", given).argmax() == 3


@pytest.mark.parametrize(
    ("name", "setting"), [("el2n", "epochs"), ("dyn_unc", "window"), ("tdds", "window")]
)
def test_records_of_too_few_epochs_are_refused(name: str, setting: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting}=10: the dynamics hold 9 epochs; set"):
        score(name, pool(t=9))
    assert np.isfinite(score(name, pool(t=10))).all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("el2n", {"epochs": 0}),
        ("dyn_unc", {"window": 1}),
        ("tdds", {"window": 2}),
        ("tdds", {"decay": 0.0}),
        ("tdds", {"decay": 1.5}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        catalog.build(name, wrong)


def test_a_column_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dynamics.margin has shape \(4,\): expected \(n, t\)"):
        score("aum", of({"dynamics.margin": np.zeros(4)}))
