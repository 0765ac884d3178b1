"""Beside random: p values, Holm's count of comparisons, and what to take, against slow forms."""

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from coreset_ray.core.compare import holm, paired_difference
from coreset_ray.core.standings import Runs, advise, standings
from pipelines.compare_advice import recommendation
from pipelines.compare_report import markdown
from pipelines.compare_results import MEASURES, RESULTS, runs_of

SEEDS = range(5)
NOISE = [0.004, -0.006, 0.001, 0.003, -0.002]


OTHER = [-0.001, 0.002, 0.004, -0.003, -0.002]
THIRD = [0.002, 0.003, -0.004, -0.001, 0.0]


def runs(label, images, mean, noise=NOISE, **more):
    return Runs(label, images, {s: mean + e for s, e in zip(SEEDS, noise, strict=True)}, **more)


def test_holm_against_an_example_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, and never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_holm_is_the_closed_test_of_bonferroni():
    """A hypothesis falls where every set of hypotheses with it has p · size ≤ level."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = list(rng.random(5) ** 3)
        sets = [c for r in range(1, 6) for c in combinations(range(5), r)]
        closed = [
            max(min(1.0, len(c) * min(p[j] for j in c)) for c in sets if i in c) for i in range(5)
        ]
        assert holm(p) == pytest.approx(closed)


def test_a_paired_difference_against_scipy():
    rng = np.random.default_rng(1)
    ours, other = rng.random(6), rng.random(6)
    found, told = paired_difference(ours, other), stats.ttest_rel(ours, other)
    interval = told.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(told.pvalue)


def test_equal_differences_are_no_proof():
    """Two seeds with the same gain by chance: no spread, and rounding is none either."""
    found = paired_difference([0.85, 0.75], [0.80, 0.70])
    assert found.p is None and found.low == pytest.approx(found.high)
    assert paired_difference([0.5, 0.6], [0.5, 0.6]).p == 1.0
    assert paired_difference([0.5], [0.4]).p is None


def test_differences_pair_the_seeds_that_both_ran():
    ours = Runs("a", 10, {0: 0.5, 2: 0.7, 9: 0.0})
    random = Runs("random", 10, {0: 0.4, 1: 0.9, 2: 0.5})
    (standing,) = [s for s in standings([ours, random]) if s.difference]
    assert standing.difference.mean == pytest.approx((0.1 + 0.2) / 2)


def test_many_comparisons_cost():
    """One small gain stands alone and falls among twenty."""
    shifted = [0.005 + e for e in (0.001, -0.004, 0.003, -0.002, 0.006)]
    gain = Runs("gain", 10, {s: 0.5 + NOISE[s] + shifted[s] for s in SEEDS})
    random = runs("random", 10, 0.5)
    (alone,) = advise(standings([gain, random]))
    assert alone.best and alone.best.runs.label == "gain"
    rng = np.random.default_rng(2)
    others = [runs(f"m{i}", 10, 0.5, rng.normal(0, 0.01, 5)) for i in range(20)]
    (among,) = advise(standings([gain, random, *others]))
    assert among.best is None and among.tried == 21


def test_one_coreset_has_no_spread_of_its_own():
    fixed = Runs("d2", 10, dict.fromkeys(SEEDS, 0.55), same=True)
    trained = runs("d2", 10, 0.55, same=True, trained=True)
    assert fixed.deviation is None and trained.deviation is not None
    (standing,) = [s for s in standings([fixed, runs("random", 10, 0.5)]) if s.difference]
    told = stats.ttest_1samp(0.55 - (0.5 + np.array(NOISE)), 0)
    assert standing.difference.p == pytest.approx(told.pvalue)


def results(*found, evaluator="probe", column="accuracy", failed=()):
    """A table of these runs, and of methods that failed at 10 images."""
    rows = [
        {
            **{"evaluator": evaluator, "label": r.label, "method": r.label, "images": r.images},
            **{"seed": seed, column: value, "selection": r.label if r.same else f"{r.label}{seed}"},
        }
        for r in found
        for seed, value in r.values.items()
    ]
    rows += [
        {"evaluator": evaluator, "label": label, "images": 10, "seed": 0, "failed": "too | few"}
        for label in failed
    ]
    return pa.Table.from_pylist(rows, schema=RESULTS)


def test_random_is_advised_where_nothing_is_told_apart():
    rng = np.random.default_rng(3)
    table = results(
        *(runs(name, 10, 0.5, rng.normal(0, 0.01, 5)) for name in ("random", "a", "b")),
        *(runs(name, 20, 0.6, rng.normal(0, 0.01, 5)) for name in ("random", "a", "b")),
    )
    text = recommendation(table, ["probe"], 100)
    assert text.count("take **random**: none of 2 methods is told apart") == 2
    assert "over 4 comparisons" in text and "LOSES" not in text


def test_the_winner_is_named_with_those_like_it_and_losers():
    table = results(
        *(runs("random", 10, 0.5), runs("best", 10, 0.6003, OTHER), runs("like", 10, 0.6, THIRD)),
        *(runs("good", 10, 0.55, THIRD), runs("bad", 10, 0.4, OTHER)),
    )
    text = recommendation(table, ["probe"], 100)
    assert "10 images (10%): take **best**: 60.0" in text
    assert "not told apart from it: like." in text
    assert "**LOSES** to random: bad (at 10 images)." in text


def test_the_table_is_sorted_marks_losers_and_keeps_failures():
    table = results(
        *(runs("bad", 10, 0.4, OTHER), runs("random", 10, 0.5), runs("good", 10, 0.6, OTHER)),
        Runs("d2", 10, dict.fromkeys(SEEDS, 0.45), same=True),
        failed=("broken",),
    )
    lines = [line for line in markdown(table, ["probe"], 100, True).splitlines() if "|" in line]
    names = [line.split("|")[1].strip() for line in lines]
    assert names[2:] == ["good", "**random**", "d2", "bad", "broken"]
    assert "better than random" in lines[2] and "baseline" in lines[3]
    assert "| 45.00 | 5, one coreset |" in lines[4]
    assert "**LOSES** to random" in lines[5] and "failed: too / few" in lines[6]


def test_one_seed_tells_nothing_apart():
    table = results(Runs("random", 10, {0: 0.5}), Runs("a", 10, {0: 0.9}))
    text = recommendation(table, ["probe"], 100)
    assert "one seed: nothing can be told apart" in text and "take **random**" in text
    assert "one seed: no interval" in markdown(table, ["probe"], 100, False)


def test_without_labels_coverage_advises_with_a_caution():
    found = runs("random", 10, 0.5), runs("wide", 10, 0.7, OTHER)
    table = results(*found, evaluator=MEASURES, column="coverage")
    share = pa.array([0.25 if label == "random" else 0.1 for label in table["label"].to_pylist()])
    place = table.column_names.index("near_duplicates")
    table = table.set_column(place, "near_duplicates", share)
    text = recommendation(table, [MEASURES], 100)
    assert "take **wide**" in text and "prove no accuracy" in text
    assert "make up 25.0% of what random keeps, and least, 10.0%, of what wide keeps" in text
    assert [r.label for r in runs_of(table, MEASURES, "coverage")] == ["random", "wide"]
