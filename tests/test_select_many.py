"""Many budgets chosen in one task are what each is by itself."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from pools import digits_pool, table_of, write_config, write_signals
from signal_columns import pool_with_signals

from coreset_ray import catalog
from coreset_ray.config import load
from coreset_ray.core.alone import in_one_go, select_alone, select_budgets
from coreset_ray.core.pool import Pool, joined
from coreset_ray.core.rule import Rule, choose_rows
from coreset_ray.core.whole_set import WholeSet
from coreset_ray.distributed import at_hand
from coreset_ray.distributed.at_hand import AT_HAND, ByItself, FromScores, Job
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.choose import Ranking, Scored
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import list_column, read_table, uid_words, write_table

N, PARTS = 70, 3
BUDGETS = [13, 0, 30, 7, 13, 70]
CLASSES = catalog.selector_classes()
ALONE = [
    name
    for name, kind in CLASSES.items()
    if not issubclass(kind, Rule) and not (issubclass(kind, WholeSet) and kind.targeted)
]
RULES = [name for name, kind in CLASSES.items() if issubclass(kind, Rule)]
choose = at_hand._choose._function  # what the task runs, in this process


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pool on disk, in parts, with every signal; the same pool in memory."""
    folder = tmp_path_factory.mktemp("pool")
    embedding = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    table, rows = table_of(folder / "table", embedding, PARTS)
    uid = pa.concat_tables([read_table(table.part(p), ["uid"]) for p in rows])["uid"]
    pool = pool_with_signals(embedding, uid_words(uid))
    signals, first = sorted({n.partition(".")[0] for n in pool.columns if "." in n}), 0
    for part, n in rows.items():
        for signal in signals:
            columns = {"uid": uid.slice(first, n)}
            for name, values in pool.columns.items():
                if name.startswith(f"{signal}."):
                    own = values[first : first + n]
                    column = pa.array(own) if own.ndim == 1 else list_column(own)
                    columns[name.partition(".")[2]] = column
            place = locate(str(folder / signal / f"part-{part}.parquet"))
            write_table(place, pa.table(columns))
        dropped = np.arange(first, first + n) % 5 == 0
        write_table(
            locate(str(folder / "dropped" / f"part-{part}.parquet")), pa.table({"dropped": dropped})
        )
        score = np.random.default_rng(first).random(n)
        told = read_table(table.part(part), ["uid", "shard", "key"])
        told = told.append_column("score", pa.array(score))
        write_table(locate(str(folder / "scores" / f"part-{part}.parquet")), told)
        first += n
    where = PoolFiles(table.folder.uri, {s: str(folder / s) for s in signals})
    return folder, where, rows, pool, uid.to_pylist()


def manifest(place):
    return read_table(locate(str(place))).to_pylist()


def run(source, budgets, folder):
    """The manifests of one task, None with the reason where there is none."""
    places = [folder / f"{i}.parquet" for i in range(len(budgets))]
    job = Job(source, tuple((k, str(p)) for k, p in zip(budgets, places, strict=True)))
    found = choose(job)
    assert len(found) == len(budgets) and all(one.seconds >= 0 for one in found)
    for one, place in zip(found, places, strict=True):
        assert (one.failed is None) == place.exists()
    return [
        manifest(p) if one.failed is None else one.failed
        for one, p in zip(found, places, strict=True)
    ]


@pytest.mark.parametrize("name", ALONE)
def test_all_budgets_at_once_are_each_by_itself(files, name):
    pool, method = files[3], catalog.build_selector(name, {})
    group = np.arange(N) % 3
    for groups in (None, group):
        together = select_budgets(method, pool, BUDGETS, 4, group=groups)
        for k, kept in zip(BUDGETS, together, strict=True):
            single = select_alone(method, pool, k, 4, group=groups)
            assert len(kept) == k
            np.testing.assert_array_equal(kept.rows, single.rows)
            np.testing.assert_array_equal(kept.gains, single.gains)
            np.testing.assert_array_equal(kept.weights, single.weights)


BY_GRADIENTS = [
    (name, {"similarity": "gradients"})
    for name in ("facility_location", "graph_cut", "log_determinant")
]


@pytest.mark.parametrize(("name", "params"), [*((n, {}) for n in ALONE), *BY_GRADIENTS])
def test_a_task_writes_what_is_chosen_from_arrays_in_memory(files, name, params, tmp_path):
    _, where, rows, pool, uid = files
    method = catalog.build_selector(name, params)
    source = ByItself(method, 4, where, tuple(rows.items()))
    assert source.together == in_one_go(method)
    asked = [20, 5]
    own = joined([Pool(pool.uid, {n: pool.columns[n] for n in method.needs})])
    for k, told in zip(asked, run(source, asked, tmp_path), strict=True):
        kept = select_alone(method, own, k, 4)
        assert [row["uid"] for row in told] == [uid[i] for i in kept.rows]
        assert [row["rank"] for row in told] == list(range(k))
        np.testing.assert_array_equal([row["score"] for row in told], kept.gains)
        np.testing.assert_array_equal([row["weight"] for row in told], kept.weights)


@pytest.mark.parametrize("name", ["k_center", "herding", "medoids"])
def test_groups_and_filters_are_kept_to(files, name, tmp_path):
    folder, where, rows, pool, uid = files
    narrow = dataclasses.replace(where, filters=(str(folder / "dropped"),))
    method = catalog.build_selector(name, {})
    source = ByItself(method, 0, narrow, tuple(rows.items()), "clusters.cluster")
    left = np.arange(N) % 5 != 0
    cluster = dict(zip(uid, pool["clusters.cluster"], strict=True))
    (told, all_of_them) = run(source, [12, int(left.sum())], tmp_path)
    assert {row["uid"] for row in all_of_them} == {
        u for u, stays in zip(uid, left, strict=True) if stays
    }
    sizes = np.bincount([cluster[row["uid"]] for row in told])
    assert sizes.sum() == 12 and sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_keeps_of_scores_is_what_it_keeps_of_arrays(files, name, tmp_path):
    folder, _, rows, _, uid = files
    rule, scorer = catalog.build_selector(name, {}), catalog.build("random", {}, "score.params")
    parts = tuple(Scored(str(folder / "scores" / f"part-{part}.parquet")) for part in rows)
    score = np.concatenate(
        [read_table(locate(p.scores), ["score"])["score"].to_numpy() for p in parts]
    )
    span = float(score.min()), float(score.max())
    source = FromScores(Ranking(scorer, rule, 3), parts, N, span)
    words = uid_words(pa.array(uid))
    key = scorer.rank_key(score, words, 3)
    asked = [25, 6, 1]
    for k, told in zip(asked, run(source, asked, tmp_path), strict=True):
        kept = choose_rows(rule, key, words, k, 3, np.zeros(N, np.int64))
        assert [row["uid"] for row in told] == [uid[i] for i in kept]
        np.testing.assert_array_equal([row["score"] for row in told], score[kept])
        np.testing.assert_array_equal(
            [row["weight"] for row in told], scorer.weight(score[kept], *span)
        )


@pytest.mark.parametrize("name", ["k_center", "medoids"])
def test_a_budget_that_cannot_be_fails_alone(files, name, tmp_path):
    """Together or not: the others have their manifests, and the same ones."""
    _, where, rows, _, _ = files
    source = ByItself(catalog.build_selector(name, {}), 0, where, tuple(rows.items()))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = run(source, [8, N + 1, 3], tmp_path / "a")
    assert f"budget={N + 1}" in found[1]
    assert [found[0], found[2]] == run(source, [8, 3], tmp_path / "b")


def test_a_pool_is_at_hand_while_each_cpu_has_room_for_it(files, monkeypatch):
    _, where, rows, _, _ = files
    source = ByItself(catalog.build_selector("k_center", {}), 0, where, tuple(rows.items()))
    size = source.bytes(10)
    assert size >= N * 6 * 4 and size % N == 0

    def of(*nodes):
        told = type("Cluster", (), {"nodes": nodes})()
        monkeypatch.setattr(at_hand, "cluster", lambda: told)
        return at_hand.at_hand(source, 10)

    assert of((4.0, 4 * size)) and not of((4.0, 4 * size - 1))
    assert not of((1.0, size), (2.0, size)), "on every node"
    many = tuple((f"p{i}", AT_HAND) for i in range(2))
    monkeypatch.setattr(ByItself, "bytes", lambda self, k: sum(n for _, n in self.parts))
    source = dataclasses.replace(source, parts=many)
    assert not of((1.0, 100 * AT_HAND)), "however large the node"


@pytest.mark.slow
def test_many_configurations_have_the_manifests_of_each_alone(ray_local, tmp_path):
    from pipelines import embed, select_coreset, select_many

    folders = [tmp_path / name for name in ("many", "alone")]
    found = []
    train, _ = digits_pool(tmp_path, shards=2, each=40)
    for folder in folders:
        folder.mkdir()
        path = write_config(folder, train, score={})
        embed.run(load(path))
        write_signals(load(path))
        more = [
            ["select.method=k_center", "select.budget=9"],
            ["select.method=k_center", "select.budget=20"],
            ["score.method=prototypicality", "select.budget=9"],
            ["score.method=prototypicality", "select.budget=20", "select.balance=clusters"],
            ["score.method=prototypicality", "select.method=ccs", "select.budget=9"],
        ]
        configs = [load(path, own) for own in more]
        if folder.name == "many":
            done = dict(select_many.run(configs))
            assert done == dict.fromkeys(range(len(configs)))
            assert dict(select_many.run(configs)) == done, "all is there"
        else:
            for config in configs:
                select_coreset.make(config)
        stages = [select_coreset.finished(config)[0] for config in configs]
        found.append([read_table(s.folder / "manifest.parquet").to_pylist() for s in stages])
    assert found[0] == found[1] and [len(rows) for rows in found[0]] == [9, 20, 9, 20, 9]


def test_what_a_choice_itself_takes_counts_too(files, monkeypatch):
    """GradMatch's 16 · k² bytes, which its rows do not tell."""
    _, where, rows, _, _ = files
    source = ByItself(catalog.build_selector("gradmatch", {}), 0, where, tuple(rows.items()))
    told = type("Cluster", (), {"nodes": ((2.0, 64 << 30),)})()
    monkeypatch.setattr(at_hand, "cluster", lambda: told)
    assert at_hand.at_hand(source, 10) and not at_hand.at_hand(source, 50_000)
