"""Signals as stages, and ELFS from shards to manifest without a label being read."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from local_training import in_this_process
from pools import digits_pool, embed_pixels, tiny_encoder, without_labels, write_config

from coreset_ray import cli
from coreset_ray.config import load
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.search import falling
from coreset_ray.io.tables import write_table
from pipelines import run, score, search, select_coreset, signals
from pipelines.inputs import NotReady, pool_table

ELFS = {
    "score": {"method": "elfs"},
    "signals": {
        "classes": 5,
        "knn": {"k": 6},
        "dynamics": {"params": {"epochs": 3, "hidden": 16, "batch_size": 64}},
    },
    "select": {"budget": 0.2, "search": {"stop": "grid", "budgets": [0.5]}},
}
MADE = ("clusters", "pseudo_labels", "dynamics", "proxy")
HEADS = {"params": {"heads": 3, "epochs": 4, "warmup_epochs": 1, "hidden": [16], "batch_size": 64}}


@pytest.fixture(scope="module", params=["kmeans", pytest.param("temi", marks=pytest.mark.slow)])
def finished(request, tmp_path_factory, ray_local):
    """The configuration of a run of ELFS."""
    folder = tmp_path_factory.mktemp(f"elfs-{request.param}")
    train, _ = digits_pool(folder, shards=3, each=60)
    labels = {"clustering": request.param, **(HEADS if request.param == "temi" else {})}
    told = ELFS["signals"] | {"pseudo_labels": labels}
    path = write_config(folder, train, **ELFS | {"signals": told})
    make(load(path))
    return path


def make(config) -> None:
    """The slow form has an encoder too, and trains by Ray Train."""
    if config.signals.pseudo_labels.clustering == "temi":
        run.run(config)
    else:
        embed_pixels(pool_table(config))
        with in_this_process():
            run.run(config)


def manifest(config):
    stage, _ = select_coreset.finished(config)
    return pq.read_table(f"{stage.folder.path}/manifest.parquet")


def test_the_coreset_lies_between_the_cuts(finished):
    """Against the rule applied by hand to the scores that were written."""
    config = load(finished)
    found = search.finished(config)[1]
    record = score.run(config)
    folder = score.stage_of(config)[0].folder.path
    parts = [pq.read_table(f"{folder}/part-{p}.parquet") for p in record["parts"]]
    rows = sorted(
        (-s, u)
        for t in parts
        for s, u in zip(t["score"].to_pylist(), t["uid"].to_pylist(), strict=True)
    )
    drop = int(found["value"] * 180 + 1e-9)
    assert manifest(config)["uid"].to_pylist() == [u for _, u in rows[drop : drop + 36]]


def test_more_training_workers_are_another_result(finished):
    """They draw other batches; what no training makes stays where it is."""
    one = load(finished)
    several = one.replace("compute", train_workers=2)
    places = [{n: signals.SIGNALS[n].stage_of(c)[0].name for n in MADE} for c in (one, several)]
    told = one.signals.pseudo_labels.clustering == "temi"
    assert [places[0][n] != places[1][n] for n in MADE] == [False, told, True, True]


def test_the_search_kept_its_curve(finished):
    stage, found = search.finished(load(finished))
    tried = {(c["keep"], c["value"]): c["mean"] for c in found["curve"]}
    assert {v for k, v in tried if k == 0.2} == {b / 10 for b in range(9)}
    assert {v for k, v in tried if k == 0.5} == {b / 10 for b in range(6)}
    best = max(m for (k, _), m in tried.items() if k == 0.2)
    assert tried[0.2, found["value"]] == best
    drawing = Path(stage.folder.path, "curve.svg").read_text()
    assert drawing.startswith("<?xml") and "held-out pseudo-labels" in drawing
    assert pq.read_table(f"{stage.folder.path}/curve.parquet").num_rows == len(tried)
    other = load(finished, ["select.budget=0.5"])
    assert search.finished(load(finished, ["select.search.budgets=[0.2, 0.5]"]))[0] == stage
    assert search.finished(
        other.replace("select", search=other.select.search.model_copy(update={"budgets": (0.2,)}))
    )[1]["value"] in {b / 10 for b in range(6)}


def test_nothing_is_made_twice(finished):
    config = load(finished)
    before = written(config)
    run.run(config)
    assert written(config) == before and any("dynamics" in str(path) for path in before)


def written(config) -> dict[Path, int]:
    """When each file was written; embedding writes its snapshot each time."""
    files = [p for p in Path(config.workspace).rglob("*") if p.is_file()]
    return {p: p.stat().st_mtime_ns for p in files if p.parent.name != "snapshots"}


def test_labels_never_reach_a_selection(finished, tmp_path):
    """The same shards without .cls give the same manifest, bit for bit."""
    config = load(finished)
    bare = without_labels(Path(config.pool.shards[0]), tmp_path / "bare")
    told = ELFS | {"signals": config.signals.model_dump(mode="json")}
    encoders = [tiny_encoder(finished.parent)]
    other = load(write_config(tmp_path, bare, embed={"encoders": encoders}, **told))
    make(other)
    assert manifest(other).equals(manifest(config))


def test_true_labels_are_read_for_diagnosis_alone(finished, capsys):
    config = load(finished)
    stage = signals.finished(config, "pseudo_labels")[0]
    words = ["signals.pseudo_labels.truth=cls"]
    with pytest.raises(SystemExit) as exit:
        cli.main(["signals", str(finished), "--only", "pseudo_labels", *words])
        raise SystemExit(0)
    assert exit.value.code in (0, None)
    told = capsys.readouterr().out
    assert "Pseudo-labels against cls on 180 images: ACC 0." in told
    assert signals.finished(load(finished, words), "pseudo_labels")[0] == stage


def test_words_that_are_no_override_are_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["signals", "x.yaml", "--only", "knn", "a.b=1", "--nonsense=1"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith("unrecognized arguments: --nonsense=1\n")


def test_signals_of_other_rows_are_refused(finished):
    config = load(finished)
    stage, record = signals.finished(config, "pseudo_labels")
    part = next(iter(record["parts"]))
    place = stage.folder / f"part-{part}.parquet"
    rows = pq.read_table(place.path)
    files = PoolFiles(pool_table(config).stage.folder.uri, {"pseudo_labels": stage.folder.uri})
    read = files.read(part, ("pseudo_labels.label",))
    assert list(read.columns) == ["pseudo_labels.label"]
    try:
        write_table(place, rows.take(np.arange(len(rows))[::-1]))
        with pytest.raises(ValueError, match="is not of the images in part"):
            files.read(part, ("pseudo_labels.label",))
    finally:
        write_table(place, rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["signals.classes=1"], "signals.classes"),
        (
            ["signals.classes=181", "name=many"],
            r"181 clusters \(.*signals.classes\): the pool has 180",
        ),
        (["signals.knn.k=180", "signals.pseudo_labels.clustering=scan"], "the pool has 180 images"),
        (
            ["select.params.beta=0.9", "select.search={}"],
            r"DoubleEnd\(beta=0.9\) keeps at most 18 of 180 images",
        ),
        (["select.params.beta=0.3"], "select.search: no setting of select.params is auto"),
        (["select.params.beta=1.5"], "beta=1.5: expected a share"),
        (["select.params.betta=0.1"], "select.params.betta: unknown key; did you mean 'beta'"),
        (["select.method=double"], "selector 'double' does not exist: did you mean 'double_end'"),
        (["select.method=moderate", "select.params.beta=auto"], "beta: "),
        (["select.method=d2"], "score.method: select.method 'd2' reads no scores"),
        (["select.search.held_out=0.001", "name=few"], "leave none to validate on"),
        (["signals.pseudo_labels.params.heads=3"], "kmeans has none"),
        (["signals.dynamics.params.epoch=3"], "epoch: unknown key; did you mean 'epochs'"),
    ],
)
def test_bad_settings_are_named(finished, words, message, capsys):
    if "kmeans" not in finished.read_text() and "kmeans" in message:
        pytest.skip("of the other clustering")
    with pytest.raises(SystemExit) as exit:
        cli.main(["run", str(finished), *words])
    assert exit.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_early_search_stops_past_the_top():
    assert not falling([0.1, 0.5, 0.4]) and falling([0.1, 0.5, 0.4, 0.45])
    assert not falling([0.5, 0.4, 0.6]) and not falling([0.1, 0.2, 0.3])


def test_a_missing_signal_says_what_to_run(tmp_path, finished):
    config = load(finished, ["signals.seed=5"])
    with pytest.raises(NotReady, match="coreset-ray signals"):
        score.run(config)
