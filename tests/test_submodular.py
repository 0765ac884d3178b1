"""Submodular functions, what maximises them, and the selectors made of both, against slow and
obvious forms."""

import dataclasses
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from signal_columns import neighbors, pool_with_signals

from coreset_ray import catalog
from coreset_ray.core import directions
from coreset_ray.core import similarity as kernels
from coreset_ray.core.alone import select_alone
from coreset_ray.core.directions import OfEmbeddings, OfGradients
from coreset_ray.core.exact import grid_rows
from coreset_ray.core.log_determinant import LogDeterminant
from coreset_ray.core.maximize import maximize
from coreset_ray.core.pool import Pool, pool_of
from coreset_ray.core.submodular import (
    FacilityLocation,
    Function,
    GraphCut,
    LinearSums,
    Modular,
    NeighborSums,
    linear_bits,
)
from coreset_ray.core.whole_set import WholeSet

N = 30
OPTIMIZERS = ("naive", "lazy", "stochastic", "lazier")
BOUND = 1 - 1 / np.e


def embedding_of(n: int = N, seed: int = 0, m: int = 6) -> np.ndarray:
    """Rows around a few centres, some of them twice."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(4, m))[rng.integers(0, 4, n)] + 0.5 * rng.normal(size=(n, m))
    z[n // 2] = z[1]
    return z.astype(np.float32)


def pool_at(n: int = N, seed: int = 0, m: int = 6) -> Pool:
    """With uids in ascending order, so that rows are numbered as methods see them."""
    uid = np.stack([np.zeros(n, np.uint64), np.arange(n, dtype=np.uint64)], axis=1)
    return pool_with_signals(embedding_of(n, seed, m), uid, seed)


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True)


def cosines(z: np.ndarray) -> np.ndarray:
    found = unit(z) @ unit(z).T
    np.fill_diagonal(found, 1)
    return found


def sparse_cosines(pool: Pool, k: int) -> np.ndarray:
    """The whole matrix of which the sparse kernel is made."""
    s = np.eye(len(pool))
    for i in range(len(pool)):
        for j, similarity in zip(
            pool["knn.neighbor"][i, :k], pool["knn.similarity"][i, :k], strict=True
        ):
            if j >= 0:
                s[i, j] = s[j, i] = max(s[i, j], s[j, i], np.clip(similarity, 0, 1))
    return s


def gradient_of(pool: Pool) -> np.ndarray:
    """(n, c·(h + 1)) float64, each whole."""
    residual = pool["proxy.probability"].astype(np.float64)
    residual[np.arange(len(pool)), pool["proxy.label"]] -= 1
    feature = np.concatenate([pool["proxy.feature"], np.ones((len(pool), 1))], axis=1)
    return np.array([np.outer(*pair).ravel() for pair in zip(residual, feature, strict=True)])


def nearest_gradients(pool: Pool, k: int) -> np.ndarray:
    """The matrix of similarities of gradients that the sparse kernel keeps of all."""
    s = cosines(gradient_of(pool))
    kept = np.eye(len(s))
    for i in range(len(s)):
        others = [j for j in np.argsort(-s[i], kind="stable").tolist() if j != i]
        for j in others[:k]:
            kept[i, j] = kept[j, i] = max(s[i, j], 0)
    return kept


def facility(s: np.ndarray, chosen: list[int]) -> float:
    return float(s[:, chosen].max(axis=1).sum()) if chosen else 0.0


def cut(s: np.ndarray, chosen: list[int], redundancy: float) -> float:
    return float(s[:, chosen].sum() - redundancy * s[np.ix_(chosen, chosen)].sum())


def log_determinant(z: np.ndarray, chosen: list[int], scale: float) -> float:
    x = unit(z)[chosen]
    return float(np.linalg.slogdet(np.eye(len(chosen)) + scale * x @ x.T)[1])


Value = Callable[[list[int]], float]


def functions(pool: Pool) -> dict[str, tuple[Callable[[], Function], Value]]:
    """Each function with its value by definition."""
    z = pool["embedding"]
    positive, half, near = np.maximum(cosines(z), 0), (1 + cosines(z)) / 2, sparse_cosines(pool, 4)
    rng = np.random.default_rng(5)
    floor, cap = 0.3 * rng.random(len(pool)), 0.4 + 0.6 * rng.random(len(pool))
    extra = rng.random(len(pool))
    g = gradient_of(pool)
    alike, close = cosines(g), nearest_gradients(pool, 4)
    coarse = OfGradients(pool, linear_bits(len(pool)))

    def sparse() -> kernels.Sparse:
        return kernels.neighbor_kernel(pool, "embeddings", 4)

    def capped(chosen: list[int]) -> float:
        best = near[:, chosen].max(axis=1) if chosen else np.zeros(len(near))
        served = np.maximum(np.minimum(best, cap) - floor, 0).sum()
        return float(served + extra[chosen].sum())

    return {
        "facility location": (lambda: FacilityLocation(sparse()), lambda s: facility(near, s)),
        "dense": (
            lambda: FacilityLocation(kernels.Dense(OfEmbeddings(z))),
            lambda s: facility(positive, s),
        ),
        "capped": (
            lambda: FacilityLocation(sparse(), floor=floor, cap=cap, extra=extra),
            capped,
        ),
        "graph cut": (lambda: GraphCut(NeighborSums(sparse()), 0.5), lambda s: cut(near, s, 0.5)),
        "linear cut": (
            lambda: GraphCut(LinearSums(OfEmbeddings(z, linear_bits(len(z)))), 0.5),
            lambda s: cut(half, s, 0.5),
        ),
        "log-determinant": (
            lambda: LogDeterminant(OfEmbeddings(z), 2.0),
            lambda s: log_determinant(z, s, 2.0),
        ),
        "facility location of gradients": (
            lambda: FacilityLocation(kernels.neighbor_kernel(pool, "gradients", 4)),
            lambda s: facility(close, s),
        ),
        "dense, of gradients": (
            lambda: FacilityLocation(kernels.Dense(OfGradients(pool))),
            lambda s: facility(np.maximum(alike, 0), s),
        ),
        "linear cut of gradients": (
            lambda: GraphCut(LinearSums(coarse), 0.5),
            lambda s: cut((1 + alike) / 2, s, 0.5),
        ),
        "log-determinant of gradients": (
            lambda: LogDeterminant(OfGradients(pool), 2.0),
            lambda s: log_determinant(g, s, 2.0),
        ),
        "modular": (lambda: Modular(extra), lambda s: float(extra[s].sum())),
    }


NAMES = list(functions(pool_at()))
every = pytest.mark.parametrize("name", NAMES)


@every
def test_gains_are_differences_of_values(name: str) -> None:
    make, value = functions(pool_at())[name]
    function, chosen = make(), []
    rng = np.random.default_rng(1)
    for row in rng.permutation(N)[:12].tolist():
        free = np.setdiff1d(np.arange(N), chosen)
        some = np.sort(rng.choice(free, 5, replace=False))  # not all rows are asked for each time
        gains = [value([*chosen, j]) - value(chosen) for j in some.tolist()]
        np.testing.assert_allclose(function.gain(some), gains, rtol=1e-5, atol=3e-5)
        function.take(row)
        chosen.append(row)
        assert function.value() == pytest.approx(value(chosen), rel=1e-5)


@every
def test_monotone_and_submodular(name: str) -> None:
    """A gain is never below 0, and never rises when more is taken."""
    make, _ = functions(pool_at())[name]
    rng = np.random.default_rng(2)
    for _ in range(10):
        function, order = make(), rng.permutation(N)
        rows = np.sort(order[20:])
        before = function.gain(rows)
        for row in order[:20].tolist():
            function.take(row)
            gains = function.gain(rows)
            assert (gains <= before).all() and (gains >= -1e-9).all()
            before = gains


@every
@pytest.mark.parametrize("k", [1, 7, N])
def test_lazy_is_naive_with_fewer_gains(name: str, k: int) -> None:
    make, _ = functions(pool_at())[name]
    for first, second in (("naive", "lazy"), ("stochastic", "lazier")):
        slow, quick = (maximize(make(), np.arange(N), k, o, seed=3) for o in (first, second))
        np.testing.assert_array_equal(quick.rows, slow.rows)
        np.testing.assert_array_equal(quick.gains, slow.gains)


class Counting(Function):
    """Counts the gains that are computed."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function, self.count = function, 0

    def gain(self, rows: np.ndarray) -> np.ndarray:
        self.count += len(rows)
        return self.function.gain(rows)

    def add(self, row: int) -> None:
        self.function.take(row)


def test_lazier_optimisers_compute_fewer_gains() -> None:
    pool, k, n = pool_at(400), 40, 400
    used = {}
    for optimizer in OPTIMIZERS:
        counting = Counting(FacilityLocation(kernels.neighbor_kernel(pool, "embeddings", 5)))
        maximize(counting, np.arange(n), k, optimizer)
        used[optimizer] = counting.count
    assert used["naive"] == sum(n - i for i in range(k)) + k
    assert used["lazy"] < used["naive"] / 4
    assert used["stochastic"] <= k * (np.ceil(n / k * np.log(10)) + 1)
    assert used["lazier"] < n + used["stochastic"]


def best_value(value: Value, n: int, k: int) -> float:
    return max(value(list(some)) for some in combinations(range(n), k))


@every
def test_greedy_is_worth_its_share_of_the_best(name: str) -> None:
    """At least 1 - 1/e; stochastic ones 1 - 1/e - epsilon in the mean over seeds."""
    for seed in range(4):
        make, value = functions(pool_at(11, seed))[name]
        most = best_value(value, 11, 4)
        for optimizer in OPTIMIZERS:
            runs = range(1 if optimizer in ("naive", "lazy") else 10)
            found = []
            for run in runs:
                rows = maximize(make(), np.arange(11), 4, optimizer, seed=run, epsilon=0.3).rows
                found.append(value(rows.tolist()))
            share = BOUND - (0.3 if len(runs) > 1 else 0)
            assert share * most - 1e-6 <= np.mean(found) <= most + 1e-6


def test_two_rounds_are_worth_less_than_one_and_more_than_random() -> None:
    """Few neighbours are left among what the parts chose."""
    pool = pool_at(300)
    near = sparse_cosines(pool, 5)
    method = catalog.build_selector("facility_location", {})
    assert not isinstance(method, catalog.Rule)
    one = select_alone(method, pool, 12, 0).rows.tolist()
    two = select_alone(method, pool, 12, 0, partitions=5).rows.tolist()
    rng = np.random.default_rng(0)
    random = [facility(near, rng.choice(300, 12, replace=False).tolist()) for _ in range(100)]
    assert one != two and facility(near, two) >= max(0.7 * facility(near, one), max(random))


def test_few_neighbors_are_almost_as_good_as_all() -> None:
    pool = pool_of(embedding_of(400, m=20))
    near = Pool(pool.uid, {**pool.columns, **neighbors(pool["embedding"])})
    s = np.maximum(cosines(pool["embedding"]), 0)
    rows = [
        maximize(FacilityLocation(kernel), np.arange(400), 40, "lazy").rows.tolist()
        for kernel in (
            kernels.Dense(OfEmbeddings(pool["embedding"])),
            kernels.neighbor_kernel(near, "embeddings", 5),
        )
    ]
    assert facility(s, rows[0]) >= facility(s, rows[1]) >= 0.98 * facility(s, rows[0])


def slow_greedy(value: Value, n: int, k: int, kept: tuple[int, ...] = ()) -> list[int]:
    """By values alone, differences below 1e-6 a tie; what is kept is no argument of the value."""
    chosen: list[int] = []
    for _ in range(k):
        free = [j for j in range(n) if j not in chosen and j not in kept]
        gains = np.array([value([*chosen, j]) for j in free])
        chosen.append(free[int(np.argmax(gains >= gains.max() - 1e-6))])
    return chosen


def test_labels_are_read_only_where_classes_are_wanted() -> None:
    wanted = {"measure": "mutual_information", "wanted": [1]}
    plain, told = (catalog.build_selector("similar", p) for p in ({}, wanted))
    assert set(told.needs) - set(plain.needs) == {"pseudo_labels.label"}


def run(name: str, pool: Pool, k: int, params: dict[str, Any], **more: Any) -> list[int]:
    method = catalog.build_selector(name, params)
    assert not isinstance(method, catalog.Rule)
    return select_alone(method, pool, k, 0, **more).rows.tolist()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_selectors_maximise_their_function(optimizer: str) -> None:
    pool = pool_at()
    z = pool["embedding"]
    near, half = sparse_cosines(pool, 5), (1 + cosines(z)) / 2
    kept = (4, 20)
    told = {"optimizer": optimizer, "epsilon": 1e-9}  # the sample is then all rows
    warm = {"kept": np.array(kept)}
    g, by = gradient_of(pool), {"similarity": "gradients"}
    cases: list[tuple[str, dict[str, Any], Value]] = [
        ("facility_location", {}, lambda s: facility(near, [*kept, *s])),
        (
            "facility_location",
            {"kernel": "dense"},
            lambda s: facility(np.maximum(cosines(z), 0), [*kept, *s]),
        ),
        ("graph_cut", {"redundancy": 0.3}, lambda s: cut(near, [*kept, *s], 0.3)),
        ("graph_cut", {"kernel": "dense"}, lambda s: cut(half, [*kept, *s], 0.5)),
        ("log_determinant", {}, lambda s: log_determinant(z, [*kept, *s], 1.0)),
        (
            "facility_location",
            {**by, "neighbors": 6},
            lambda s: facility(nearest_gradients(pool, 6), [*kept, *s]),
        ),
        (
            "graph_cut",
            {**by, "neighbors": 6},
            lambda s: cut(nearest_gradients(pool, 6), [*kept, *s], 0.5),
        ),
        (
            "graph_cut",
            {**by, "kernel": "dense"},
            lambda s: cut((1 + cosines(g)) / 2, [*kept, *s], 0.5),
        ),
        ("log_determinant", by, lambda s: log_determinant(g, [*kept, *s], 1.0)),
    ]
    for name, params, value in cases:
        found = run(name, pool, 8, {**params, **told}, **warm)
        if optimizer in ("naive", "lazy"):
            assert found == slow_greedy(value, N, 8, kept), (name, params)
        else:
            best = slow_greedy(value, N, 8, kept)
            assert value(found) >= 0.9 * value(best), (name, params)


def test_fass_filters_by_entropy() -> None:
    pool = pool_at()
    p, kept = pool["proxy.probability"].astype(float), (4, 20)
    entropy = -(p * np.log(p)).sum(axis=1)
    order = [j for j in np.argsort(-entropy).tolist() if j not in kept]
    near = sparse_cosines(pool, 5)
    away = tuple(set(range(N)) - set(order[:13]))  # ⌈2.5 · 5⌉ pass
    best = slow_greedy(lambda s: facility(near, [*kept, *s]), N, 5, away)
    assert run("fass", pool, 5, {"factor": 2.5}, kept=np.array(kept)) == best


def measures(pool: Pool, q: np.ndarray, p: list[int], eta: float, nu: float) -> dict[str, Value]:
    """The information measures by definition. q: embeddings of the query; p: private rows."""
    near, z = sparse_cosines(pool, 5), unit(pool["embedding"])
    to_query = np.maximum(z @ unit(q).T, 0)
    own, half = to_query.max(axis=1), (1 + z @ unit(q).T) / 2
    private = near[:, p].max(axis=1) if p else np.zeros(len(pool))
    all_half = (1 + cosines(pool["embedding"])) / 2
    beside = np.zeros_like(to_query)  # for each query, only the rows nearest to it
    for i in range(len(q)):
        rows = np.argsort(-to_query[:, i], kind="stable")[:5]
        beside[rows, i] = to_query[rows, i]

    def over_pool(s: list[int]) -> np.ndarray:
        return near[:, s].max(axis=1)

    return {
        "flvmi": lambda s: np.minimum(over_pool(s), eta * own).sum(),
        "flqmi": lambda s: beside[s].max(axis=0).sum() + eta * own[s].sum(),
        "gcmi": lambda s: half[s].sum(),
        "flcg": lambda s: np.maximum(over_pool(s) - nu * private, 0).sum(),
        "gccg": lambda s: cut(all_half, s, 0.4) - 2 * 0.4 * nu * all_half[np.ix_(p, s)].sum(),
        "flcmi": lambda s: np.maximum(np.minimum(over_pool(s), eta * own) - nu * private, 0).sum(),
    }


FORMS = {
    "flvmi": ("mutual_information", "facility_location"),
    "flqmi": ("mutual_information", "facility_location_query"),
    "gcmi": ("mutual_information", "graph_cut"),
    "flcg": ("conditional_gain", "facility_location"),
    "gccg": ("conditional_gain", "graph_cut"),
    "flcmi": ("conditional_mutual_information", "facility_location"),
}


@pytest.mark.parametrize("of", FORMS)
@pytest.mark.parametrize(("eta", "nu"), [(1.0, 1.0), (0.7, 0.5)])
def test_information_measures(of: str, eta: float, nu: float) -> None:
    pool = pool_at()
    measure, form = FORMS[of]
    told = {"measure": measure, "form": form, "neighbors": 5, "eta": eta, "nu": nu}
    label, kept = pool["pseudo_labels.label"], [4, 20, 7, 11]
    hit = np.isin(label[kept], [0, 1])
    assert hit.any() and not hit.all()
    if measure == "conditional_gain":
        value = measures(pool, pool["embedding"], kept, eta, nu)[of]
        told |= {"redundancy": 0.4}
    else:
        query = pool["embedding"][kept][hit]
        value = measures(pool, query, np.array(kept)[~hit].tolist(), eta, nu)[of]
        told |= {"wanted": [0, 1]}
    found = run("similar", pool, 6, told, kept=np.array(kept))
    assert found == slow_greedy(value, N, 6, tuple(kept))


@pytest.mark.parametrize("of", ["flvmi", "flqmi", "gcmi", "flcmi"])
def test_prism_resembles_the_target_set(of: str) -> None:
    pool, rng = pool_at(), np.random.default_rng(9)
    target = (pool["embedding"][[3, 8]] + 0.2 * rng.normal(size=(2, 6))).astype(np.float32)
    measure, form = FORMS[of]
    kept = [4, 20]
    value = measures(pool, target, kept if of == "flcmi" else [], 0.8, 0.5)[of]
    told = {"measure": measure, "form": form, "neighbors": 5, "eta": 0.8, "nu": 0.5}
    found = run("prism", pool, 6, told, kept=np.array(kept), target=target)
    warm = [] if of == "flcmi" else kept  # without a condition they count as chosen
    assert found == slow_greedy(lambda s: value([*warm, *s]), N, 6, tuple(kept))
    s = unit(pool["embedding"]) @ unit(target).T
    assert s[run("prism", pool, 1, told, target=target)].mean() > s.mean() + 0.2


def test_dense_gains_are_the_same_whether_held_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    held = maximize(
        FacilityLocation(kernels.Dense(OfEmbeddings(embedding_of()))), np.arange(N), 9, "lazy"
    )
    monkeypatch.setattr(kernels, "_HELD", 0)
    asked = maximize(
        FacilityLocation(kernels.Dense(OfEmbeddings(embedding_of()))), np.arange(N), 9, "lazy"
    )
    np.testing.assert_array_equal(held.rows, asked.rows)
    np.testing.assert_array_equal(held.gains, asked.gains)


def test_gradients_are_alike_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_at()
    found = {}
    for tile, block in ((4096, 1 << 22), (7, 1)):
        monkeypatch.setattr(kernels, "_TILE", tile)
        monkeypatch.setattr(directions, "_BLOCK", block)
        for name in ("facility_location", "graph_cut", "log_determinant"):
            method = catalog.build_selector(name, {"similarity": "gradients"})
            assert not isinstance(method, catalog.Rule)
            found[name, tile] = select_alone(method, pool, 12, 0)
    for name in ("facility_location", "graph_cut", "log_determinant"):
        np.testing.assert_array_equal(found[name, 4096].rows, found[name, 7].rows)
        np.testing.assert_array_equal(found[name, 4096].gains, found[name, 7].gains)


def test_a_gradient_of_length_zero_is_like_nothing_but_itself() -> None:
    pool = pool_at()
    p = pool["proxy.probability"].copy()
    p[3] = np.eye(p.shape[1])[pool["proxy.label"][3]]
    pool = Pool(pool.uid, {**pool.columns, "proxy.probability": p})
    kernel = kernels.neighbor_kernel(pool, "gradients", 5)
    assert [list(part) for part in kernel.of(3)] == [[3], [1]]
    for name in ("facility_location", "graph_cut", "log_determinant"):
        assert len(run(name, pool, N, {"similarity": "gradients"})) == N


def test_a_choice_by_gradients_counts_what_it_grows_to() -> None:
    width = {"embedding": 512, "proxy.probability": 1000, "proxy.feature": 511}
    plain, by = (
        catalog.build_selector("log_determinant", {"similarity": s})
        for s in ("embeddings", "gradients")
    )
    assert isinstance(plain, WholeSet) and isinstance(by, WholeSet)
    assert plain.scratch(100, width) >= 8 * 100 * 512
    assert by.scratch(100, width) == 1000 * plain.scratch(100, width)
    assert by.needs == ("proxy.probability", "proxy.feature", "proxy.label")


def test_query_reductions_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = (grid_rows(embedding_of(n, n)) for n in (30, 17))
    first = kernels.nearest_query(rows, queries), kernels.query_kernel(rows, queries, 4)
    monkeypatch.setattr(kernels, "_TILE", 7)
    monkeypatch.setattr(kernels, "_BLOCK", 1)
    again = kernels.nearest_query(rows, queries), kernels.query_kernel(rows, queries, 4)
    np.testing.assert_array_equal(first[0], again[0])
    for name in ("start", "client", "similarity"):
        np.testing.assert_array_equal(getattr(first[1], name), getattr(again[1], name))
    tied = kernels.query_kernel(np.repeat(rows[:1], 9, axis=0), rows[:1], 4)
    assert np.flatnonzero(np.diff(tied.start)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("facility_location", {"epsilon": 0.0}, "epsilon=0.0: expected a number between 0 and 1"),
        ("facility_location", {"neighbors": 0}, "neighbors=0: expected at least 1"),
        ("facility_location", {"optimizer": "eager"}, "optimizer: expected 'naive', 'lazy'"),
        ("graph_cut", {"redundancy": -1.0}, "redundancy=-1.0: expected a number from 0 up"),
        ("log_determinant", {"scale": 0.0}, "scale=0.0: expected a number above 0"),
        ("fass", {"factor": 0.5}, "factor=0.5: expected a number from 1 up"),
        ("prism", {"eta": -1.0}, "eta=-1.0: expected a number from 0 up"),
        (
            "prism",
            {"measure": "conditional_mutual_information", "form": "graph_cut"},
            "form='graph_cut': measure 'conditional_mutual_information' has no such form",
        ),
        ("similar", {"wanted": [1]}, "asks for no classes"),
        ("similar", {"measure": "mutual_information"}, "asks for the classes that are wanted"),
    ],
)
def test_settings_out_of_range(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.build_selector(name, params)


def test_rare_classes_that_nothing_kept_has() -> None:
    told = {"measure": "mutual_information", "wanted": [77]}
    with pytest.raises(ValueError, match="none of the 2 images kept already has such a label"):
        run("similar", pool_at(), 3, told, kept=np.array([1, 2]))


def test_what_draws_rows_says_that_it_depends_on_the_seed() -> None:
    for optimizer, drawn in (("naive", False), ("lazy", False), ("stochastic", True)):
        method = catalog.build_selector("graph_cut", {"optimizer": optimizer})
        assert (method.seeded, method.nested, method.continues) == (drawn, not drawn, not drawn)
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.seeded = True
