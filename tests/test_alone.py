"""What every method that selects by itself promises. Methods are found by looking."""

import tracemalloc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from signal_columns import OnlyThese, pool_with_signals, rearranged

import coreset_ray
from coreset_ray import catalog
from coreset_ray.core.alone import Alone, in_one_go, select_alone, select_budgets
from coreset_ray.core.greedy import Block, Greedy, Picked, greedy_turns, together
from coreset_ray.core.made_up import Widths, made_up
from coreset_ray.core.pool import Pool, uid_order
from coreset_ray.core.rule import Rule, shares
from coreset_ray.core.selection import Selection
from coreset_ray.core.whole_set import Given, WholeSet
from coreset_ray.selectors.log_determinant import LogDeterminant

N = 90
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {  # under which a method goes another way
    "facility_location of all pairs": ("facility_location", {"kernel": "dense"}),
    "facility_location of gradients": ("facility_location", {"similarity": "gradients"}),
    "facility_location of drawn rows": ("facility_location", {"optimizer": "stochastic"}),
    "graph_cut of all pairs": ("graph_cut", {"kernel": "dense"}),
    "graph_cut of gradients": ("graph_cut", {"similarity": "gradients"}),
    "graph_cut of all gradients": ("graph_cut", {"similarity": "gradients", "kernel": "dense"}),
    "log_determinant of gradients": ("log_determinant", {"similarity": "gradients"}),
    "prism of the query": ("prism", {"form": "facility_location_query"}),
    "prism given what is kept": ("prism", {"measure": "conditional_mutual_information"}),
    "similar by graph cut": ("similar", {"form": "graph_cut"}),
}


def build(name: str) -> Any:
    return catalog.build_selector(*SETTINGS.get(name, (name, {})))


ALONE = [n for n, c in catalog.selector_classes().items() if not issubclass(c, Rule)] + [*SETTINGS]
GREEDY = [name for name in ALONE if isinstance(build(name), Greedy)]
WHOLE = [n for n in ALONE if n not in GREEDY]
every = pytest.mark.parametrize("name", ALONE)
every_greedy = pytest.mark.parametrize("name", GREEDY)


def pool(n: int = N, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    uid = rng.integers(0, 2**64, (n, 2), np.uint64)
    return pool_with_signals(rng.normal(size=(n, 9)).astype(np.float32), uid, seed)


def select(
    method: Alone, of: Pool, budget: int | float, seed: int = 0, **more: Any
) -> coreset_ray.Selection:
    """With a target set for those that ask for one."""
    if isinstance(method, WholeSet) and method.targeted:
        more["target"] = of["embedding"][uid_order(of.uid)[:7]] + np.float32(0.1)
    return select_alone(method, of, budget, seed, **more)


def check(kept: coreset_ray.Selection, n: int, k: int) -> None:
    assert len(kept) == k == len(set(kept.rows.tolist()))
    assert all(0 <= row < n for row in kept.rows)
    for column in (kept.gains, kept.weights):
        assert column.shape == (k,) and column.dtype == np.float64 and np.isfinite(column).all()
    assert (kept.weights >= 0).all()


@every
@pytest.mark.parametrize("budget", [0, 1, 17, 90, 0.0, 0.3, 1.0])
def test_keeps_k_distinct_rows(name: str, budget: int | float) -> None:
    k = round(budget * N) if isinstance(budget, float) else budget
    check(select(build(name), pool(), budget), N, k)


@every
@pytest.mark.parametrize("n", [1, 2, 3])
def test_smallest_pools(name: str, n: int) -> None:
    for k in range(n + 1):
        check(select(build(name), pool(n), k), n, k)


@every
def test_same_seed_same_answer_and_another_seed_another(name: str) -> None:
    method = build(name)
    first, again, other = (select(method, pool(), 20, seed) for seed in (3, 3, 5))
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.gains, again.gains)
    np.testing.assert_array_equal(first.weights, again.weights)
    assert (first.rows.tolist() != other.rows.tolist()) == method.seeded


@every
def test_order_of_the_rows_does_not_matter(name: str) -> None:
    method, of = build(name), pool()
    whole = select(method, of, 40)
    for order in (uid_order(of.uid), np.random.default_rng(1).permutation(N)):
        moved = select(method, rearranged(of, order), 40)
        np.testing.assert_array_equal(order[moved.rows], whole.rows)
        np.testing.assert_array_equal(moved.gains, whole.gains)
        np.testing.assert_array_equal(moved.weights, whole.weights)


@every
def test_a_smaller_budget_is_a_prefix_where_nested(name: str) -> None:
    method = build(name)
    if isinstance(method, WholeSet) and not method.nested:
        pytest.skip("chooses anew for each budget")
    whole = select(method, pool(), N)
    for k in (0, 1, 13, 89):
        kept, first = select(method, pool(), k), whole.first(k)
        np.testing.assert_array_equal(kept.rows, first.rows)
        if in_one_go(method):
            np.testing.assert_array_equal(kept.gains, first.gains)
            np.testing.assert_array_equal(kept.weights, first.weights)


@every
@pytest.mark.parametrize("grouped", [False, True])
def test_budgets_in_one_go_are_those_chosen_apart(name: str, grouped: bool) -> None:
    """Groups of 5, 25 and 60, of which some rows take no part; budgets in no order, one twice."""
    of, ks = pool(), [20, 0, 61, 20, 7]
    group = np.where(np.arange(N) < 5, 0, np.where(np.arange(N) < 30, 3, 1))
    group[[3, 40, 41]] = -1
    more: dict[str, Any] = {"group": group if grouped else None}
    if isinstance(build(name), WholeSet) and build(name).targeted:
        more["target"] = of["embedding"][:7] + np.float32(0.1)
    together = select_budgets(build(name), of, ks, 3, **more)
    for k, found in zip(ks, together, strict=True):
        apart = select_alone(build(name), of, k, 3, **more)
        for field in ("rows", "gains", "weights"):
            np.testing.assert_array_equal(getattr(found, field), getattr(apart, field))


@every
def test_rows_kept_already_shape_the_choice(name: str) -> None:
    method, of = build(name), pool()
    kept = np.array([5, 80, 33, 34])
    for k in (0, 1, 30, N - 4):
        found = select(method, of, k, kept=kept)
        check(found, N, k)
        assert not set(found.rows.tolist()) & set(kept.tolist())
    whole = select(method, of, 40)
    if isinstance(method, Greedy) or method.continues:
        rest = select(method, of, 28, kept=whole.rows[:12])
        np.testing.assert_array_equal(rest.rows, whole.rows[12:])
    with pytest.raises(ValueError, match=r"budget of 87: only 86 images are left beside 4"):
        select(method, of, 87, kept=kept)
    for wrong in ([3, 3], [-1], [N], [[1]], [1.0]):
        with pytest.raises(ValueError, match="kept"):
            select(method, of, 5, kept=np.array(wrong))


@every
def test_groups_are_represented_alike(name: str) -> None:
    group = np.where(np.arange(N) < 5, 0, np.where(np.arange(N) < 30, 3, 1))  # 2 is empty
    for k in (0, 2, 20, N):
        kept = select(build(name), pool(), k, group=group)
        check(kept, N, k)
        got = np.bincount(group[kept.rows], minlength=4)
        assert got.tolist() == shares(k, np.bincount(group, minlength=4)).tolist()


@every
def test_inputs_stay_as_they_were(name: str) -> None:
    of = pool()
    arrays = [of.uid, *of.columns.values()]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    select(build(name), of, 20, kept=np.array([3]))
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@every
def test_sees_only_what_it_needs(name: str) -> None:
    method, of = build(name), pool()
    label = {"label": np.zeros(N, np.int64)}
    more = Pool(of.uid, OnlyThese({**of.columns, **label}, (*method.needs, "embedding")))
    np.testing.assert_array_equal(select(method, more, 20).rows, select(method, of, 20).rows)
    for column in method.needs:
        without = {key: value for key, value in of.columns.items() if key != column}
        if column == "embedding" and isinstance(method, WholeSet) and method.targeted:
            continue
        with pytest.raises(ValueError, match=f"needs the column '{column}'"):
            select(method, Pool(of.uid, without), 20)


@every
def test_odd_pools_have_an_answer(name: str) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(N, 9))
    for odd in (
        np.ones((N, 4)),
        np.zeros((N, 4)),
        z[np.arange(N) % 3],
        np.where(np.arange(N)[:, None] == 7, 1e30, z),
        np.where(np.arange(N)[:, None] % 5 == 0, 0, z),
        z * 1e-38,
    ):
        of = pool_with_signals(odd.astype(np.float32), pool().uid)
        for k in (1, 40, N):
            check(select(build(name), of, k), N, k)


@every_greedy
@pytest.mark.parametrize("cuts", [(), (30,), (1, 7, 7, 60, 89)])
@pytest.mark.parametrize("offers", [1, 3, 64])
def test_blocks_and_offers_do_not_matter(name: str, cuts: tuple[int, ...], offers: int) -> None:
    method, of, number = build(name), pool(), np.arange(N)
    kept = np.array([70, 3, 12, 44])
    for given in (None, kept):
        whole = together(greedy_turns(method, of, number, 60, 0, kept=given))
        blocks = together(
            greedy_turns(method, of, number, 60, 0, kept=given, cuts=cuts, offers=offers)
        )
        np.testing.assert_array_equal(blocks.number, whole.number)
        np.testing.assert_array_equal(blocks.gain, whole.gain)


def test_a_block_finds_its_rows_among_any() -> None:
    rng = np.random.default_rng(0)
    of = pool(30)
    for size in (0, 1, 5, 12):
        own = np.sort(rng.choice(30, size, replace=False))
        block = Block(build("k_center"), of.take(own), own)
        for _ in range(20):
            number = rng.choice(30, 8, replace=False)
            assert block.place_of(number).tolist() == [
                own.tolist().index(n) for n in number if n in own
            ]


@every_greedy
def test_gains_fall_where_they_are_said_to(name: str) -> None:
    method = build(name)
    if not method.falls:
        pytest.skip("they may rise")
    of = method.prepare(pool().restrict(method.needs))
    gain = method.start(of, 0, method.survey(of), N)
    for row in np.random.default_rng(0).permutation(N)[:40]:
        if gain[row] < 0:
            continue
        before = gain.copy()
        one = np.array([row])
        method.take(gain, of, np.arange(N), Picked(one, gain[one], of.take(one)))
        assert (gain <= before).all()


@pytest.mark.parametrize("name", WHOLE)
def test_two_rounds_give_an_answer_that_no_order_moves(name: str) -> None:
    method, of = build(name), pool()
    kept = np.array([2, 50])
    if method.weighs:
        with pytest.raises(ValueError, match=r"partitions=4.* weighed by all rows.*balance"):
            select(method, of, 20, kept=kept, partitions=4)
        return
    whole = select(method, of, 20, kept=kept, partitions=4)
    check(whole, N, 20)
    assert not set(whole.rows.tolist()) & set(kept.tolist())
    order = np.random.default_rng(1).permutation(N)
    place = np.argsort(order)
    moved = select(method, rearranged(of, order), 20, kept=place[kept], partitions=4)
    np.testing.assert_array_equal(order[moved.rows], whole.rows)
    check(select(method, of, N - 2, kept=kept, partitions=40), N, N - 2)


HOLDS = [
    *((n, {}, Widths(64, tokens=32)) for n in WHOLE if n not in {"craig", *SETTINGS}),
    *((n, {}, Widths(16, classes=300, hidden=64)) for n in ("cal", "glister", "gradmatch")),
    ("cal", {}, Widths(16, neighbors=10)),
    ("retrieve", {}, Widths(16, classes=300, hidden=64)),
]


@pytest.mark.parametrize(("name", "params", "widths"), HOLDS)
def test_a_choice_holds_no_more_of_its_columns_than_it_says(
    name: str, params: dict[str, Any], widths: Widths
) -> None:
    """By its growth from ten to twenty thousand rows, which leaves out what does not grow. CRAIG's
    distances grow to that size in full, as do those of gradients below."""
    method = catalog.build_selector(name, params)
    assert isinstance(method, Greedy | WholeSet)
    most = [_peak(method, widths, n) for n in (1000, 10_000, 20_000)]  # the first compiles
    asked = 10_000 * _said(method, widths)
    each = 10_000 * sum(widths.bytes(column) for column in method.needs)
    assert each + most[2] - most[1] < asked + 0.05 * method.copies * each


@pytest.mark.parametrize("name", ["facility_location", "graph_cut", "craig"])
def test_neighbours_of_gradients_are_counted_too(name: str) -> None:
    """Between rows enough that blocks of distances no longer grow."""
    params = {} if name == "craig" else {"similarity": "gradients"}
    method = catalog.build_selector(name, {"neighbors": 200, **params})
    assert isinstance(method, WholeSet)
    widths = Widths(16, classes=2, hidden=4)
    most = [_peak(method, widths, n) for n in (1000, 6000, 12_000)]
    each = 6000 * sum(widths.bytes(column) for column in method.needs)
    assert each + most[2] - most[1] < 1.05 * 6000 * _said(method, widths)


def _peak(method: Any, widths: Widths, n: int) -> int:
    rows = made_up(method.needs, n, widths)
    more = {"target": rows["embedding"][:20].copy()} if method.targeted else {}
    tracemalloc.start()
    try:
        select_alone(method, rows, 8, 0, **more)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _said(method: Any, widths: Widths) -> int:
    """Bytes a row that a choice holds, by what the method says."""
    numbers = {column: widths.numbers(column) for column in method.needs}
    each = sum(widths.bytes(column) for column in method.needs)
    return method.copies * each + method.beside(numbers)


def test_log_determinant_says_what_it_grows_to() -> None:
    """Where what holds the vectors taken has just doubled."""
    method = LogDeterminant()
    function = method.function(made_up(("embedding",), 200, Widths(4000)), Given(np.empty(0, int)))
    function.add(0)
    before = function.basis.nbytes
    tracemalloc.start()
    for row in range(1, 129):
        function.add(row)
    grown = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = method.scratch(129, {"embedding": 4000})
    assert 0.9 * said < before + grown < 1.3 * said


@dataclass(frozen=True)
class Seen(WholeSet):
    """Keeps the first rows, and what it was shown."""

    shown: list[Pool]
    needs: ClassVar[tuple[str, ...]] = ("knn.neighbor",)

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        self.shown.append(pool)
        return Selection(np.arange(k), np.zeros(k), np.ones(k))


def test_neighbours_elsewhere_are_no_row_at_hand() -> None:
    """Whether they are of another group or were none of the rows to begin with."""
    uid = np.stack([np.zeros(5), np.arange(5)], axis=1).astype(np.uint64)
    of = Pool(uid, {"knn.neighbor": np.array([[1, 4], [-1, 0], [4, 3], [2, -1], [0, 2]])})
    method = Seen([])
    select_alone(method, of, 2, 0, group=np.array([0, 0, 1, 1, 0]))
    first, second = (pool["knn.neighbor"].tolist() for pool in method.shown)
    assert first == [[1, 2], [-1, 0], [0, -1]] and second == [[-1, 1], [0, -1]]


@every
def test_the_notebook_interface_equals_the_runner(name: str) -> None:
    of, method = pool(), build(name)
    given = {column: of[column] for column in of.columns if column != "embedding"}
    more: dict[str, Any] = {"kept": np.array([4, 9])}
    if isinstance(method, WholeSet) and method.targeted:
        more["target"] = of["embedding"][:3]
    known, params = SETTINGS.get(name, (name, {}))
    told: dict[str, Any] = {"method": known, "signals": given, **params}
    found = coreset_ray.select(of["embedding"], 9, uid=of.uid, **told, **more)
    expected = select_alone(method, of, 9, 0, **more)
    np.testing.assert_array_equal(found.rows, expected.rows)
    with pytest.raises(ValueError, match="selects by itself"):
        coreset_ray.select(of["embedding"], 9, selector="ccs", **told)


@every
def test_a_target_set_is_as_wide_as_the_pool_where_it_is_asked_for(name: str) -> None:
    of, method = pool(), build(name)
    if isinstance(method, WholeSet) and method.targeted:
        for wrong in (None, np.empty((0, 9)), np.ones((3, 8)), np.ones(9)):
            with pytest.raises(ValueError, match="target set"):
                select_alone(method, of, 5, 0, target=wrong)
    else:
        with pytest.raises(ValueError, match="takes no target set: leave it out"):
            select_alone(method, of, 5, 0, target=np.ones((3, 9)))


def test_what_scores_keep_is_the_best_of_what_is_not_kept_already() -> None:
    embedding = pool()["embedding"]
    ranking = coreset_ray.select(embedding, len(embedding), method="random", seed=3).rows
    own = ranking[[0, 4, 7]]
    left = [row for row in ranking if row not in own]
    found = coreset_ray.select(embedding, 9, method="random", seed=3, kept=own)
    assert found.rows.tolist() == left[:9]
    group = np.arange(len(embedding)) % 2
    even = coreset_ray.select(embedding, 8, method="random", seed=3, kept=own, group=group)
    assert set(even.rows) == {r for g in (0, 1) for r in [x for x in left if group[x] == g][:4]}
    with pytest.raises(ValueError, match=f"only {len(left)} images are left beside 3 kept already"):
        coreset_ray.select(embedding, len(embedding), method="random", kept=own)


def test_signals_that_are_no_numbers_are_refused_by_name() -> None:
    of = pool()
    given = {n: c.copy() for n, c in of.columns.items() if n != "embedding"}
    given["knn.similarity"][7, 1] = np.nan
    with pytest.raises(ValueError, match=r"signals\['knn.similarity'\] row 7 holds a NaN"):
        coreset_ray.select(of["embedding"], 9, method="d2", uid=of.uid, signals=given)


@pytest.mark.parametrize("name", [n for n in WHOLE if not build(n).weighs])
def test_partitions_that_get_no_row_give_none(name: str) -> None:
    """Of a hundred parts for sixty rows some are empty, or hold nothing but what is kept."""
    method, of = build(name), pool()
    kept = np.array([2, 50])
    found = select(method, of, 20, kept=kept, partitions=100)
    check(found, N, 20)
    assert not set(found.rows.tolist()) & set(kept.tolist())


def test_scores_take_no_target_and_no_partitions() -> None:
    for key, value in (("target", np.ones((2, 9))), ("partitions", 2)):
        with pytest.raises(ValueError, match="leave out target and partitions"):
            coreset_ray.select(pool()["embedding"], 5, method="random", **{key: value})
