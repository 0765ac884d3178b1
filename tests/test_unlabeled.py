"""Chosen images that nobody can label: refused, or paid for and left out of training."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import digits_pool, write_config

from coreset_ray.config import load
from coreset_ray.distributed.evaluations import training_rows
from coreset_ray.io.degrade import Degrade
from coreset_ray.io.sources import make_shards
from coreset_ray.io.truth import bought
from pipelines import evaluate, run, select_coreset
from pipelines.report import markdown, results_table


@pytest.mark.slow
def test_a_degraded_pool_is_bought_labeled_and_judged(tmp_path, ray_local):
    _, test = digits_pool(tmp_path, shards=0, each=1)
    made = Degrade(size=100, blank=0.2, noise=0.1)
    make_shards("digits", tmp_path / "web", per_shard=50, degrade=made)
    evaluation = {"test": {"shards": str(test)}, "seeds": [0], "weighted": False}
    path = write_config(
        tmp_path, tmp_path / "web/train", select={"budget": 0.5}, evaluate=evaluation
    )
    with pytest.raises(ValueError, match=r"images to evaluate have no label.*unlabeled=drop"):
        run.run(load(path))
    config = load(path, ["evaluate.unlabeled=drop"])
    outcome = run.run(config)
    truth = pq.read_table(tmp_path / "web/truth.parquet")
    for row in evaluate.run(config)["results"]:
        same = config if row["method"] != "random" else config.baseline(row["seed"])
        stage, _ = select_coreset.finished(same)
        found = bought(pq.read_table(f"{stage.folder.path}/manifest.parquet"), truth)
        assert row["images"] == found["images"] == 50
        assert row["unlabeled"] == 50 * (found["blank"] + found["noise"]) > 0
    assert "left out of training (mean over seeds): blindcs" in outcome["report"]
    lines = (f"{r['key']},{r['label']}\n" for r in truth.to_pylist() if r["label"])
    (tmp_path / "pool.csv").write_text("key,label\n" + "".join(lines))
    with pytest.raises(ValueError, match="60 of 60 images to evaluate have no label"):
        evaluate.run(config.replace("evaluate", labels=str(tmp_path / "pool.csv")))


def coreset(*uid: str) -> pa.Table:
    return pa.table({"uid": list(uid), "weight": [float(i) for i in range(len(uid))]})


def test_training_rows_keep_the_order_and_weights_of_the_rest():
    images = pa.table({"uid": ["a", "b", "c", "other"], "label": [0, 1, 2, 3]})
    rows = training_rows(coreset("x", "c", "y", "a"), images, "top")
    assert rows.select(["uid", "weight", "label"]).to_pylist() == [
        {"uid": "c", "weight": 1.0, "label": 2},
        {"uid": "a", "weight": 3.0, "label": 0},
    ]
    with pytest.raises(ValueError, match=r"none of the 2 images of top has a label"):
        training_rows(coreset("x", "y"), images, "top")


def test_weights_that_count_images_do_not_lengthen_the_step():
    counts = coreset("a", "b", "c", "d")
    assert evaluate.relative(counts)["weight"].to_pylist() == [0, 2 / 3, 4 / 3, 2]
    shares = pa.table({"uid": ["a", "b"], "weight": [0.25, 1.0]})
    assert evaluate.relative(shares) is shares


def result(method: str, seed: int, unlabeled: int | None) -> dict:
    row = {"evaluator": "probe", "baseline": "random", "images": 20, "accuracy": 0.5}
    return {**row, "method": method, "seed": seed, "unlabeled": unlabeled}


def test_the_report_counts_them_once_and_only_where_there_are_any():
    rows = [result("top", 0, 4), result("random", 0, 0), result("top", 1, 1)]
    rows += [result("random", 1, 0), {**result("top", 0, 4), "evaluator": "resnet18"}]
    rows += [{**result("random", 0, 0), "evaluator": "resnet18"}]
    told = markdown(results_table(rows)).splitlines()[-1]
    assert told.endswith("(mean over seeds): top 12.5%, random 0.0%")
    clean = [result("top", 0, 0), result("random", 0, None)]
    assert "left out" not in markdown(results_table(clean))
