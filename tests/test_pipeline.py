"""The chain as a user runs it: the command line, its files, its errors and exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pools import digits_pool, embed_pixels, read_shard, tiny_encoder, without_labels, write_config

from coreset_ray import cli
from coreset_ray.config import load
from coreset_ray.models.recipe import Recipe
from pipelines import evaluate, export, run, select_coreset
from pipelines.inputs import pool_table


def command(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "coreset_ray.cli", *map(str, words)]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_local):
    """A whole run in this process, with both evaluators."""
    folder = tmp_path_factory.mktemp("chain")
    train, test = digits_pool(folder, shards=4, each=50)
    evaluation = {"test": {"shards": str(test)}, "seeds": [0, 1]}
    path = write_config(folder, train, evaluate=evaluation)
    for table in (pool_table(load(path)), evaluate.test_table(load(path))):
        embed_pixels(table)
    return path, run.run(load(path))


def manifest(config):
    stage, _ = select_coreset.finished(config)
    return pq.read_table(f"{stage.folder.path}/manifest.parquet")


def test_the_run_says_where_everything_lies(finished):
    _, outcome = finished
    assert (outcome["images"], outcome["kept"], outcome["quarantined"]) == (200, 40, 0)
    assert Path(outcome["manifest"]).is_file()
    assert (Path(outcome["shards"]) / "00000.tar").is_file()


def test_the_manifest_says_what_is_kept(finished):
    rows = manifest(load(finished[0]))
    expected = ["uid", "shard", "key", "rank", "score", "weight", "reason"]
    assert rows.column_names == expected
    assert rows["rank"].to_pylist() == list(range(40))
    assert len(set(rows["uid"].to_pylist())) == 40
    assert all(0 <= w <= 1 for w in rows["weight"].to_pylist())


def test_provenance_is_complete(finished):
    config = load(finished[0])
    stage, _ = select_coreset.finished(config)
    told = (stage.folder / "selection.json").read_json()
    assert told["config"]["score"]["params"] == config.score.params
    assert told["score"]["seed"] == 0 and told["score"]["params"]["neighbors"] == 20
    assert {"coreset_ray", "torch", "ray", "python"} <= told["versions"].keys()
    assert (told["kept"], told["pool"]) == (40, 200)
    assert told["inputs"].keys() == {"scores", "table", "snapshot"}


def test_exported_shards_hold_the_original_bytes(finished):
    config = load(finished[0])
    stage, record = export.finished(config)
    source = {}
    for shard in sorted(Path(config.pool.shards[0]).glob("*.tar")):
        for sample in read_shard(shard):
            source[shard.name, sample["__key__"]] = (sample["png"], sample["cls"])
    index = pq.read_table(f"{stage.folder.path}/index.parquet").to_pylist()
    exported = {s["__key__"]: s for n in record["shards"] for s in read_shard(stage.folder.path, n)}
    assert len(index) == len(exported) == 40
    for row in index:
        sample = exported[row["export_key"]]
        assert (sample["png"], sample["cls"]) == source[row["shard"], row["key"]]
    lines = Path(stage.folder.path, "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["uid"] for line in lines] == [row["uid"] for row in index]


def test_manifest_order_puts_the_best_first(finished):
    config = load(finished[0]).replace("export", order="manifest", samples_per_shard=15)
    export.run(config)
    stage, record = export.finished(config)
    assert record["shards"] == ["00000.tar", "00001.tar", "00002.tar"]
    index = pq.read_table(f"{stage.folder.path}/index.parquet")
    assert index["rank"].to_pylist() == list(range(40))
    keys = [s["__key__"] for n in record["shards"] for s in read_shard(stage.folder.path, n)]
    assert keys == index["export_key"].to_pylist()


def test_the_report_has_random_beside_every_row(finished):
    config = load(finished[0])
    rows = evaluate.run(config)["results"]
    found = {(r["method"], r["seed"]) for r in rows}
    methods = ("blindcs", "random", "blindcs + weights", "random + weights")
    assert found == {(m, s) for m in methods for s in (0, 1)} and len(rows) == len(found)
    assert all(0 <= r["accuracy"] <= 1 and r["images"] == 40 for r in rows)
    assert "± " in finished[1]["report"] and "baseline" in finished[1]["report"]


def test_the_control_carries_the_same_weights(finished):
    config = load(finished[0])
    coreset, baseline, ours, control = evaluate._arms(config, config.evaluate)[:4]
    assert (ours.name, control.name) == ("blindcs + weights", "random + weights")
    assert ours.rows.equals(coreset.rows)
    assert control.rows["uid"].equals(baseline.rows["uid"])
    assert sorted(control.rows["weight"].to_pylist()) == sorted(ours.rows["weight"].to_pylist())
    assert control.rows["weight"].to_pylist() != ours.rows["weight"].to_pylist()


@pytest.mark.slow
def test_a_resnet_is_trained_on_the_coreset_and_on_random(finished):
    recipe = Recipe(epochs=1, image_size=8, padding=0, flip=False, batch_size=32)
    config = load(finished[0]).replace(
        "evaluate", resnet=recipe, probe=None, seeds=(0,), weighted=False
    )
    rows = evaluate.run(config)["results"]
    assert [(r["evaluator"], r["method"]) for r in rows] == [
        ("resnet18", "blindcs"),
        ("resnet18", "random"),
    ]
    exported = evaluate._exported_images(config)
    assert len(exported) == 40 and "/exports/" in exported["path"][0].as_py()


def test_neighbours_vote_beside_the_probe_and_alone(finished):
    results = evaluate.run(load(finished[0], ["evaluate.knn.k=3"]))["results"]
    rows = [r for r in results if r["evaluator"] == "knn"]
    found = {(r["method"], r["seed"]) for r in rows}
    assert found == {(m, s) for m in ("blindcs", "random") for s in (0, 1)} and len(rows) == 4
    assert results[: -len(rows)] == evaluate.run(load(finished[0]))["results"]
    alone = load(finished[0], ["evaluate.knn.k=3", "evaluate.probe=null"])
    assert evaluate.run(alone)["results"] == rows


def test_running_again_does_nothing(finished):
    path, _ = finished
    config = load(path)
    work = Path(config.workspace)
    before = {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()}
    run.run(config)
    after = {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()}
    changed = {p for p in after if after[p] != before.get(p)}
    assert {p.parent.name for p in changed} <= {"snapshots"} and after.keys() == before.keys()


def test_another_budget_reuses_scores(finished):
    config = load(finished[0]).replace("select", budget=10)
    select_coreset.run(config)
    larger = manifest(load(finished[0]))
    assert manifest(config)["uid"].to_pylist() == larger["uid"].to_pylist()[:10]


@pytest.mark.slow
def test_labels_never_reach_a_selection(finished, tmp_path):
    """The same shards without .cls give the same manifest, bit for bit."""
    config = load(finished[0])
    bare = without_labels(Path(config.pool.shards[0]), tmp_path / "bare")
    encoders = [tiny_encoder(finished[0].parent)]
    other = load(write_config(tmp_path, bare, embed={"encoders": encoders}))
    embed_pixels(pool_table(other))
    run.run(other)
    assert manifest(other).equals(manifest(config))


def test_export_refuses_a_folder_of_others(finished, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    config = load(finished[0]).replace("export", out=str(tmp_path))
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        export.run(config)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_shards_of_an_unfinished_export_do_not_stay(finished, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "00007.tar").write_bytes(b"left by a larger export that was killed")
    config = load(finished[0]).replace("export", out=str(out))
    export.run(config)
    assert [p.name for p in out.glob("*.tar")] == ["00000.tar"]


def test_export_refuses_another_coreset(finished, tmp_path):
    config = load(finished[0]).replace("export", out=str(tmp_path / "out"))
    export.run(config)
    other = config.replace("select", budget=5)
    select_coreset.run(other)
    with pytest.raises(ValueError, match="holds the coreset of"):
        export.run(other)


def test_corrected_labels_are_evaluated_anew(finished, tmp_path):
    config = load(finished[0])
    labels = tmp_path / "labels.csv"
    shards = [*Path(config.pool.shards[0]).glob("*.tar")]
    shards += Path(config.evaluate.test.shards[0]).glob("*.tar")
    keys = {s["__key__"]: s["cls"].decode() for shard in shards for s in read_shard(shard)}
    labels.write_text("key,label\n" + "".join(f"{k},{v}\n" for k, v in keys.items()))
    config = config.replace("evaluate", labels=str(labels), resnet=None, seeds=(0,))
    first = evaluate.run(config)["results"]
    labels.write_text("key,label\n" + "".join(f"{k},0\n" for k in keys))
    second = evaluate.run(config)["results"]
    assert all(r["accuracy"] < 1 for r in first)
    assert all(r["accuracy"] == 1 for r in second)


def test_a_gpu_that_is_not_there_is_an_error(finished, tmp_path):
    config = load(finished[0]).model_copy(update={"workspace": str(tmp_path)})
    with pytest.raises(ValueError, match="no GPU"):
        run.run(config.replace("compute", device="cuda"))


def test_random_as_the_method_is_its_own_baseline(finished):
    config = load(finished[0]).replace("score", method="random", params={})
    config = config.replace("evaluate", resnet=None)
    rows = run.run(config.replace("score", seed=3)) and evaluate.run(
        config.replace("score", seed=3)
    )
    assert {r["method"] for r in rows["results"]} == {"random"}


def test_missing_labels_name_an_image(finished, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("key,label\n00000,1\n")
    config = load(finished[0]).replace("evaluate", labels=str(labels))
    with pytest.raises(ValueError, match=r"have no label in .*labels\.csv"):
        evaluate.run(config)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["embed", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["embed", "{config}", "pool.shard=x"], 2, "did you mean 'shards'"),
        (["embed", "{config}", "pool.shards=nowhere/*.tar"], 2, "nowhere"),
        (["score", "{config}", "workspace={tmp}"], 2, "coreset-ray embed"),
        (["select", "{config}", "score.seed=77"], 2, "coreset-ray score"),
        (["export", "{config}", "select.budget=7"], 2, "coreset-ray select"),
        (["evaluate", "{config}", "evaluate=null"], 2, "no `evaluate` section"),
        (["select", "{config}", "select.budget=201"], 2, "budget=201"),
        (["shards", "digits", "{tmp}", "--per-shard", "0"], 2, "per_shard"),
        (["frobnicate"], 2, "invalid choice"),
    ],
)
def test_errors_say_what_and_where(finished, tmp_path, capsys, words, status, says):
    filled = [w.format(config=finished[0], tmp=tmp_path) for w in words]
    with pytest.raises(SystemExit) as exit:
        cli.main(filled)
    assert exit.value.code == status
    assert says in capsys.readouterr().err


def test_the_process_ends_with_that_status():
    outcome = command("embed", "nowhere.yaml")
    assert outcome.returncode == 2
    assert outcome.stderr.count("\n") == 1 and "nowhere.yaml" in outcome.stderr


@pytest.mark.parametrize(
    "stage", ["", "run", "embed", "score", "select", "export", "evaluate", "compare"]
)
def test_help_is_worth_reading(stage, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([*filter(None, [stage]), "--help"])
    assert exit.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 10


def test_pipelines_run_as_modules():
    modules = sorted(p.stem for p in (Path(__file__).parent.parent / "pipelines").glob("*.py"))
    within = ("__init__", "inputs", "labeled", "report", "classes", "search", "filters", "summary")
    within += ("select_many", "select_source", "trainings", "kept")
    # Of a stage that has them run:
    parts = ("signal_", "compare_", "plan_", "continual_", "reselect_")
    runnable = [m for m in modules if m not in within and not m.startswith(parts)]
    assert "embed" in runnable
    for module in runnable:
        source = (Path(cli.__file__).parent.parent / "pipelines" / f"{module}.py").read_text()
        name = module.removesuffix("_coreset")
        assert f'main(["{name}", *sys.argv[1:]])' in source
    line = [sys.executable, "-m", "pipelines.select_coreset", "--help"]
    outcome = subprocess.run(line, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith("usage: coreset-ray select")
