"""What every selector promises, found by looking, and each against a slow, obvious form."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from signal_columns import pool_with_signals

import coreset_ray
from coreset_ray import catalog
from coreset_ray.core.alone import select_alone
from coreset_ray.core.pool import Pool
from coreset_ray.core.rule import Rule, choose_rows, shares
from coreset_ray.selectors.ccs import CCS
from coreset_ray.selectors.d2 import D2
from coreset_ray.selectors.double_end import DoubleEnd
from coreset_ray.selectors.moderate import Moderate

N = 90
CLASSES = catalog.selector_classes()
RULES = [n for n, c in CLASSES.items() if issubclass(c, Rule)]
BETAS = {n: [0.0, 0.29] if CLASSES[n].searched == "beta" else [None] for n in RULES}  # type: ignore[union-attr]
every_rule = pytest.mark.parametrize(("name", "beta"), [(n, b) for n in RULES for b in BETAS[n]])


def pool(n: int = N, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    uid = rng.integers(0, 2**64, (n, 2), np.uint64)
    return pool_with_signals(rng.normal(size=(n, 9)).astype(np.float32), uid, seed)


def rule_of(name: str, beta: float | None) -> Any:
    return catalog.build_selector(name, {} if beta is None else {"beta": beta})


SCORES = {
    "spread": np.random.default_rng(1).normal(size=N),
    "tied": np.random.default_rng(2).integers(0, 4, N).astype(float),
    "constant": np.full(N, 0.25),
    "one far off": np.where(np.arange(N) == 3, 1e30, np.arange(N)),
}
GROUPS = {
    "whole": None,
    "even": np.arange(N) % 3,
    "uneven": np.where(np.arange(N) < 5, 0, np.where(np.arange(N) < 20, 3, 1)),  # 2 is empty
}


def describes_itself(name: str) -> None:
    kind = CLASSES[name]
    assert kind.__doc__ and "Equation" in kind.__doc__ and "Cost" in kind.__doc__
    assert kind.family.strip() and kind.source.strip() and kind.cost.strip()
    assert catalog.shape_of(kind)
    built = catalog.build_selector(name, {})
    for field in [*(f.name for f in dataclasses.fields(built)), "needs"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(built, field, 1)


@pytest.mark.parametrize("name", CLASSES)
def test_describes_itself(name: str) -> None:
    describes_itself(name)


@every_rule
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("groups", GROUPS)
def test_rules_keep_k_distinct_rows_whatever_their_order(
    name: str, beta: float | None, kind: str, groups: str
) -> None:
    rule, score, group, uid = rule_of(name, beta), SCORES[kind], GROUPS[groups], pool().uid
    shuffle = np.random.default_rng(5).permutation(N)
    moved = None if group is None else group[shuffle]
    for k in (0, 1, 17, 60):
        rows = choose_rows(rule, score, uid, k, 3, group)
        assert len(set(rows.tolist())) == k == len(rows)
        again = choose_rows(rule, score[shuffle], uid[shuffle], k, 3, moved)
        np.testing.assert_array_equal(shuffle[again], rows)
        other = choose_rows(rule, score, uid, k, 4, group)
        if not rule.seeded:
            np.testing.assert_array_equal(other, rows)
        elif k == 17:
            assert other.tolist() != rows.tolist()
        if group is not None:
            got = np.bincount(group[rows], minlength=4)
            have = np.bincount(group, minlength=4)
            room = np.array([rule.capacity(int(n)) if n else 0 for n in have])
            assert got.tolist() == shares(k, room).tolist()


@every_rule
def test_rules_refuse_what_they_cannot_keep(name: str, beta: float | None) -> None:
    rule, score, uid = rule_of(name, beta), SCORES["spread"], pool().uid
    most = rule.capacity(N)
    assert len(choose_rows(rule, score, uid, most, 0, None)) == most
    with pytest.raises(ValueError, match=f"at most {most} of {N} images, and the budget is"):
        choose_rows(rule, score, uid, most + 1, 0, None)


@every_rule
@pytest.mark.parametrize("n", [1, 2, 3])
def test_rules_on_the_smallest_pools(name: str, beta: float | None, n: int) -> None:
    rule = rule_of(name, beta)
    for k in range(rule.capacity(n) + 1):
        assert len(choose_rows(rule, np.arange(n, dtype=float), pool(n).uid, k, 0, None)) == k


def test_shares_are_as_even_as_room_allows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        room = rng.integers(0, 12, rng.integers(1, 9))
        k = int(rng.integers(0, room.sum() + 1))
        share = shares(k, room)
        assert share.sum() == k and (share >= 0).all() and (share <= room).all()
        short = share < room  # whoever has room left has no less than anyone else, but for one
        if short.any():
            assert share.max() - share[short].min() <= 1


def test_double_end_keeps_the_hardest_after_the_cut() -> None:
    score, uid = SCORES["spread"], pool().uid
    for beta, k in ((0.0, 20), (0.29, 20), (0.5, 45)):
        drop = int(np.floor(round(beta * N, 9)))
        hardest = sorted(range(N), key=lambda i: -score[i])
        assert choose_rows(DoubleEnd(beta), score, uid, k, 0, None).tolist() == hardest[drop:][:k]
    assert DoubleEnd(0.29).cuts(100) == (29,)
    assert DoubleEnd().candidates(0.7) == (0.0, 0.1, 0.2, 0.3)
    for beta in (-0.1, 1.0):
        with pytest.raises(ValueError, match="beta="):
            DoubleEnd(beta)


def test_double_end_settles_ties_by_uid() -> None:
    uid = np.stack([np.zeros(6), [5, 3, 4, 0, 1, 2]], 1).astype(np.uint64)
    rows = choose_rows(DoubleEnd(0.5), np.zeros(6), uid, 2, 0, None)
    assert rows.tolist() == [1, 2]  # uids 0, 1, 2 are cut


def test_ccs_follows_its_algorithm() -> None:
    """Zheng et al., Algorithm 1, with loops."""
    score, uid, k = SCORES["spread"], pool().uid, 31
    rule = CCS(strata=7, beta=0.1)
    left = sorted(range(N), key=lambda i: -score[i])[9:]
    low, high = min(score[left]), max(score[left])
    edges = [low + (high - low) * i / 7 for i in range(8)]
    bins: list[list[int]] = [[] for _ in range(7)]
    for i in left:
        bins[min(6, sum(score[i] >= e for e in edges[1:-1]))].append(i)
    budget, wanted = k, {}
    for turn, b in enumerate(sorted(range(7), key=lambda b: len(bins[b]))):
        wanted[b] = min(len(bins[b]), budget // (7 - turn))
        budget -= wanted[b]
    rows = set(choose_rows(rule, score, uid, k, 0, None).tolist())
    assert rows <= set(left)
    assert {b: len(rows & set(bins[b])) for b in range(7)} == wanted


def test_ccs_draws_uniformly_inside_a_stratum() -> None:
    uid = pool(400).uid
    hits = np.zeros(400)
    for seed in range(300):
        hits[choose_rows(CCS(strata=4), np.arange(400.0), uid, 100, seed, None)] += 1
    expected = 300 * 100 / 400
    assert np.abs(hits.reshape(4, 100).sum(1) / 7500 - 1).max() == 0
    assert ((hits - expected) ** 2 / (expected * 0.75)).mean() == pytest.approx(1, abs=0.25)


def test_moderate_keeps_the_middle() -> None:
    uid = pool().uid
    for n in (90, 89):
        score = SCORES["spread"][:n]
        rows = choose_rows(Moderate(), score, uid[:n], 12, 0, None)
        apart = np.abs(score - np.median(score))
        assert set(rows.tolist()) == set(np.argsort(apart)[:12].tolist())


def test_d2_passes_messages_forward_and_back() -> None:
    of, method = pool(), D2(neighbors=3, forward=0.7, reverse=0.4)
    neighbor, similarity = of["knn.neighbor"][:, :3], of["knn.similarity"][:, :3]
    square = 2 - 2 * similarity.astype(float)
    score = [1 + sum(np.exp(-0.7 * d) for d in row) for row in square]
    chosen = []
    for _ in range(50):
        best = max((i for i in range(N) if i not in chosen), key=lambda i: score[i])
        chosen.append(best)
        for j, d in zip(neighbor[best], square[best], strict=True):
            score[j] -= np.exp(-0.4 * d) * score[best] if j != best else 0
    assert select_alone(method, of, 50, 0).rows.tolist() == chosen


def test_d2_thins_out_duplicates() -> None:
    """Of one image many times over, slightly changed, forward messages alone would keep all."""
    rng = np.random.default_rng(0)
    near = rng.normal(size=9) + 0.01 * rng.normal(size=(30, 9))
    z = np.concatenate([rng.normal(size=(60, 9)), near])
    of = pool_with_signals(z.astype(np.float32), pool().uid)
    kept, alone = (select_alone(D2(reverse=r), of, 30, 0).rows for r in (1.0, 1e9))
    assert (alone >= 60).sum() == 30 and (kept >= 60).sum() < 15


def test_the_notebook_interface_takes_selectors() -> None:
    of, z = pool(), pool()["embedding"]
    given = {name: of[name] for name in of.columns if name != "embedding"}
    group = of["clusters.cluster"]
    kept = coreset_ray.select(
        z, 21, method="prototypicality", selector="moderate", uid=of.uid, signals=given, group=group
    )
    expected = choose_rows(Moderate(), of["clusters.distance"].astype(float), of.uid, 21, 0, group)
    np.testing.assert_array_equal(kept.rows, expected)
    kept = coreset_ray.select(z, 9, method="d2", uid=of.uid, signals=given, neighbors=4)
    np.testing.assert_array_equal(kept.rows, select_alone(D2(neighbors=4), of, 9, 0).rows)
    for wrong, message in (
        ({"selector": "topp"}, "selector 'topp' does not exist: did you mean 'top'"),
        ({"selector": "d2"}, "selects by itself"),
        ({"method": "d2", "selector": "ccs"}, "selects by itself"),
        ({"method": "d2", "settings": {"beta": 0}}, "selects by itself"),
        ({"selector": "ccs", "settings": {"strata": 0}}, "strata=0"),
        ({"selector": "ccs", "settings": {"betta": 0}}, "settings.betta: unknown key; did you"),
        ({"group": np.zeros(3, int)}, r"group has shape \(3,\)"),
        ({"group": np.zeros(N)}, "dtype float64"),
        ({"group": np.full(N, -1)}, "from 0 up"),
        ({"group": np.where(np.arange(N) == 3, 10**10, 0)}, "without large gaps"),
        ({"method": "herding", "partitions": 0}, "partitions=0: expected"),
        ({"method": "medoids", "partitions": 1.5}, "partitions=1.5: expected"),
        ({"method": "prism", "target": [[np.inf] * z.shape[1]]}, "target set holds a NaN or inf"),
        ({"method": "prism", "target": [1.0]}, "target set has shape"),
        ({"method": "random", "signals": {"knn.neighbor": np.full((N, 2), N)}}, "row numbers"),
        ({"method": "random", "signals": {"knn.neighbor": np.zeros((N, 2))}}, "row numbers"),
        ({"method": "deepfool", "signals": {"proxy.perturbation": np.full(N, np.nan)}}, "a NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            coreset_ray.select(z, 5, **{"method": "random", "signals": given, **wrong})
    far = np.where(np.arange(N) == 7, np.inf, 1.0)  # no perturbation turns that image
    kept = coreset_ray.select(z, N, method="deepfool", signals={"proxy.perturbation": far})
    assert kept.rows[-1] == 7
