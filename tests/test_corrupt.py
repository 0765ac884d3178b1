"""Wrong labels on purpose: how many, which, and the same to every evaluator and pipeline."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import digits_pool, write_config

from coreset_ray.config import load
from coreset_ray.core.corrupt import Corruption
from coreset_ray.core.random import uid_uniform
from coreset_ray.distributed.evaluations import training_rows
from coreset_ray.io.tables import uid_words
from pipelines import compare, compare_evaluate, evaluate, export, select_coreset
from pipelines.report import corrupt_line, markdown, results_table


def pool(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    uid = draw.integers(0, 2**64, (n, 2), np.uint64)
    return uid, draw.integers(0, classes, n).astype(np.int32)


def by_hand(wrong: Corruption, uid: np.ndarray, label: np.ndarray) -> list[int]:
    """One row at a time, from a list of the other classes."""
    found = []
    for i in range(len(label)):
        own, row = int(label[i]), uid[i : i + 1]
        others = [*range(own + 1, wrong.classes), *range(own)]
        turn = int(uid_uniform(wrong.seed, row, 0xC0449)[0] * len(others))
        hit = uid_uniform(wrong.seed, row, 0xC0448)[0] < wrong.share
        found.append(others[turn] if hit else own)
    return found


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(2, 12), st.integers(0, 2**64 - 1))
def test_is_the_slow_form(share: float, classes: int, seed: int) -> None:
    wrong, (uid, label) = Corruption(share, classes, seed), pool(40, classes)
    before = label.copy()
    found = wrong.apply(uid, label)
    assert found.tolist() == by_hand(wrong, uid, label) and found.dtype == label.dtype
    assert np.array_equal(label, before)
    some = np.array([31, 2, 17])
    assert np.array_equal(wrong.apply(uid[some], label[some]), found[some]), "a row's own matter"


def test_the_share_is_wrong_and_no_class_is_preferred() -> None:
    uid, _ = pool(40_000, 5)
    label = np.full(40_000, 2, np.int32)
    found = Corruption(0.1, 5, 3).apply(uid, label)
    wrong = found != label
    assert abs(wrong.mean() - 0.1) < 4 * (0.09 / 40_000) ** 0.5
    each = np.bincount(found[wrong], minlength=5)
    expected = np.array([1, 1, 0, 1, 1]) * wrong.sum() / 4
    assert each[2] == 0 and (np.abs(each - expected) < 4 * expected.max() ** 0.5).all()
    more = Corruption(0.3, 5, 3).apply(uid, label)
    assert np.array_equal(more[wrong], found[wrong]), "what is wrong stays wrong, and as it was"
    other = Corruption(0.1, 5, 4).apply(uid, label) != label
    assert abs((wrong & other).mean() - 0.01) < 0.002, "seeds are independent"
    assert (Corruption(1.0, 5, 3).apply(uid, label) != label).all()
    assert Corruption(0.0, 5, 3).apply(uid, label) is label


def test_one_class_has_no_other() -> None:
    Corruption(0.0, 1, 0)
    with pytest.raises(ValueError, match=r"evaluate\.corrupt=0\.1 with 1 class"):
        Corruption(0.1, 1, 0)


def test_rows_of_two_coresets_agree_on_what_they_share() -> None:
    names = [f"{i:032x}" for i in range(60)]
    images = pa.table({"uid": names, "label": pa.array(np.arange(60) % 4, pa.int32())})
    wrong = Corruption(0.5, 4, 9)
    both = []
    for chosen in (names[:40], names[:15:-1]):
        coreset = pa.table({"uid": chosen, "weight": np.arange(len(chosen), dtype=float)})
        rows = training_rows(coreset, images, "top", wrong)
        plain = training_rows(coreset, images, "top")
        assert rows.drop_columns("label").equals(plain.drop_columns("label"))
        assert rows.schema == plain.schema
        expected = wrong.apply(uid_words(plain["uid"]), plain["label"].to_numpy())
        assert np.array_equal(rows["label"].to_numpy(), expected)
        none = replace(wrong, share=0.0)
        assert training_rows(coreset, images, "top", none).equals(plain)
        both.append(dict(zip(rows["uid"].to_pylist(), rows["label"].to_pylist(), strict=True)))
    shared = both[0].keys() & both[1].keys()
    assert len(shared) == 24 and all(both[0][uid] == both[1][uid] for uid in shared)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, ray_local):
    """A configuration of a comparison with half of the labels wrong, its record, its rows."""
    folder = tmp_path_factory.mktemp("corrupt")
    train, test = digits_pool(folder, shards=2, each=60)
    path = write_config(
        *(folder, train),
        evaluate={"test": {"shards": str(test)}, "knn": {"k": 3}, "weighted": False},
        compare={"methods": ["k_center"], "budgets": [30], "seeds": [0, 1], "measures": False},
        signals={"knn": {"k": 5}},
        score={},
    )
    config = load(path, ["evaluate.corrupt=0.5"])
    record = compare.run(config)
    rows = pq.read_table(f"{compare.stage_of(config).folder.path}/results.parquet")
    return path, record, rows


def accuracies(rows: list[dict], label: str) -> dict[tuple[str, int], float]:
    return {(r["evaluator"], r["seed"]): r["accuracy"] for r in rows if r[label] == "random"}


@pytest.mark.slow
def test_a_comparison_learns_wrong_labels_and_says_so(compared) -> None:
    path, record, table = compared
    rows, clean = table.to_pylist(), load(path)
    assert {r["corrupt"] for r in rows} == {0.5} and "50% of those learned" in record["report"]
    told = compare.run(clean)
    assert "orrupt" not in told["report"]
    better = pq.read_table(f"{compare.stage_of(clean).folder.path}/results.parquet").to_pylist()
    assert {r["corrupt"] for r in better} == {0.0}
    wrong, right = (np.mean([r["accuracy"] for r in each]) for each in (rows, better))
    assert wrong < right - 0.1


@pytest.mark.slow
def test_evaluate_gives_what_the_comparison_gives(compared) -> None:
    path, _, table = compared
    one = load(path, ["evaluate.corrupt=0.5"]).candidates()["random"].replace("select", budget=30)
    one = one.replace("evaluate", reselect=True, seeds=(0, 1))
    select_coreset.make(one)
    export.run(one)
    record = evaluate.run(one)
    assert accuracies(record["results"], "method") == accuracies(table.to_pylist(), "label")
    assert len(accuracies(record["results"], "method")) == 4
    assert {r["corrupt"] for r in record["results"]} == {0.5}
    assert "50% of those learned" in record["report"]


@pytest.mark.slow
def test_places_of_clean_outcomes_do_not_move(compared) -> None:
    told = load(compared[0]).evaluate
    assert told is not None and compare_evaluate.labels_told(told) == ["cls"]
    wrong = told.model_copy(update={"corrupt": 0.1})
    assert compare_evaluate.labels_told(wrong) == ["cls", 0.1]


def test_a_report_says_it_only_where_it_is_so() -> None:
    row = {"evaluator": "probe", "baseline": "random", "method": "random", "seed": 0}
    row |= {"images": 20, "unlabeled": 0, "accuracy": 0.5}
    for told in ({}, {"corrupt": 0.0}):
        table = results_table([row | told])
        assert corrupt_line(table) == "" and "orrupt" not in markdown(table)
    table = results_table([row | {"corrupt": 0.1}])
    assert corrupt_line(table).startswith("Labels corrupted (evaluate.corrupt): 10% of those")
    assert markdown(table).endswith(corrupt_line(table) + "\n")
