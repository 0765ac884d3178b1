"""What every filter promises, found by looking, and each against a slow, obvious form."""

from typing import Any

import numpy as np
import pytest
from signal_columns import pool_with_signals, rearranged

import coreset_ray
from coreset_ray import catalog
from coreset_ray.core.alone import select_alone
from coreset_ray.core.duplicates import repeats
from coreset_ray.core.exact import grid_rows
from coreset_ray.core.filter import dropped_by, left_out
from coreset_ray.core.pool import Pool, uid_order
from coreset_ray.core.rule import choose_rows
from coreset_ray.filters.far_neighbors import FarNeighbors
from coreset_ray.filters.hypersphere import Hypersphere
from coreset_ray.filters.near_duplicates import NearDuplicates
from coreset_ray.selectors.herding import Herding
from coreset_ray.selectors.top import Top

N = 90
every = pytest.mark.parametrize("name", catalog.filters())


def pool(n: int = N) -> Pool:
    """A third of the rows nearly repeat others."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 6))
    z[::3] = z[1 : 1 + len(z[::3])] + 0.05 * rng.normal(size=z[::3].shape)
    uid = rng.integers(0, 2**64, (n, 2), np.uint64)
    return pool_with_signals(z.astype(np.float32), uid)


def build(name: str) -> Any:
    return catalog.build_filter(name, {})


@every
def test_drops_some_rows_whatever_their_order(name: str) -> None:
    of, method = pool(), build(name)
    out = dropped_by(method, of)
    assert out.shape == (N,) and out.dtype == bool and 0 < out.sum() < N
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_array_equal(dropped_by(method, rearranged(of, order)), out[order])


@every
def test_inputs_stay_as_they_were_and_only_what_is_needed_is_seen(name: str) -> None:
    of, method = pool(), build(name)
    copies = {column: values.copy() for column, values in of.columns.items()}
    for values in of.columns.values():
        values.flags.writeable = False
    dropped_by(method, of)
    for column, copy in copies.items():
        np.testing.assert_array_equal(of.columns[column], copy)
    for column in method.needs:
        without = {key: value for key, value in of.columns.items() if key != column}
        with pytest.raises(ValueError, match=f"needs the column '{column}'"):
            dropped_by(method, Pool(of.uid, without))


@every
def test_odd_pools_have_an_answer_that_leaves_something(name: str) -> None:
    for z in (np.ones((30, 4)), np.zeros((30, 4)), np.ones((1, 4)), np.ones((2, 4))):
        of = pool_with_signals(z.astype(np.float32), pool().uid[: len(z)])
        assert dropped_by(build(name), of).sum() < len(z)


def test_near_duplicates_go_where_one_like_them_stays() -> None:
    of = pool()
    of = rearranged(of, uid_order(of.uid))
    neighbor, cell = of["knn.neighbor"], of["clusters.cluster"]
    alike = np.zeros((N, N), bool)
    for i in range(N):
        for j, cosine in zip(neighbor[i], of["knn.similarity"][i], strict=True):
            alike[i, j] = alike[j, i] = cosine >= 0.8 and cell[i] == cell[j]
    stay: list[int] = []
    for i in range(N):
        if not alike[i, stay].any():
            stay.append(i)
    out = dropped_by(NearDuplicates(threshold=0.8), of)
    assert np.flatnonzero(~out).tolist() == stay and len(stay) < N


def test_what_resembles_only_a_row_that_goes_stays() -> None:
    one, other, angle = np.array([1, 2, 4]), np.array([0, 1, 3]), np.array([6, 6, 6], np.int32)
    none = np.empty(0, np.int64)
    assert np.flatnonzero(repeats(one, other, angle, 10, none, 5)).tolist() == [1, 4]
    assert np.flatnonzero(repeats(one, other, angle, 12, none, 5)).tolist() == [1, 2, 4]
    assert np.flatnonzero(repeats(one, other, angle, 10, np.array([4, 1]), 5)).tolist() == [0, 2, 3]


def test_repeats_are_those_of_all_paths() -> None:
    """Beside the shortest paths by Floyd and Warshall, over random pairs."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 9, 30):
        for _ in range(20):
            one, other = rng.integers(0, n, (2, 2 * n))
            angle = rng.integers(0, 8, 2 * n).astype(np.int32)
            apart = np.where(np.eye(n, dtype=bool), 0, 99)
            for i, j, far in zip(one, other, angle, strict=True):
                apart[i, j] = apart[j, i] = min(apart[i, j], far)
            for via in range(n):
                apart = np.minimum(apart, apart[:, [via]] + apart[via])
            first = rng.permutation(n)[: n // 5]
            stay = first.tolist()
            for i in range(n):
                if i not in stay and (apart[i, stay] > 9).all():
                    stay.append(i)
            out = repeats(one, other, angle, 9, first, n)
            assert np.flatnonzero(~out).tolist() == sorted(stay)


@pytest.mark.parametrize("apart", [0.0, 0.003])
def test_one_stays_of_more_copies_than_there_are_neighbours(apart: float) -> None:
    """600 of 700 rows are copies of one, in any order of uid; 20 neighbours of each are known."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(700, 16))
    z[:600] = z[0] + apart * rng.normal(size=(600, 16))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert cosine[:600, :600].min() > 0.99 and np.triu(cosine[600:, 600:], 1).max() < 0.95
    np.fill_diagonal(cosine, -2)
    neighbor = np.argsort(-cosine, axis=1, kind="stable")[:, :20]  # of copies the first rows
    columns = {
        "knn.neighbor": neighbor,
        "knn.similarity": np.take_along_axis(cosine, neighbor, 1).astype(np.float32),
        "clusters.cluster": np.zeros(700, np.int64),
    }
    of = Pool(rng.integers(0, 2**64, (700, 2), np.uint64), columns)
    out = dropped_by(NearDuplicates(), of)
    assert out[:600].sum() == 599 and not out[600:].any()
    out = dropped_by(NearDuplicates(), of, np.array([311, 640]))
    assert np.flatnonzero(~out).tolist() == [311, *range(600, 700)]


@every
def test_images_chosen_already_stay(name: str) -> None:
    of = pool()
    kept = np.flatnonzero(dropped_by(build(name), of))[::-1][:5]
    assert len(kept) and not dropped_by(build(name), of, kept)[kept].any()


def test_a_copy_of_an_image_chosen_already_is_not_bought() -> None:
    """And what a filter would drop still shapes the choice."""
    z = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)
    z[39] = z[0]
    of = pool_with_signals(z, pool(40).uid)
    signals = {c: of[c] for c in of.columns if c != "embedding"}
    signals["clusters.cluster"] = np.zeros(40, np.int64)
    given: dict[str, Any] = {"uid": of.uid, "signals": signals, "kept": np.array([39])}
    for method in ("k_center", "random"):
        found = coreset_ray.select(z, 38, method=method, filters=["near_duplicates"], **given)
        assert sorted(found.rows) == list(range(1, 39))
        with pytest.raises(ValueError, match="only 38 images are left beside 1 kept already"):
            coreset_ray.select(z, 39, method=method, filters=["near_duplicates"], **given)


def test_far_neighbors_and_the_hypersphere_drop_the_farthest() -> None:
    of = rearranged(pool(), uid_order(pool().uid))
    apart = of["knn.similarity"][:, 2]
    out = dropped_by(FarNeighbors(share=0.1, neighbors=3), of)
    assert out.sum() == 9 and apart[out].max() <= apart[~out].min()
    rows = grid_rows(of["embedding"]).astype(np.float64)
    radius = np.linalg.norm(rows - rows.mean(axis=0), axis=1)
    out = dropped_by(Hypersphere(share=0.2), of)
    assert out.sum() == 18 and radius[out].min() >= radius[~out].max()
    assert not dropped_by(Hypersphere(share=0.0), of).any()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("near_duplicates", {"threshold": 0.0}),
        ("near_duplicates", {"threshold": 1.5}),
        ("far_neighbors", {"share": 1.0}),
        ("far_neighbors", {"neighbors": 0}),
        ("hypersphere", {"share": -0.1}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(params))):
        catalog.build_filter(name, params)


def test_rows_left_out_take_no_part() -> None:
    """As though the pool had never held them, for rules and for methods that select alone."""
    of, asked = pool(), [("hypersphere", {"share": 0.3}), "near_duplicates"]
    signals = {c: of[c] for c in of.columns if c != "embedding"}
    out = left_out([Hypersphere(share=0.3), NearDuplicates()], of)
    left = np.flatnonzero(~out)
    smaller = Pool(of.uid[left], {"embedding": of["embedding"][left]})
    given: dict[str, Any] = {"uid": of.uid, "signals": signals, "filters": asked}
    found = coreset_ray.select(of["embedding"], 20, method="herding", **given)
    alone = select_alone(Herding(), smaller, 20, 0)
    np.testing.assert_array_equal(found.rows, left[alone.rows])
    np.testing.assert_array_equal(found.gains, alone.gains)
    score = coreset_ray.score(of["embedding"], method="random", uid=of.uid)
    found = coreset_ray.select(of["embedding"], 20, method="random", **given)
    rows = choose_rows(Top(), score[left], of.uid[left], 20, 0, None)
    np.testing.assert_array_equal(found.rows, left[rows])
    with pytest.raises(ValueError, match=rf"budget of 80: the filters leave {len(left)} of 90"):
        coreset_ray.select(of["embedding"], 80, method="herding", **given)
    with pytest.raises(ValueError, match="did you mean 'hypersphere'"):
        coreset_ray.select(of["embedding"], 8, method="herding", filters=["hypersfere"])


def test_copies_are_found_at_the_highest_threshold() -> None:
    """Lengths are rounded to float32, so a copy's inner product may lie below 1."""
    z = np.maximum(np.random.default_rng(0).normal(size=(500, 24)), 0).astype(np.float32)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    twice = np.concatenate([unit, unit])
    other = (np.arange(1000) + 500) % 1000
    told = np.einsum("ij,ij->i", twice, twice[other], dtype=np.float32)
    assert (told < 1).any(), "or nothing is tested"
    columns = {"knn.neighbor": other[:, None], "knn.similarity": told[:, None]}
    of = Pool(pool(1000).uid, {**columns, "clusters.cluster": np.zeros(1000, np.int64)})
    assert dropped_by(NearDuplicates(threshold=1.0), of).sum() == 500


@pytest.mark.parametrize("kind", [np.uint8, np.uint32, np.uint64, np.int16])
def test_groups_of_any_integers_leave_out_what_filters_drop(kind: type) -> None:
    z = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    group, how = np.arange(50) % 3, {"method": "k_center", "filters": ["hypersphere"]}
    plain = coreset_ray.select(z, 9, group=group, **how).rows
    np.testing.assert_array_equal(
        coreset_ray.select(z, 9, group=group.astype(kind), **how).rows, plain
    )
    with pytest.raises(ValueError, match="group holds 18446744073709551615"):
        coreset_ray.select(z, 9, group=np.full(50, 2**64 - 1, np.uint64), **how)
