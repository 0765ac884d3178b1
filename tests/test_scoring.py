"""Scores from Ray equal scores from this process, bit for bit, for any number of workers."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import digits_pool, embed_pixels, table_of, write_config, write_signals

import coreset_ray
from coreset_ray import catalog
from coreset_ray.config import load
from coreset_ray.core.alone import select_alone
from coreset_ray.core.filter import left_out
from coreset_ray.core.method import Sampled
from coreset_ray.core.pool import Pool
from coreset_ray.core.rule import Rule, choose_rows
from coreset_ray.core.run import score_columns, select_rows
from coreset_ray.core.whole_set import WholeSet
from coreset_ray.distributed import alone
from coreset_ray.io.layout import open_values, write_values
from coreset_ray.io.tables import matrix, uid_words
from pipelines import embed, score, select_coreset, signals
from pipelines.inputs import Table, filled, pool_table


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, ray_local):
    folder = tmp_path_factory.mktemp("scoring")
    train, _ = digits_pool(folder, shards=3, each=40)
    config = write_config(folder, train)
    embed_pixels(pool_table(load(config)))
    embed.run(load(config))
    return config


def local_pool(config) -> Pool:
    table = pool_table(config)
    rows = [pq.read_table(table.parts.part(p).path) for p in filled(table.snapshot())]
    embedding = np.concatenate([matrix(r["embedding"]) for r in rows])
    return Pool(np.concatenate([uid_words(r["uid"]) for r in rows]), {"embedding": embedding})


def scored(config) -> dict[str, dict[str, float]]:
    """Column → uid → value, from the files."""
    record = score.run(config)
    stage, _ = score.stage_of(config)
    columns: dict[str, dict[str, float]] = {}
    for part in record["parts"]:
        rows = pq.read_table(f"{stage.folder.path}/part-{part}.parquet")
        for name in set(rows.column_names) - {"uid", "shard", "key"}:
            pairs = zip(rows["uid"].to_pylist(), rows[name].to_pylist(), strict=True)
            columns.setdefault(name, {}).update(pairs)
    return columns


LAYOUTS = [(1, 1), *(pytest.param(*s, marks=pytest.mark.slow) for s in ((3, 1), (1, 3))), (2, 2)]
SAMPLED = [n for n, c in catalog.methods().items() if issubclass(c, Sampled)]


@pytest.mark.parametrize("method", [n for n in catalog.methods() if n not in SAMPLED])
def test_scores_of_rows_are_those_of_one_process(embedded, method):
    config = load(embedded, ["signals.classes=4", "score.params={}", f"score.method={method}"])
    pool = write_signals(config)
    expected = score_columns(config.score.build(), pool, seed=0)[0]["score"]
    uid = [f"{hi:016x}{lo:016x}" for hi, lo in pool.uid]
    assert scored(config)["score"] == dict(zip(uid, expected, strict=True))


@pytest.mark.parametrize(("workers", "row_shards"), LAYOUTS)
@pytest.mark.parametrize("method", SAMPLED)
def test_local_equals_ray(embedded, tmp_path, method, workers, row_shards):
    config = load(embedded).replace("score", method=method, params={"draws": 3001}, seed=5)
    config = config.replace("compute", score_workers=workers, row_shards=row_shards)
    for earlier in ("scores", "sums"):  # would be found finished
        shutil.rmtree(f"{config.workspace}/{earlier}", ignore_errors=True)
    pool = local_pool(config)
    expected, _ = score_columns(config.score.build(), pool, seed=5)
    found = scored(config)
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        by_uid = {f"{hi:016x}{lo:016x}": v for (hi, lo), v in zip(pool.uid, column, strict=True)}
        assert found[name] == by_uid


def test_the_manifest_is_the_local_selection(embedded):
    config = load(embedded)
    score.run(config)
    select_coreset.run(config)
    stage, _ = select_coreset.finished(config)
    manifest = pq.read_table(f"{stage.folder.path}/manifest.parquet")
    pool = local_pool(config)
    kept = select_rows(config.score.build(), pool, config.select.budget, config.score.seed)
    uid = [f"{hi:016x}{lo:016x}" for hi, lo in pool.uid[kept.rows]]
    assert manifest["uid"].to_pylist() == uid
    assert manifest["rank"].to_pylist() == list(range(len(uid)))
    assert manifest["score"].to_pylist() == kept.gains.tolist()
    assert manifest["weight"].to_pylist() == kept.weights.tolist()


def manifest_of(config) -> list[str]:
    signals.make(config)
    if config.scores:
        score.run(config)
    select_coreset.run(config)
    folder = select_coreset.finished(config)[0].folder
    return pq.read_table(f"{folder.path}/manifest.parquet")["uid"].to_pylist()


ALONE = [n for n, c in catalog.selector_classes().items() if not issubclass(c, Rule)]


@pytest.mark.parametrize(
    ("method", "params"),
    [
        *((name, "{}") for name in ALONE),
        ("facility_location", "{similarity: gradients}"),
        ("facility_location", "{optimizer: stochastic}"),
        ("prism", "{optimizer: lazier}"),
    ],
)
def test_methods_that_select_alone_choose_as_in_one_process(
    embedded, monkeypatch, tmp_path, method, params
):
    """Whole, beside images kept already and in groups; without a score being made."""
    real = alone.cluster
    words = ["score={}", f"select.method={method}", "signals.classes=4"]
    words.append(f"select.params={params}")
    kind = catalog.selector_classes()[method]
    targeted = issubclass(kind, WholeSet) and kind.targeted
    if targeted:
        words.append(f"select.target.shards={load(embedded).pool.shards[0]}/00000.tar")
    config = load(embedded, words)
    if targeted:
        embed_pixels(Table(config, config.select.target, "target_embeddings"))
    pool = write_signals(config)
    uid = np.array([f"{hi:016x}{lo:016x}" for hi, lo in pool.uid])
    more = {"target": pool["embedding"][:40]} if targeted else {}
    several = 3 if issubclass(kind, WholeSet) and not kind.weighs else 1
    for nodes, balance, partitions in ((2, None, several), (3, "clusters", 1)):
        told = SimpleNamespace(cpus=nodes, nodes=real().nodes)
        monkeypatch.setattr(alone, "cluster", lambda told=told: told)
        keep = tmp_path / f"{nodes}.parquet"
        kept = np.array([110, 3, 60] if balance else [], np.int64)
        pq.write_table(pa.table({"uid": pa.array(uid[kept], pa.string())}), keep)
        asked = {"balance": balance, "keep": str(keep), "partitions": partitions}
        found = manifest_of(config.replace("select", **asked))
        group = pool["clusters.cluster"] if balance else None
        given = {"group": group, "kept": kept, "partitions": partitions, **more}
        rows = select_alone(config.rule(), pool, 24, 0, **given).rows
        assert found == uid[rows].tolist()
    assert config.label.startswith(method)


def test_images_kept_that_are_named_twice_count_once(embedded, tmp_path):
    config = load(embedded, ["score={}", "select.method=herding", "signals.classes=4"])
    uid = manifest_of(config)
    found = []
    for name, kept in (("once", uid[:2]), ("twice", [*uid[:2], *uid[:2]])):
        pq.write_table(pa.table({"uid": kept}), tmp_path / f"{name}.parquet")
        found.append(manifest_of(config.replace("select", keep=str(tmp_path / f"{name}.parquet"))))
    assert found[0] == found[1] and not set(found[0]) & set(uid[:2])


def test_filters_spare_images_kept_already(embedded, tmp_path):
    """As in one process, by a method and by a rule; and again once another image is kept."""
    words = ["select.filters=[{method: near_duplicates, params: {threshold: 0.7}}]"]
    words += ["signals.classes=4", "select.budget=40"]
    for more in (["score={}", "select.method=k_center"], ["score={method: random}"]):
        config = load(embedded, [*words, *more])
        pool = write_signals(config)
        uid = np.array([f"{hi:016x}{lo:016x}" for hi, lo in pool.uid])
        built = [f.build() for f in config.select.filters]
        gone = np.flatnonzero(left_out(built, pool))
        for kept in (gone[[3, 0]], gone[[5]]):
            keep = tmp_path / "keep.parquet"
            pq.write_table(pa.table({"uid": uid[kept]}), keep)
            found = manifest_of(config.replace("select", keep=str(keep)))
            out = left_out(built, pool, kept)
            assert out.sum() and not out[kept].any()
            group = np.where(out, -1, 0)
            if config.scores:
                group[kept] = -1
                rows = select_rows(config.score.build(), pool, 40, 0, config.rule(), group).rows
            else:
                rows = select_alone(config.rule(), pool, 40, 0, group=group, kept=kept).rows
            assert found == uid[rows].tolist()


def test_shards_of_a_target_that_are_not_there_are_named_by_their_key(embedded):
    words = ["score={}", "select.method=prism", "select.target.shards=nowhere/*.tar"]
    with pytest.raises(ValueError, match=r"^select\.target\.shards: 'nowhere/\*.tar' does"):
        select_coreset.run(load(embedded, words))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_of_images_kept_that_is_no_manifest_is_named(embedded, tmp_path, kind):
    keep = tmp_path / f"keep.{kind}"
    if kind == "csv":
        keep.write_text("uid\n1\n")
    else:
        pq.write_table(pa.table({"x": [1]}), keep)
    config = load(embedded, ["score={}", "select.method=k_center", f"select.keep={keep}"])
    with pytest.raises(ValueError, match=rf"select.keep='.*{kind}' is no manifest: give .* uid"):
        select_coreset.run(config)


def test_parts_that_get_none_of_few_rows_change_nothing(embedded):
    """As in one process: fifty parts for 120 rows."""
    config = load(embedded, ["score={}", "select.method=medoids", "signals.classes=4"])
    pool = write_signals(config)
    found = manifest_of(config.replace("select", partitions=50))
    rows = select_alone(config.rule(), pool, len(found), 0, partitions=50).rows
    assert found == [f"{hi:016x}{lo:016x}" for hi, lo in pool.uid[rows]]


def test_what_fits_no_machine_is_refused_with_the_arithmetic(embedded, monkeypatch):
    config = load(embedded, ["score={}", "select.method=facility_location", "signals.classes=4"])
    write_signals(config)
    small = SimpleNamespace(cpus=2, nodes=((2, 30_000),))
    monkeypatch.setattr(alone, "cluster", lambda: small)
    with pytest.raises(
        ValueError, match=r"7 × 120 rows × .* bytes = .* select.partitions to at least"
    ):
        manifest_of(config)


@pytest.mark.parametrize("balance", ["clusters", "pseudo_labels"])
def test_groups_are_those_of_the_signal(embedded, balance):
    words = ["score.method=prototypicality", "score.params={}", "select.method=moderate"]
    config = load(embedded, ["signals.classes=4", *words, f"select.balance={balance}"])
    pool = write_signals(config)
    group = pool["clusters.cluster" if balance == "clusters" else "pseudo_labels.label"]
    distance = pool["clusters.distance"].astype(float)
    rows = choose_rows(config.rule(), distance, pool.uid, 24, 0, group)
    assert manifest_of(config) == [f"{hi:016x}{lo:016x}" for hi, lo in pool.uid[rows]]
    assert config.label == "prototypicality + moderate + balanced"


def test_fewer_images_than_groups_are_chosen_and_said_aloud(embedded, caplog):
    words = ["score.method=prototypicality", "score.params={}", "select.balance=clusters"]
    config = load(embedded, ["signals.classes=4", *words, "select.budget=2"])
    pool = write_signals(config)
    found = manifest_of(config)
    group = dict(
        zip([f"{hi:016x}{lo:016x}" for hi, lo in pool.uid], pool["clusters.cluster"], strict=True)
    )
    assert len(found) == len({group[uid] for uid in found}) == 2, "one each, of as many as may be"
    assert "2 images for the 3 groups of select.balance leaves 1 or more" in caplog.text
    caplog.clear()
    manifest_of(config.replace("select", budget=3))
    assert "groups of select.balance" not in caplog.text


def test_scores_do_not_depend_on_how_the_pool_is_sharded(embedded, tmp_path):
    """The same images under the same names, listed in another order, give the same answer."""
    config = load(embedded)
    folder = config.pool.shards[0]
    backwards = [f"{folder}/0000{i}.tar" for i in (2, 0, 1)]
    other = config.replace("pool", shards=tuple(backwards))
    assert score.stage_of(other)[0].folder == score.stage_of(config)[0].folder


def test_float16_columns_round_and_say_so(embedded):
    """Other scores, kept apart, those of the rounded embeddings; and what rounding changed."""
    exact = load(embedded)
    config = exact.replace("score", columns="float16")
    found, record = scored(config), score.run(config)
    pool = local_pool(config)
    half = Pool(pool.uid, {"embedding": pool["embedding"].astype(np.float16)})
    expected, _ = score_columns(config.score.build(), half, config.score.seed)
    for name, column in expected.items():
        by_uid = {f"{hi:016x}{lo:016x}": v for (hi, lo), v in zip(pool.uid, column, strict=True)}
        assert found[name] == by_uid
    assert score.stage_of(config)[0].folder != score.stage_of(exact)[0].folder
    assert score.ledger_of(config, pool_table(config).snapshot()).folder != (
        score.ledger_of(exact, pool_table(exact).snapshot()).folder
    )
    assert record["columns"] == "float16" and record["rounding"]["rows"] == 120
    assert 0.5 < record["rounding"]["correlation"]["score"] < 1
    assert "Columns held as float16: over 2,000 draws on 120 images" in record["report"]
    layouts = Path(config.workspace, "layouts").glob("*-float16/*/value.npy")
    assert [np.load(path).dtype for path in layouts] == [np.float16]
    stored = {"embed": exact.embed.model_copy(update={"dtype": "float16"})}
    both = [c.model_copy(update=stored) for c in (exact, config)]
    assert score._rounding(both[0]) == score._rounding(both[1]) == []


def test_what_float16_cannot_hold_is_refused(tmp_path):
    table, parts = table_of(tmp_path, np.array([[1.0, 2.0], [-65_519.0, 3.0], [65_520.0, 0]]), 1)
    write = partial(write_values, tmp_path / "layout", table, list(parts), 3)
    (tmp_path / "layout").mkdir()
    with pytest.raises(ValueError, match=r"part 'p0': a value of size 65520 .*columns=float32"):
        write("float16")
    write("float32")


def test_a_part_is_read_in_blocks(tmp_path, monkeypatch):
    """However small they are, and a bad row is named by its number in the part."""
    monkeypatch.setattr("coreset_ray.io.layout._BLOCK", 200)
    z = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    table, parts = table_of(tmp_path / "good", z, 2)
    (tmp_path / "layout").mkdir()
    write_values(tmp_path / "layout", table, list(parts), 90, "float32")
    np.testing.assert_array_equal(open_values(tmp_path / "layout")[0], z.T)
    z[77, 1] = np.nan
    table, parts = table_of(tmp_path / "bad", z, 2)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="part 'p1': embedding row 32 holds a NaN"):
        write_values(tmp_path / "other", table, list(parts), 90, "float32")


SCORED, ALONE_BY = ["score={method: random}"], ["score={}", "select.method=herding"]


@pytest.mark.parametrize(
    ("words", "balance"),
    [
        (SCORED, "clusters"),
        (ALONE_BY, "null"),
        pytest.param(SCORED, "null", marks=pytest.mark.slow),
        pytest.param(ALONE_BY, "clusters", marks=pytest.mark.slow),
    ],
)
def test_filters_leave_out_what_they_drop_in_one_process(embedded, words, balance):
    """Each by the whole pool, before a rule or a method that selects alone, whole or in groups."""
    asked = "[near_duplicates, {method: hypersphere, params: {share: 0.3}}]"
    words = ["score.params={}", *words, f"select.balance={balance}", f"select.filters={asked}"]
    config = load(embedded, ["signals.classes=4", *words])
    pool = write_signals(config)
    columns = {name: column for name, column in pool.columns.items() if name != "embedding"}
    given = {"uid": pool.uid, "signals": columns}
    given["filters"] = ["near_duplicates", ("hypersphere", {"share": 0.3})]
    given["group"] = pool["clusters.cluster"] if balance == "clusters" else None
    method = "random" if config.scores else "herding"
    rows = coreset_ray.select(pool["embedding"], 24, method=method, **given).rows
    assert manifest_of(config) == [f"{hi:016x}{lo:016x}" for hi, lo in pool.uid[rows]]
    stage, _ = select_coreset.finished(config)
    told = (stage.folder / "selection.json").read_json()["inputs"]["filters"]
    dropped = {stage.partition("-")[0]: count for stage, count in told.items()}
    assert dropped.keys() == {"near_duplicates", "hypersphere"} and dropped["hypersphere"] == 36
    assert config.label.startswith(f"near_duplicates + hypersphere + {method}")
    without = config.replace("select", filters=())
    assert manifest_of(without) != manifest_of(config)
    with pytest.raises(ValueError, match=r"budget of 115: the filters leave \d+ of 120 images"):
        manifest_of(config.replace("select", budget=115))


def test_filters_are_checked_before_anything_runs(embedded):
    for wrong, told in (
        ("[near]", "near_duplicates"),
        ("[{method: hypersphere, params: {x: 1}}]", "x"),
    ):
        with pytest.raises(ValueError, match=rf"select\.filters.*{told}"):
            load(embedded, [f"select.filters={wrong}"])
    assert load(embedded, ["select.filters=hypersphere"]).select.filters[0].method == "hypersphere"
