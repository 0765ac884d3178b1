"""A comparison on a tiny pool: its table against evaluate's own, what a killed one does not repeat,
methods that fail, and pools without labels."""

import json
from pathlib import Path
from statistics import stdev

import pyarrow.parquet as pq
import pytest
from pools import digits_pool, embed_pixels, write_config

from coreset_ray import cli
from coreset_ray.config import load
from coreset_ray.core.standings import Runs
from pipelines import (
    compare,
    compare_evaluate,
    compare_measures,
    compare_plots,
    evaluate,
    export,
    select_coreset,
)
from pipelines.compare_cells import counts
from pipelines.inputs import pool_table

METHODS = [
    {"method": "prototypicality", "balance": "clusters", "label": "typical"},
    {"method": "d2", "params": {"neighbors": 4}},
    {"method": "prototypicality", "selector": "ccs", "settings": {"beta": 0.9}, "label": "broken"},
]
NARROW = "{method: prototypicality, selector: ccs, settings: {beta: 0.95}}"
BROKEN = "keeps at most 12 of 120 images, and the budget is 30"


def test_the_band_is_one_standard_deviation(monkeypatch):
    drawn = []
    monkeypatch.setattr(compare_plots, "_finished", lambda figure, axes, images: drawn.append(axes))
    several = Runs("d2", 10, {0: 0.5, 1: 0.7}), Runs("d2", 40, {0: 0.8, 1: 0.9})
    compare_plots.accuracy_plot([*several, Runs("random", 10, {0: 0.4, 1: 0.4})], "probe")
    (axes,) = drawn
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["d2"].get_xydata().tolist() == [[10, pytest.approx(60)], [40, pytest.approx(85)]]
    (band,) = (c for c in axes.collections if len({x for x, _ in c.get_paths()[0].vertices}) == 2)
    corners = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices}
    ten, forty = 100 * stdev([0.5, 0.7]), 100 * stdev([0.8, 0.9])
    expected = {(10, 60 - ten), (10, 60 + ten), (40, 85 - forty), (40, 85 + forty)}
    assert corners == {(x, round(y, 6)) for x, y in expected}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_local):
    """The configuration's file, and the record of a comparison that was stopped on its way:
    evaluations done before and after."""
    folder = tmp_path_factory.mktemp("compare")
    train, test = digits_pool(folder, shards=2, each=60)
    path = write_config(
        *(folder, train),
        evaluate={"test": {"shards": str(test)}, "knn": {"k": 3}, "weighted": False},
        signals={"classes": 3, "knn": {"k": 5}, "clusters": {"count": 4}},
        compare={"methods": METHODS, "budgets": [0.1, 30], "seeds": [0, 1]},
        score={},
    )
    for table in (pool_table(load(path)), evaluate.test_table(load(path))):
        embed_pixels(table)
    done, real = [], compare_evaluate._outcomes

    def stopping(*arguments):
        for number, (job, outcome) in enumerate(real(*arguments)):
            if not done and number == 5:
                raise KeyboardInterrupt
            yield job, outcome

    def counting(*arguments):
        for job, outcome in real(*arguments):
            done.append(job)
            yield job, outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_evaluate, "_outcomes", stopping)
        with pytest.raises(KeyboardInterrupt):
            compare.run(load(path))
        before = {p.name for p in Path(load(path).workspace, "cells").glob("[!m]*/*.json")}
        patch.setattr(compare_evaluate, "_outcomes", counting)
        record = compare.run(load(path))
    return path, record, len(before), done


def table(path):
    folder = Path(compare.stage_of(load(path)).folder.path)
    return folder, pq.read_table(folder / "results.parquet").to_pylist()


def test_a_stopped_comparison_goes_on_where_it_was(finished):
    """Two of random and two of a clustering at each budget and one of D2 and one of ccs, by each
    of two evaluators; ccs fails at the larger budget."""
    path, _, before, after = finished
    chosen = {r["selection"] for r in table(path)[1] if r["failed"] is None}
    assert before == 5 and len(after) == len(set(after)) == 2 * len(chosen) - 5
    records = Path(load(path).workspace, "cells").glob("[!m]*/*.json")
    assert len(list(records)) == 2 * len(chosen)


def test_the_table_is_what_evaluate_gives(finished):
    """Random and balanced prototypicality, at one budget."""
    path, _, _, _ = finished
    config = load(path)
    ours = {
        (r["evaluator"], r["label"], r["seed"]): (r["accuracy"], r["images"])
        for r in table(path)[1]
        if r["images"] == 12 and r["evaluator"] != "measures"
    }
    one = config.candidates()["typical"].replace("select", budget=12)
    one = one.replace("evaluate", reselect=True, seeds=(0, 1))
    select_coreset.make(one)
    export.run(one)
    names = {"random": "random", one.label: "typical"}
    for row in evaluate.run(one)["results"]:
        place = row["evaluator"], names[row["method"]], row["seed"]
        assert ours[place] == (row["accuracy"], row["images"])


def test_a_method_that_fails_says_so_and_others_go_on(finished):
    path, record, _, _ = finished
    rows = [r for r in table(path)[1] if r["label"] == "broken"]
    assert {r["images"]: r["failed"] is None for r in rows} == {12: True, 30: False}
    assert all(BROKEN in r["failed"] and r["accuracy"] is None for r in rows if r["failed"])
    assert record["failed"] == 2
    lines = [line for line in record["report"].splitlines() if "| broken | failed: " in line]
    assert len(lines) == 3 and all(BROKEN in line for line in lines)  # two evaluators, measures


def test_a_method_without_a_use_for_seeds_is_one_coreset(finished):
    path, record, _, _ = finished
    rows = [r for r in table(path)[1] if (r["label"], r["images"]) == ("d2", 12)]
    assert len({r["selection"] for r in rows}) == 1 and {r["seed"] for r in rows} == {0, 1}
    lines = [line for line in record["report"].splitlines() if line.startswith("| d2 | ")]
    assert all("one coreset" in line and "±" not in line for line in lines if "CI" in line)
    typical = {r["selection"] for r in table(path)[1] if r["label"] == "typical"}
    assert len(typical) == 4, "clusters are made anew for each seed"


def test_random_covers_half_by_definition(finished):
    _, rows = table(finished[0])
    random = [r for r in rows if (r["evaluator"], r["label"]) == ("measures", "random")]
    assert len(random) == 4
    for row in random:
        assert row["coverage"] >= 0.5 and 0 < row["clusters_covered"] <= 1
        assert row["effective_size"] == row["images"] and 0 <= row["agreement"] <= 1


def test_a_hundred_clusters_are_counted_where_none_are_configured(finished):
    path, _, _, _ = finished
    folder, clusters = compare_measures._folder(load(path, ["signals.clusters={}"]))
    assert (clusters / "done.json").read_json()["count"] == 100
    name = next(r["selection"] for r in table(path)[1] if r["failed"] is None)
    (told,) = compare_measures._measured(load(path), [name], clusters)
    kept = told["clusters_covered"]["clusters"]
    assert 0 < kept < 1 and folder.uri != compare_measures._folder(load(path))[0].uri


def test_results_lie_where_the_help_says(finished):
    folder, rows = table(finished[0])
    assert {r["evaluator"] for r in rows} == {"probe", "knn", "measures"}
    for row in rows:
        assert row["failed"] or (row["seconds_select"] > 0 and row["memory_select"] > 0)
    drawings = {p.name for p in folder.glob("*.svg")}
    expected = ["accuracy-probe", "accuracy-knn", "seconds", "memory", "coverage"]
    assert drawings == {f"{name}.svg" for name in expected}
    report = (folder / "report.md").read_text()
    assert report == finished[1]["report"] and report.count("## Recommendation") == 1


def test_running_again_does_nothing(finished, capsys):
    cli.main(["compare", str(finished[0])])
    out = capsys.readouterr().out
    assert out.startswith(finished[1]["report"].strip())
    assert out.strip().endswith("Every stage was finished before.")


def test_without_labels_measures_advise(finished):
    config = load(finished[0], ["evaluate=null", "compare.budgets=[12]"])
    record = compare.run(config)
    assert "prove no accuracy" in record["report"] and "accuracy of the" not in record["report"]
    folder = Path(compare.stage_of(config).folder.path)
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert {r["evaluator"] for r in rows} == {"measures"} and not list(folder.glob("acc*.svg"))


def test_shared_signals_serve_every_seed(finished):
    shared = ["compare.signals=shared", "evaluate=null", "compare.budgets=[12]"]
    config = load(finished[0], [*shared, "compare.methods=[{method: prototypicality}]"])
    report = compare.run(config)["report"]
    assert "Signals are shared" in report and "| 2, one coreset |" in report


@pytest.mark.slow
def test_a_resnet_is_trained_for_each_seed(finished):
    """Twice on one coreset: the spread is that of training."""
    recipe = "{epochs: 1, image_size: 8, padding: 0, flip: false, batch_size: 32}"
    only = [f"evaluate.resnet={recipe}", "evaluate.probe=null", "evaluate.knn=null"]
    one = ["compare.budgets=[30]", "compare.methods=[{method: d2, params: {neighbors: 4}}]"]
    config = load(finished[0], [*only, *one, "compare.measures=false"])
    compare.run(config)
    rows = pq.read_table(f"{compare.stage_of(config).folder.path}/results.parquet").to_pylist()
    assert sorted((r["label"], r["seed"]) for r in rows) == [
        *(("d2", 0), ("d2", 1), ("random", 0), ("random", 1))
    ]
    assert {r["evaluator"] for r in rows} == {"resnet18"}
    assert {r["accuracy"] for r in rows} <= {i / 60 for i in range(61)}
    again = config.replace("compare", budgets=(30,), seeds=(0,))
    before = sorted(Path(config.workspace, "cells").rglob("*"))
    compare.run(again)
    assert sorted(Path(config.workspace, "cells").rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compare=null", "no `compare` section"),
        ("compare.budgets=[200]", r"compare\.budgets: budget=200"),
        ("compare.budgets=[0.1, 12]", "as another does"),
        ("compare.budgets=[0.001]", "keeps none"),
        (f"compare.methods=[{NARROW}]", "every method failed; prototypicality"),
        ("compare.measures=false", None),
    ],
)
def test_what_cannot_be_compared_is_refused(finished, override, message):
    more = ["evaluate=null"] if message is None else []
    config = load(finished[0], [override, *more])
    with pytest.raises(ValueError, match=message or "nothing would be reported"):
        compare.run(config)


def test_random_that_fails_ends_it(finished, monkeypatch):
    def refuse(config):
        raise ValueError("no")

    monkeypatch.setattr(select_coreset, "prepare", refuse)
    with pytest.raises(ValueError, match="random cannot be selected: no"):
        compare.run(load(finished[0], ["compare.seeds=[5]"]))


def test_budgets_are_counts_or_shares(finished):
    config = load(finished[0])
    assert counts(config, 120) == {0.1: 12, 30: 30}
    assert [*config.candidates()] == ["random", "typical", "d2", "broken"]


def with_weights(path):
    """BlindCS with its weights and without: the configuration, the rows, and their accuracies."""
    params = {"draws": 300, "neighbors": 5}
    methods = [{"method": "blindcs", "params": params, "weighted": w} for w in (False, True)]
    words = [f"compare.methods={json.dumps(methods)}", "compare.budgets=[30]", "compare.seeds=[0]"]
    config = load(path, [*words, "compare.measures=false"])
    compare.run(config)
    folder = Path(compare.stage_of(config).folder.path)
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    return config, rows, {(r["evaluator"], r["label"]): r["accuracy"] for r in rows}


@pytest.mark.slow
def test_weights_give_what_evaluate_gives(finished):
    config, _, ours = with_weights(finished[0])
    one = config.candidates()["blindcs + weights"].replace("select", budget=30)
    one = one.replace("evaluate", seeds=(0,))
    select_coreset.make(one)
    export.run(one)
    told = {(r["evaluator"], r["method"]): r["accuracy"] for r in evaluate.run(one)["results"]}
    for name in ("blindcs", "blindcs + weights"):
        assert ours["probe", name] == told["probe", name]
    assert ours["knn", "blindcs + weights"] == told["knn", "blindcs"]


def test_weights_are_learned_with_where_asked_and_by_default_where_they_count_images(finished):
    path, _, _, _ = finished
    rows, ours = with_weights(path)[1:]
    assert {r["label"]: r["weighted"] for r in rows} == {
        **{"random": False, "blindcs": False, "blindcs + weights": True}
    }
    assert ours["probe", "blindcs"] != ours["probe", "blindcs + weights"]
    assert ours["knn", "blindcs"] == ours["knn", "blindcs + weights"]
    counted = ["craig", {"method": "gradmatch", "weighted": False}, "glister"]
    found = load(path, [f"compare.methods={json.dumps(counted)}"]).candidates()
    assert {name: c.weighted and c.weighting() for name, c in found.items()} == {
        **{"random": False, "craig + weights": "each", "gradmatch": False, "glister": False}
    }


def test_what_no_candidate_reads_is_named_and_targets_are_handed_on(finished, caplog):
    path, _, _, _ = finished
    words = ["compare.measures=false", "compare.methods=[random]", "compare.budgets=[30]"]
    compare.run(load(path, [*words, "compare.seeds=[0]", "select.filters=[hypersphere]"]))
    assert "select.filters: not read here" in caplog.text and "score." not in caplog.text
    prism = ["select.method=prism", "select.target.shards=[a.tar]", "compare.methods=[prism]"]
    found = load(path, ["score={}", *prism]).candidates()
    assert found["prism"].select.target.shards == ("a.tar",) and not found["random"].select.target
