"""The manifest is the local ranking, bit for bit, and only the kept rows come together."""

import pickle
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.exceptions import RayTaskError

from coreset_ray.core.rule import choose_rows
from coreset_ray.core.selection import top_rows
from coreset_ray.distributed import choose
from coreset_ray.distributed.choose import Ranking, Scored
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import MANIFEST, uid_of, uid_words, write_table
from coreset_ray.scores.blindcs import BlindCS
from coreset_ray.selectors.ccs import CCS
from coreset_ray.selectors.double_end import DoubleEnd
from coreset_ray.selectors.moderate import Moderate
from coreset_ray.selectors.top import Top

pytestmark = pytest.mark.usefixtures("ray_local")

SEED = 3
PLAIN, UNIFORM = BlindCS(tie_break="none"), BlindCS(tie_break="uniform")
RANDOM = np.random.default_rng(0).normal(size=1000)
TIED = np.random.default_rng(1).integers(0, 9, 200).astype(float)
MANY = [1] * 20 + [150, 1, 1, 28]  # enough parts for two actors
ACTOR: Any = choose.Places
GET = ray.get  # as Ray gives it to an actor, uncounted


class Here:
    """Stands in for an actor, in this process: a real one takes a second or two to start."""

    kind = ACTOR.__ray_metadata__.modified_class

    def __init__(self, *arguments):
        given = [GET(a) if isinstance(a, ray.ObjectRef) else a for a in arguments]
        self.places = self.kind(*given)

    def __getattr__(self, name):
        method = getattr(self.places, name)
        return SimpleNamespace(remote=lambda *arguments: ray.put(method(*arguments)))


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(choose, "Places", SimpleNamespace(remote=Here))
    monkeypatch.setattr(ray, "kill", lambda actor: None)


def scored_rows(score: np.ndarray, uid: list[str] | None = None) -> pa.Table:
    shards = [f"s{i % 3}.tar" for i in range(len(score))]
    keys = [f"k{i}" for i in range(len(score))]
    uid = uid or [uid_of(*pair) for pair in zip(shards, keys, strict=True)]
    columns = {"uid": uid, "shard": shards, "key": keys, "score": score, "coverage": 2 * score}
    return pa.table(columns)


def write_parts(folder, rows: pa.Table, sizes: list[int]):
    """Locations of the rows cut into parts of these sizes, the last of which takes the rest."""
    ends = [*np.cumsum([0, *sizes[:-1]]).tolist(), rows.num_rows]
    places = [locate(folder / f"part-{i}.parquet") for i in range(len(sizes))]
    for place, (a, b) in zip(places, pairwise(ends), strict=True):
        write_table(place, rows.slice(a, b - a))
    return [Scored(place.uri) for place in places]


def span_of(rows: pa.Table) -> tuple[float, float]:
    score = rows["score"].to_numpy()
    return float(score.min()), float(score.max())


def expected(method, rows: pa.Table, k: int) -> pa.Table:
    uid, score = uid_words(rows["uid"]), rows["score"].to_numpy()
    best = top_rows(method.rank_key(score, uid, SEED), uid, k)
    weight = method.weight(score[best], *span_of(rows))
    added = {
        "rank": np.arange(k),
        "score": score[best],
        "weight": weight,
        "reason": k * ["top score"],
    }
    kept = rows.take(best).select(["uid", "shard", "key"])
    return pa.table({**{n: kept[n] for n in kept.column_names}, **added}).cast(MANIFEST)


def same(left: pa.Table, right: pa.Table) -> bool:
    """Equal to the last bit: -0.0 is not 0.0 here."""
    return left.equals(right) and all(
        left[n].to_numpy().tobytes() == right[n].to_numpy().tobytes() for n in ("score", "weight")
    )


def check(folder, rows: pa.Table, sizes: list[int], ks: list[int], methods=(PLAIN, UNIFORM)):
    parts = write_parts(folder, rows, sizes)
    for method in methods:
        for k in ks:
            out = locate(folder / f"{method.tie_break}-{k}.parquet")
            choose.choose_kept(Ranking(method, Top(), SEED), parts, span_of(rows), k, out)
            assert same(pq.read_table(out.path), expected(method, rows, k))


def test_with_real_actors(tmp_path):
    check(tmp_path, scored_rows(RANDOM), [300, 1, 699], [300], [UNIFORM])
    check(tmp_path, scored_rows(TIED), MANY, [77], [PLAIN])


def test_random_scores(here, tmp_path):
    check(tmp_path, scored_rows(RANDOM), [300, 1, 699], [1, 300, 999, 1000])


def test_many_parts_most_of_one_row(here, tmp_path):
    check(tmp_path, scored_rows(TIED), MANY, [1, 77, 200])


def test_one_part(here, tmp_path):
    check(tmp_path, scored_rows(np.array([2.0, -1.0, 2.0, 5.5])), [4], [1, 2, 3, 4])


def test_a_pool_of_one_row(here, tmp_path):
    check(tmp_path, scored_rows(np.array([0.25])), [1], [1], [PLAIN])


@pytest.mark.parametrize("value", [0.0, -7.25, np.inf, -np.inf])
def test_equal_scores_go_by_uid(here, tmp_path, value):
    rows = scored_rows(np.full(300, value))
    uid = sorted(rows["uid"].to_pylist())
    parts = write_parts(tmp_path, rows, [100, 1, 199])
    for k in (1, 150, 300):
        out = locate(tmp_path / f"{k}.parquet")
        choose.choose_kept(Ranking(PLAIN, Top(), SEED), parts, (value, value), k, out)
        assert pq.read_table(out.path)["uid"].to_pylist() == uid[:k]


def test_ties_at_the_cut_that_agree_in_half_the_uid(here, tmp_path):
    """Uids alike in the first word, or in all but the last digit, and at both ends."""
    heads, tails = ["0" * 16, "f" * 16, "8" + "0" * 15], ["0" * 16, "f" * 16, "0" * 15 + "1"]
    tails += [f"{i:016x}" for i in range(2, 40)]
    uid = [head + tail for head in heads for tail in tails]
    order = np.random.default_rng(2).permutation(len(uid))
    score = np.where(np.arange(len(uid)) % 9 == 0, 2.0, 1.0)
    score[::20] = 0.5
    rows = scored_rows(score, [uid[i] for i in order])
    above = int((score > 1).sum())
    ks = [above - 1, above, above + 1, above + 17, above + 60, len(uid) - 1]
    check(tmp_path, rows, [50, 1, len(uid) - 51], ks, [PLAIN])


def test_negative_zero_ties_with_zero(here, tmp_path):
    score = np.array([0.0, -0.0] * 40 + [1.0, -1.0, 5e-324, -5e-324])
    check(tmp_path, scored_rows(score), [30, 54], [1, 2, 3, 40, 82, 83, 84], [PLAIN])


def test_none_or_more_than_there_are(here, tmp_path):
    rows = scored_rows(np.arange(5.0))
    parts, out = write_parts(tmp_path, rows, [2, 3]), locate(tmp_path / "out.parquet")
    choose.choose_kept(Ranking(PLAIN, Top(), SEED), parts, span_of(rows), 0, out)
    assert pq.read_table(out.path).schema == MANIFEST and pq.read_table(out.path).num_rows == 0
    choose.choose_kept(Ranking(PLAIN, Top(), SEED), parts, span_of(rows), 9, out)
    assert same(pq.read_table(out.path), expected(PLAIN, rows, 5))


def test_a_key_that_is_no_number_is_refused(tmp_path):
    parts = write_parts(tmp_path, scored_rows(np.array([1.0, np.nan])), [1, 1])
    with pytest.raises(RayTaskError, match="a ranking key is NaN"):
        choose.choose_kept(
            Ranking(PLAIN, Top(), SEED), parts, (0, 1), 1, locate(tmp_path / "out.parquet")
        )
    assert not (tmp_path / "out.parquet").exists()


class Spy:
    """Stands in for the last task and remembers what it was given."""

    def __init__(self, task):
        self.task, self.kept = task, []

    def remote(self, ranking, span, k, manifest, *kept):
        self.kept = list(kept)
        return self.task.remote(ranking, span, k, manifest, *kept)


def messages(monkeypatch, folder, score: np.ndarray, k: int) -> tuple[list[int], list, int]:
    """Bytes of everything the driver gets; what the last task is given; the actors' number."""
    folder.mkdir()
    rows, got, spy, get = scored_rows(score), [], Spy(choose._write), ray.get
    parts = write_parts(folder, rows, [len(score) // 20] * 20)

    def listen(refs, **options):
        value = get(refs, **options)
        got.append(len(pickle.dumps(value)))
        return value

    with monkeypatch.context() as patch:
        patch.setattr(ray, "get", listen)
        patch.setattr(choose, "_write", spy)
        choose.choose_kept(
            Ranking(PLAIN, Top(), SEED), parts, span_of(rows), k, locate(folder / "out.parquet")
        )
    kept = get(spy.kept)
    return got, [(places.shape, table.num_rows) for places, table in kept], len(kept)


def compare_sizes(monkeypatch, folder, levels: int) -> None:
    """A pool forty times the size sends the driver messages of the same size, and the last task
    the same number of rows."""
    k, sent = 37, []
    for rows in (200, 8000):
        score = np.random.default_rng(rows).integers(0, levels, rows).astype(float)
        got, kept, actors = messages(monkeypatch, folder / str(rows), score, k)
        assert actors == 2
        assert sum(number for _, number in kept) == k
        assert all(shape == (3, number) for shape, number in kept)
        sent.append(got)
    small, large = sent
    searches = 3 * 4  # words × digits
    assert len(small) == len(large) == actors * (1 + 1 + searches) + 1  # sizes twice; done
    assert all(abs(a - b) <= 8 for a, b in zip(small, large, strict=True))


def test_only_the_kept_rows_come_together_where_all_tie(monkeypatch, tmp_path):
    compare_sizes(monkeypatch, tmp_path, levels=1)


@pytest.mark.parametrize("levels", [4, 10**9])
def test_only_the_kept_rows_come_together(here, monkeypatch, tmp_path, levels):
    compare_sizes(monkeypatch, tmp_path, levels)


RULES = [Top(), DoubleEnd(0.29), CCS(beta=0.1), CCS(strata=7), Moderate()]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("score", [RANDOM[:300], TIED], ids=["random", "tied"])
def test_every_rule_keeps_what_it_keeps_in_one_process(here, tmp_path, rule, groups, score):
    rows, sizes = scored_rows(score), [1] * 20 + [150, 1, 1, len(score) - 172]
    uid, parts = uid_words(rows["uid"]), write_parts(tmp_path, rows, sizes)
    group = np.random.default_rng(7).integers(0, groups, len(score)) ** 2 // max(1, groups - 1)
    if groups > 1:
        ends = np.cumsum([0, *sizes])
        for i, (part, (a, b)) in enumerate(zip(parts, pairwise(ends), strict=True)):
            place = locate(tmp_path / f"group-{i}.parquet")
            write_table(place, pa.table({"uid": rows["uid"][a:b], "cluster": group[a:b]}))
            parts[i] = Scored(part.scores, (place.uri, "cluster"))
    ranking = Ranking(UNIFORM, rule, SEED, groups)
    for k in (0, 1, 40, 120):
        out = locate(tmp_path / f"{k}.parquet")
        choose.choose_kept(ranking, parts, span_of(rows), k, out)
        key = UNIFORM.rank_key(score, uid, SEED)
        best = choose_rows(rule, key, uid, k, SEED, group if groups > 1 else None)
        kept = pq.read_table(out.path)
        assert kept["key"].to_pylist() == [f"k{i}" for i in best]
        np.testing.assert_array_equal(kept["score"], score[best])
        assert set(kept["reason"].to_pylist()) <= {rule.reason}


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_images_kept_already_are_not_kept_again(here, tmp_path, rule):
    rows = scored_rows(TIED)
    uid, parts = uid_words(rows["uid"]), write_parts(tmp_path, rows, [*MANY[:-1], 8])
    own = np.random.default_rng(8).permutation(200)[:50]
    best = rows["uid"].take(pa.array(own)).to_pylist()
    out = locate(tmp_path / "out.parquet")
    ranking = Ranking(UNIFORM, rule, SEED)
    choose.choose_kept(ranking, parts, span_of(rows), 60, out, best)
    group = np.zeros(200, np.int64)
    group[own] = -1
    key = UNIFORM.rank_key(TIED, uid, SEED)
    expected = choose_rows(rule, key, uid, 60, SEED, group)
    assert pq.read_table(out.path)["key"].to_pylist() == [f"k{i}" for i in expected]
    with pytest.raises(ValueError, match="only 150 images are left beside 50 kept already"):
        choose.choose_kept(ranking, parts, span_of(rows), 151, out, best)
    with pytest.raises(ValueError, match=r"2 of the 52 images to keep are not in the pool \(uid"):
        choose.choose_kept(ranking, parts, span_of(rows), 5, out, [*best, "ab" * 16, "cd" * 16])


def test_a_budget_beyond_what_a_rule_keeps_is_refused(here, tmp_path):
    rows = scored_rows(RANDOM)
    parts, out = write_parts(tmp_path, rows, [1000]), locate(tmp_path / "out.parquet")
    with pytest.raises(ValueError, match=r"DoubleEnd\(beta=0.5\) keeps at most 500 of 1000 images"):
        choose.choose_kept(Ranking(PLAIN, DoubleEnd(0.5), 0), parts, span_of(rows), 501, out)
    assert not out.exists()
