"""What every method promises. Methods are found by looking, so a new one is tested unasked."""

import dataclasses
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matrices import in_shards, tally
from signal_columns import OnlyThese, pool_with_signals, rearranged

import coreset_ray
from coreset_ray import catalog, cli
from coreset_ray.core.columns import columns_of
from coreset_ray.core.method import PerSample, Sampled, Scorer
from coreset_ray.core.pool import Pool, uid_order
from coreset_ray.core.run import score_columns, select_rows, tally_shards

SMALL = {"draws": 200}  # hyper-parameters that cost time, where a method has them

every_method = pytest.mark.parametrize("name", catalog.methods())


def small(name: str) -> dict[str, int]:
    """Parameters under which the method is quick."""
    fields = {f.name for f in dataclasses.fields(catalog.method_class(name))}
    return {key: value for key, value in SMALL.items() if key in fields}


def build(name: str) -> Scorer:
    return catalog.build(name, small(name))


def pool(n: int = 60, seed: int = 0) -> Pool:
    """A generic pool: random identities (both halves), no two rows alike."""
    rng = np.random.default_rng(seed)
    uid = rng.integers(0, 2**64, (n, 2), np.uint64)
    return pool_with_signals(rng.normal(size=(n, 9)).astype(np.float32), uid, seed)


def signals(of: Pool) -> dict[str, np.ndarray]:
    """Its columns beside the embedding."""
    return {name: column for name, column in of.columns.items() if name != "embedding"}


def raw(method: Scorer, of: Pool, seed: int) -> np.ndarray:
    """The method's numbers without a runner in between; rows in ascending order of uid."""
    if isinstance(method, PerSample):
        return method.score(of, seed)
    assert isinstance(method, Sampled), f"teach this test the shape of {method}"
    return method.columns(tally(method, columns_of(of), seed, 0, method.draws).sum(axis=0))["score"]


def scored(**arguments: Any) -> np.ndarray:
    """Scores of `pool()` through the public interface."""
    of = pool()
    return coreset_ray.score(of["embedding"], signals=signals(of), **arguments)


def by_uid(of: Pool) -> Pool:
    return rearranged(of, uid_order(of.uid))


def check_selection(kept: coreset_ray.Selection, n: int, k: int) -> None:
    assert len(kept) == k == len(set(kept.rows.tolist()))
    assert np.issubdtype(kept.rows.dtype, np.integer)
    assert all(0 <= row < n for row in kept.rows)
    for column in (kept.gains, kept.weights):
        assert column.shape == (k,) and column.dtype == np.float64
        assert np.isfinite(column).all()
    assert (kept.weights >= 0).all()


def test_there_are_methods() -> None:
    assert catalog.methods()


@every_method
def test_describes_itself(name: str) -> None:
    kind = catalog.method_class(name)
    assert isinstance(kind.needs, tuple) and all(isinstance(c, str) for c in kind.needs)
    assert kind.family.strip() and kind.source.strip() and kind.cost.strip()
    assert kind.__doc__ and "Equation" in kind.__doc__ and "Cost" in kind.__doc__
    assert catalog.shape_of(kind)


@every_method
def test_is_a_frozen_record(name: str) -> None:
    method = build(name)
    assert dataclasses.is_dataclass(method) and method == build(name)
    for attribute in [*(f.name for f in dataclasses.fields(method)), "needs"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, attribute, 1)


@every_method
@pytest.mark.parametrize("budget", [0, 1, 17, 60, 0.0, 0.25, 1.0])
def test_keeps_k_distinct_rows(name: str, budget: int | float) -> None:
    k = round(budget * 60) if isinstance(budget, float) else budget
    check_selection(select_rows(build(name), pool(), budget, 0), 60, k)


@every_method
def test_scores_are_finite_and_one_a_row(name: str) -> None:
    columns, facts = score_columns(build(name), pool(), 0)
    assert "score" in columns
    for column in columns.values():
        assert column.shape == (60,) and column.dtype == np.float64
        assert np.isfinite(column).all()
    assert isinstance(facts, dict)


@every_method
def test_same_seed_same_answer_and_another_seed_another(name: str) -> None:
    first, again, other = (select_rows(build(name), pool(), 20, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.gains, again.gains)
    np.testing.assert_array_equal(first.weights, again.weights)
    assert (first.rows.tolist() != other.rows.tolist()) == build(name).seeded


@every_method
def test_order_of_the_rows_does_not_matter(name: str) -> None:
    original = pool()
    shuffle = np.random.default_rng(1).permutation(60)
    shuffled = rearranged(original, shuffle)
    scores = score_columns(build(name), original, 5)[0]
    for column, values in score_columns(build(name), shuffled, 5)[0].items():
        np.testing.assert_array_equal(values, scores[column][shuffle])
    kept = select_rows(build(name), original, 20, 5)
    moved = select_rows(build(name), shuffled, 20, 5)
    np.testing.assert_array_equal(original.uid[kept.rows], shuffled.uid[moved.rows])
    np.testing.assert_array_equal(kept.weights, moved.weights)


@every_method
def test_split_of_the_work_does_not_matter(name: str) -> None:
    """One block equals seven blocks; one run of draws equals any seven."""
    method, whole = build(name), by_uid(pool())
    cuts = np.sort(np.random.default_rng(2).integers(0, 61, 6)).tolist()
    if isinstance(method, PerSample):
        ends = zip([0, *cuts], [*cuts, 60], strict=True)
        blocks = [method.score(whole.take(slice(a, b)), 7) for a, b in ends]
        np.testing.assert_array_equal(np.concatenate(blocks), method.score(whole, 7))
        return
    assert isinstance(method, Sampled)
    columns, draws = columns_of(whole), method.draws
    cuts = [draws * cut // 60 for cut in cuts]
    ends = zip([0, *cuts], [*cuts, draws], strict=True)
    total = tally(method, columns, 7, 0, draws)
    assert np.issubdtype(total.dtype, np.integer) and total.shape[-1] == 60
    pieces = [tally(method, columns, 7, a, b) for a, b in ends]
    np.testing.assert_array_equal(sum(pieces[::-1]), total)


@every_method
@pytest.mark.parametrize("cuts", [[30], [1, 59], [5, 6, 20, 31, 32, 33]])
def test_shards_of_rows_give_the_same_bits(name: str, cuts: list[int]) -> None:
    method = build(name)
    if not isinstance(method, Sampled):
        pytest.skip("its rows do not know of each other")
    columns = columns_of(pool())
    parts = tally_shards(method, in_shards(columns, cuts), 7, 0, method.draws)
    whole = tally(method, columns, 7, 0, method.draws)
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole)


@every_method
def test_inputs_stay_as_they_were(name: str) -> None:
    given = pool()
    arrays = [given.uid, *given.columns.values()]
    before = [array.copy() for array in arrays]
    select_rows(build(name), given, 10, 0)
    raw(build(name), by_uid(given), 0)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert array.flags.writeable  # the caller's array is not frozen behind their back
        array.flags.writeable = False
    select_rows(build(name), given, 10, 0)


@every_method
def test_sees_only_what_it_needs(name: str) -> None:
    method, full = build(name), by_uid(pool())
    extra = {"label": np.zeros(60, np.int64), "dynamics.margin2": np.full((60, 2), np.nan)}
    more = Pool(full.uid, {**full.columns, **extra})
    watched = Pool(full.uid, OnlyThese(more.columns, method.needs))
    np.testing.assert_array_equal(raw(method, watched, 0), raw(method, full, 0))
    seen = score_columns(method, watched, 0)[0]["score"]
    np.testing.assert_array_equal(seen, score_columns(method, more, 0)[0]["score"])
    for column in method.needs:
        without = {key: value for key, value in more.columns.items() if key != column}
        with pytest.raises(ValueError, match=f"needs the column '{column}'"):
            score_columns(method, Pool(full.uid, without), 0)


def odd_pools() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    z = rng.normal(size=(60, 9))
    return {
        "duplicate rows": z[np.arange(60) % 12],
        "two images": z[np.arange(60) % 2],
        "constant": np.full((60, 9), 0.5),
        "zeros": np.zeros((60, 9)),
        "constant dimensions": np.where(np.arange(9) < 5, z, 1.0),
        "one far off": np.where(np.arange(60)[:, None] == 7, 1e30, z),
        "tiny": z * 1e-38,
    }


@every_method
@pytest.mark.parametrize("kind", odd_pools())
def test_odd_pools_have_an_answer(name: str, kind: str) -> None:
    of = pool_with_signals(odd_pools()[kind].astype(np.float32), pool().uid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a method may say that a pool is odd
        for column in score_columns(build(name), of, 1)[0].values():
            assert column.shape == (60,) and np.isfinite(column).all()
        for k in (0, 25, 60):
            kept, again = (select_rows(build(name), of, k, 1) for _ in range(2))
            check_selection(kept, 60, k)
            np.testing.assert_array_equal(kept.rows, again.rows)


@every_method
@pytest.mark.parametrize("n", [1, 2, 3])
def test_smallest_pools(name: str, n: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for k in range(n + 1):
            check_selection(select_rows(build(name), pool(n), k, 0), n, k)


@every_method
def test_a_smaller_budget_is_a_prefix(name: str) -> None:
    longest = select_rows(build(name), pool(), 60, 2)
    for k in (0, 1, 13, 59):
        kept = select_rows(build(name), pool(), k, 2)
        np.testing.assert_array_equal(kept.rows, longest.rows[:k])
        np.testing.assert_array_equal(kept.gains, longest.gains[:k])
        np.testing.assert_array_equal(kept.weights, longest.weights[:k])


# The public interface


@every_method
@pytest.mark.parametrize("with_uid", [True, False])
def test_notebook_interface_equals_the_runner(name: str, with_uid: bool) -> None:
    of = pool()
    uid = of.uid
    if not with_uid:
        uid = np.stack([np.zeros(60), np.arange(60)], axis=1).astype(np.uint64)
        of = Pool(uid, of.columns)
    given = {"uid": uid if with_uid else None, "signals": signals(of)}
    arguments = {"method": name, "seed": 6, **given, **small(name)}
    expected = score_columns(build(name), of, 6)[0]["score"]
    np.testing.assert_array_equal(coreset_ray.score(of["embedding"], **arguments), expected)
    ours = coreset_ray.select(of["embedding"], 0.2, **arguments)
    theirs = select_rows(build(name), of, 12, 6)
    for field in dataclasses.fields(theirs):
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))
    np.testing.assert_array_equal(ours.gains, expected[ours.rows])


@every_method
@pytest.mark.parametrize("seed", [-1, 2**64, True, 1.0, "0", None])
def test_bad_seeds_are_refused(name: str, seed: object) -> None:
    with pytest.raises(ValueError, match=r"seed=.* integer"):
        scored(method=name, seed=seed, **small(name))


@every_method
@pytest.mark.parametrize("budget", [61, -1, 1.5, -0.1, float("nan"), "10", None, True])
def test_bad_budgets_are_refused(name: str, budget: object) -> None:
    with pytest.raises(ValueError, match="budget="):
        of = pool()
        given = {"method": name, "signals": signals(of), **small(name)}
        coreset_ray.select(of["embedding"], budget, **given)  # type: ignore[arg-type]


@every_method
def test_a_bad_row_is_refused(name: str) -> None:
    z = pool()["embedding"].copy()
    z[41, 3] = np.nan
    with pytest.raises(ValueError, match="row 41"):
        coreset_ray.score(z, method=name, signals=signals(pool()), **small(name))


@every_method
def test_unknown_method_names_its_neighbour(name: str) -> None:
    for wrong in (name + "x", name.upper()[0] + name[1:]):
        with pytest.raises(ValueError, match=f"{wrong!r} does not exist: did you mean '{name}'"):
            coreset_ray.score(np.eye(3), method=wrong)
    with pytest.raises(ValueError, match=f"there are .*{name}"):
        catalog.method_class("?")


@every_method
def test_unknown_setting_names_its_neighbour(name: str) -> None:
    with pytest.raises(ValueError, match=r"no_such_setting: unknown key; .*valid keys"):
        catalog.build(name, {"no_such_setting": 1})
    for field in dataclasses.fields(catalog.method_class(name)):
        wrong = field.name + "s_"
        with pytest.raises(
            ValueError, match=f"^here.{wrong}: unknown key; did you mean '{field.name}'"
        ):
            catalog.build(name, {wrong: field.default}, "here")


def settings() -> Iterator[tuple[str, str, object]]:
    """Every setting of every method with values that no setting of its kind may take."""
    for name, kind in catalog.methods().items():
        for field in dataclasses.fields(kind):
            default = field.default
            wrong: list[object] = [None, [default], {}]
            if isinstance(default, bool):
                wrong += [0, "true"]
            elif isinstance(default, int):
                wrong += [True, float(default), str(default), -1]
            elif isinstance(default, float):
                wrong += [True, str(default), float("nan"), float("inf")]
            elif isinstance(default, str):
                wrong += [0, "no such choice"]
            yield from ((name, field.name, value) for value in wrong)


@pytest.mark.parametrize(("name", "setting", "value"), list(settings()))
def test_wrong_settings_are_refused_by_name(name: str, setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        scored(method=name, **{setting: value})


@every_method
def test_settings_may_be_numpy_numbers(name: str) -> None:
    """As they come out of a sweep over an array."""
    for key, value in small(name).items():
        assert catalog.build(name, {key: np.int64(value)}) == build(name)


def test_the_list_of_methods_says_what_each_says_of_itself(capsys) -> None:
    known = {**catalog.methods(), **catalog.selector_classes(), **catalog.filters()}
    cli.main(["methods", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == known.keys() and len(rows) > 35
    cli.main(["methods"])
    blocks = re.split(r"\n(?=\S)", capsys.readouterr().out.rstrip())
    told = {block.splitlines()[0]: block for block in blocks}
    assert told.keys() == known.keys()
    for name, method in known.items():
        row, params = rows[name], {f.name: f.default for f in dataclasses.fields(method)}
        assert row["params"] == json.loads(json.dumps(params))
        assert row["shape"] == catalog.shape_of(method) and row["needs"] == list(method.needs)
        for key in ("family", "cost", "source"):
            assert row[key] == getattr(method, key) and row[key]
            assert f"  {key:<7} {row[key]}" in told[name].splitlines()
        assert all(need in told[name] for need in method.needs)
