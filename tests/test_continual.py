"""Classes in tasks: how they are split, what the memory holds, how forgetting is measured, what the
report says, and a small run."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import digits_pool, embed_pixels, write_config

from coreset_ray.config import load
from coreset_ray.core.continual import memories, outcome, quotas, split_classes
from coreset_ray.distributed.continual import learn_each
from coreset_ray.models.continual import EmbeddingLearner, learn_tasks
from coreset_ray.models.mlp import MlpRecipe
from coreset_ray.telemetry.run import recording
from coreset_ray.telemetry.summary import in_words, summary
from pipelines import continual, continual_learn, evaluate
from pipelines.continual_report import RESULTS, markdown
from pipelines.inputs import NotReady, pool_table

quick = settings(max_examples=60, deadline=None, database=None)


# --- tasks -----------------------------------------------------------------------------------


@quick
@given(st.integers(1, 40), st.integers(1, 40))
def test_classes_are_split_in_order_as_evenly_as_may_be(classes, tasks):
    if tasks > classes:
        with pytest.raises(ValueError, match=rf"tasks={tasks}.* {classes} classes"):
            split_classes(classes, tasks)
        return
    found = split_classes(classes, tasks)
    assert len(found) == tasks
    assert np.concatenate(found).tolist() == list(range(classes))
    sizes = [len(own) for own in found]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


# --- the memory ------------------------------------------------------------------------------

_SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=6)


@quick
@given(st.integers(0, 80), _SIZES)
def test_quotas_fill_the_memory_as_evenly_as_tasks_allow(memory, sizes):
    share = quotas(memory, sizes)
    assert share.sum() == min(memory, sum(sizes))
    assert (share >= 0).all() and (share <= sizes).all()
    for one, size in zip(share, sizes, strict=True):
        assert one == size or one >= share.max() - 1, "only who has no more gives less"


@quick
@given(st.integers(0, 80), _SIZES, st.randoms(use_true_random=False))
def test_the_memory_holds_its_budget_of_the_tasks_seen(memory, sizes, random):
    first, ranked = 0, []
    for size in sizes:
        rows = list(range(first, first + size))
        random.shuffle(rows)
        ranked.append(np.array(rows, np.int64))
        first += size
    ends = np.cumsum(sizes)
    found = memories(ranked, memory, sizes)
    assert len(found) == len(sizes)
    for task, held in enumerate(found):
        assert len(held) == len(set(held.tolist())) == min(memory, ends[task]), "exactly its budget"
        assert (held < ends[task]).all(), "nothing of a task to come"
        for j, own in enumerate(ranked[: task + 1]):
            kept = [row for row in own.tolist() if row in set(held.tolist())]
            assert kept == own[: len(kept)].tolist(), "the best of each"
            if task > j:
                before = set(found[task - 1].tolist())
                assert set(kept) <= before, "what has left does not come back"


def test_the_memory_needs_no_more_than_was_chosen():
    """Of each task as many as its quota when it is the last one seen."""
    sizes, memory = [10, 10, 10], 9
    ranked = [np.arange(9), 10 + np.arange(5), 20 + np.arange(3)]
    found = [held.tolist() for held in memories(ranked, memory, sizes)]
    assert found[0] == list(range(9))
    assert len(found[1]) == 9 and len(found[2]) == 9
    assert found[2] == [0, 1, 2, 10, 11, 12, 20, 21, 22]


# --- measures --------------------------------------------------------------------------------


@quick
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_measures_are_those_of_a_slow_form(tasks, seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 30, tasks)
    hits = np.tril(rng.integers(0, counts + 1, (tasks, tasks)))
    seen = []
    for i in range(tasks):
        right = total = 0
        for j in range(i + 1):
            right, total = right + int(hits[i, j]), total + int(counts[j])
        seen.append(right / total)
    fallen = []
    for j in range(tasks - 1):
        best = max(hits[i, j] / counts[j] for i in range(j, tasks - 1))
        fallen.append(best - hits[tasks - 1, j] / counts[j])
    told = outcome(hits, counts)
    np.testing.assert_allclose(told.seen, seen)
    np.testing.assert_allclose(told.average, sum(seen) / tasks)
    assert told.last == told.seen[-1]
    np.testing.assert_allclose(told.forgetting, sum(fallen) / len(fallen) if fallen else 0.0)


def test_forgetting_is_all_where_nothing_is_known_anymore_and_none_where_all_is():
    counts = np.array([4, 4])
    assert outcome(np.array([[4, 0], [0, 4]]), counts).forgetting == 1.0
    assert outcome(np.array([[4, 0], [4, 4]]), counts).forgetting == 0.0
    assert outcome(np.array([[2, 0], [4, 4]]), counts).forgetting == -0.5, "it may have learned"


# --- learning --------------------------------------------------------------------------------


class Told:
    """Knows the label of a row that it has learned last; notes what it was given."""

    def __init__(self, label):
        self.label, self.given, self.asked = label, [], []

    def learn(self, rows):
        self.given.append(rows.tolist())

    def predict(self, seen, n):
        self.asked.append(seen.tolist())
        known = {int(self.label[row]) for row in self.given[-1]}
        return np.array([c if c in known else -1 for c in self.label[:n]])


def test_a_task_is_learned_with_the_memory_of_those_before():
    label = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    classes = [np.array([0, 1]), np.array([2, 3])]
    learner = Told(label)
    new = [np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7])]
    replayed = [np.array([0, 4]), np.array([0, 6])]
    hits = learn_tasks(learner, new, replayed, classes, label)
    assert learner.given == [[0, 1, 4, 5], [0, 2, 3, 4, 6, 7]]
    assert learner.asked == [[0, 1], [0, 1, 2, 3]]
    assert hits.tolist() == [[4, 0], [2, 4]], "class 1 is not in the memory"


def blobs(seed, each=30):
    rng = np.random.default_rng(seed)
    centres = 6 * np.eye(4, 5)
    label = np.repeat(np.arange(4), each)
    return (centres[label] + rng.normal(size=(len(label), 5))).astype(np.float32), label


def test_a_memory_keeps_what_is_forgotten_without_and_a_seed_gives_the_same():
    pool, label = blobs(0)
    test, truth = blobs(1)
    classes = split_classes(4, 2)
    new = [np.flatnonzero(np.isin(label, own)) for own in classes]
    recipe = MlpRecipe(epochs=16, batch_size=20)

    def learned(memory, seed=0):
        held = memories(new_order, memory, [60, 60])
        learner = EmbeddingLearner(recipe, label, 4, seed, "cpu", pool=pool, test=test)
        return learn_tasks(learner, new, held, classes, truth)

    new_order = [np.random.default_rng(2).permutation(rows) for rows in new]
    counts = np.array([60, 60])
    without, with_it = outcome(learned(0), counts), outcome(learned(40), counts)
    assert without.forgetting > 0.05 > with_it.forgetting and without.last < with_it.last
    assert with_it.last > 0.8
    np.testing.assert_array_equal(learned(40), learned(40))


# --- configuration and report ----------------------------------------------------------------


SECTIONS = {
    "compare": {"methods": ["random"], "budgets": [20], "seeds": [0, 1]},
    "continual": {"tasks": 2},
}


def configuration(folder, **changes):
    data = {
        "workspace": str(folder / "work"),
        "pool": {"shards": ["a.tar"]},
        "select": {"budget": 0.1},
        "evaluate": {"test": {"shards": ["b.tar"]}},
        **SECTIONS,
        **changes,
    }
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return load(path)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"tasks": 1}, "tasks"),
        ({"learns": "some"}, "learns"),
        ({"mlp": None}, "none of mlp, network"),
        ({"network": {"weighted": True}}, "weights"),
        ({"task": 2}, "task"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, section, said):
    assert configuration(tmp_path).continual.tasks == 2
    with pytest.raises(ValueError, match=said):
        configuration(tmp_path, continual=section)


@pytest.mark.parametrize("name", ["continual", "compare", "evaluate"])
def test_a_section_that_is_missing_is_named(tmp_path, name):
    config = configuration(tmp_path).model_copy(update={name: None})
    with pytest.raises(NotReady, match=f"no `{name}` section"):
        continual.run(config)


def test_a_task_has_its_own_number_of_classes_and_no_labels(tmp_path):
    config = configuration(tmp_path, signals={"classes": 10})
    own = continual._own(config, str(tmp_path / "task"), 2)
    assert own.signals.classes == 2 and own.workspace == str(tmp_path / "task")
    assert own.evaluate is None and own.continual is None and own.pretrain is None
    assert continual._own(config, "w", 1).signals.classes == 2, "fewer are no classes"
    assert dataclasses.asdict(own.embed.encoders[0])["name"] == config.embed.encoders[0].name


def rows_of(label, averages, failed=None):
    return [
        {
            **{"evaluator": "mlp", "label": label, "method": label, "budget": 20.0, "images": 20},
            **{"seed": seed, "selection": f"{label}-{seed}", "failed": failed},
            **{"average": value, "last": value, "forgetting": 0.25, "seen": [1.0, value]},
        }
        for seed, value in enumerate(averages)
    ]


def test_the_report_has_each_method_beside_random():
    rows = rows_of("random", [0.5, 0.6]) + rows_of("better", [0.9, 0.8])
    rows += [
        {**row, "average": None, "last": None, "forgetting": None, "seen": None}
        for row in rows_of("broken", [0, 0], "no | room\nhere")
    ]
    table = pa.Table.from_pylist(rows, schema=RESULTS)
    text = markdown("mine", table, [["a", "b"], ["c"]], 1000, True)
    assert "2 tasks of 1,000 images" in text and "a, b; c" in text and "its coreset alone" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    names = [line.split(" | ")[0].strip("| ") for line in lines[1:]]
    assert names == ["better", "**random**", "broken"], "from the highest mean down"
    assert "85.00" in lines[1] and "25.00" in lines[1] and "55.00" in lines[2]
    assert "failed: no / room here" in lines[3]
    assert "all its images" in markdown("mine", table, [["a"]], 10, False)


@pytest.fixture(scope="module")
def small(ray_local, tmp_path_factory):
    """A configuration with two seeds, and the record of its run."""
    folder = tmp_path_factory.mktemp("continual")
    train, test = digits_pool(folder, shards=1, each=80)
    path = write_config(
        *(folder, train, test),
        score={},
        compare={"methods": ["random", "k_center"], "budgets": [20], "seeds": [0, 1]},
        continual={"tasks": 5, "mlp": {"epochs": 2, "batch_size": 32}},
    )
    config = load(path)
    for table in (pool_table(config), evaluate.test_table(config)):
        embed_pixels(table)
    return config, continual.run(config), folder / "work"


def test_budgets_that_are_the_same_are_refused(small):
    config, _, _ = small
    both = config.compare.model_copy(update={"budgets": (20, 20 / 80)})
    with pytest.raises(ValueError, match=r"budgets: 0.25 of 80 images keeps 20, as another"):
        continual.run(config.model_copy(update={"compare": both}))


def test_a_small_run_learns_digits_in_tasks(small):
    config, record, work = small
    assert [name for task in record["tasks"] for name in task] == [str(i) for i in range(10)]
    (place,) = (work / "continual").glob("*/results.parquet")
    rows = pq.read_table(place).to_pylist()
    told = {(row["label"], row["seed"]) for row in rows}
    assert told == {(m, s) for m in ("random", "k_center") for s in (0, 1)}
    for row in rows:
        assert row["failed"] is None and row["images"] == 20 and len(row["seen"]) == 5
        assert row["average"] == pytest.approx(np.mean(row["seen"]))
        assert row["last"] == row["seen"][4]
        assert len(row["selection"].split("+")) == 5
    assert record["report"] == (place.parent / "report.md").read_text()
    assert continual.run(config) == record, "nothing is done again"


def test_a_stopped_run_goes_on_with_the_courses_that_are_left(small, monkeypatch):
    config, whole, work = small
    (record,) = (work / "continual").glob("*/done.json")
    record.unlink()
    courses = {p: p.read_bytes() for p in (work / "cells").rglob("*.json")}
    assert len(courses) == 4, "a record of each"
    min(courses).unlink()
    asked = []

    def noted(courses, *args, **options):
        asked.append(len(courses))
        return learn_each(courses, *args, **options)

    monkeypatch.setattr(continual_learn, "learn_each", noted)
    with recording("continual") as run:
        assert continual.run(config) == whole
    assert asked == [1] and "  learn " in in_words(summary(run))
    assert {p: p.read_bytes() for p in courses} == courses
    fewer = config.model_copy(update={"compare": config.compare.model_copy(update={"seeds": (0,)})})
    with recording("continual") as run:
        continual.run(fewer)
    assert asked == [1] and in_words(summary(run)).endswith("Every stage was finished before.")
