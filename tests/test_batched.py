"""Batched draws against the kernel that runs on a CPU, whose sums they are to equal."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from matrices import M, duplicates, gaussian, grid, relu

from coreset_ray.core import draws
from coreset_ray.core.batched import Resident, cover_and_penalise, resident, whole_exponent
from coreset_ray.core.columns import Index, columns_of
from coreset_ray.core.pool import pool_of

UNIT = 2**32
EXPONENTS = (0.0, 1.0, 4.0, 2.5)
DRAWS = 24


def denormals(n: int, rng: np.random.Generator) -> np.ndarray:
    """Dimensions of very different width, each with a few rows far from all others, down to
    distances that only a denormal number can hold."""
    z = rng.standard_t(1.1, (n, M)) * 10.0 ** rng.integers(-6, 7, M)
    z = np.where(rng.random((n, M)) < 0.3, rng.integers(0, 99, (n, M)) * 1e-44, z)
    return z.astype(np.float32).astype(float)


POOLS = (gaussian, relu, duplicates, grid, denormals)


def pool(make, n: int) -> Index:
    """uids in no order, so that ties show who settles them."""
    rng = np.random.default_rng(n)
    uid = rng.integers(0, 3, (n, 2), dtype=np.uint64)
    uid[:, 1] = rng.permutation(n)
    return columns_of(pool_of(make(n, rng).astype(np.float32), uid)).index


def some_draws(
    index: Index, d: int, count: int = DRAWS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dims, points, chosen: a third at random rows whatever the point, and points that are rows
    themselves or lie halfway between two."""
    m, n = index.value.shape
    rng = np.random.default_rng([n, d])
    dims = np.argsort(rng.random((count, m)), axis=1)[:, :d]
    one, other = (
        index.value[dims, rng.integers(0, n, (count, 1))].astype(np.float64) for _ in range(2)
    )
    points = one + (other - one) * rng.choice([0.0, 0.5, 0.37], (count, 1))
    chosen = np.where(rng.random(count) < 1 / 3, rng.integers(0, n, count), -1)
    return dims, points, chosen


def check(
    index: Index, held: Resident, d: int, alpha: int, exponent: float, back_end, count: int = DRAWS
) -> None:
    start = np.random.default_rng(0).integers(0, 99, (2, index.value.shape[1]))
    expected, total = start.copy(), start.copy()
    drawn = some_draws(index, d, count)
    draws.cover_and_penalise(index, *drawn, alpha, exponent, UNIT, expected)
    cover_and_penalise(held, *drawn, alpha, exponent, UNIT, total, back_end=back_end)
    case = f"{d=} {alpha=} {exponent=}"
    np.testing.assert_array_equal(total[0], expected[0], err_msg=case)
    slack = count if whole_exponent(exponent) < 0 else 0  # a power function differs by device
    assert np.abs(total[1] - expected[1]).max() <= slack, case
    assert (total[0] - start[0]).sum() == count


def alphas(n: int) -> tuple[int, ...]:
    return 0, 1, max(1, n // 3), n - 1, n + 5


@pytest.mark.parametrize("n", [2, 3, 70, 400])
@pytest.mark.parametrize("make", POOLS)
def test_torch_equals_the_compiled_draws(make, n: int) -> None:
    index = pool(make, n)
    held = resident(index, "cpu")
    for d, alpha, exponent in itertools.product([1, 2, 3, 6], alphas(n), EXPONENTS):
        check(index, held, d, alpha, exponent, "torch")


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index = pool(gaussian, 70)
    held = resident(index, "cpu")
    for size in (1, 40_000, 1 << 40):
        monkeypatch.setattr("coreset_ray.core.batched.free_bytes", lambda device, s=size: s)
        check(index, held, 2, 9, 4.0, "auto")


def test_a_million_units_or_seven_and_no_draws_at_all() -> None:
    index = pool(relu, 70)
    held = resident(index, "cpu")
    for unit in (7, 1_000_003):
        totals = np.zeros((2, 2, 70), np.int64)
        drawn = some_draws(index, 2)
        draws.cover_and_penalise(index, *drawn, 5, 4.0, unit, totals[0])
        cover_and_penalise(held, *drawn, 5, 4.0, unit, totals[1])
        np.testing.assert_array_equal(totals[1], totals[0])
    before = totals[1].copy()
    cover_and_penalise(held, *some_draws(index, 2, 0), 5, 4.0, UNIT, totals[1])
    np.testing.assert_array_equal(totals[1], before)


def test_a_back_end_that_cannot_run_says_so() -> None:
    index = pool(gaussian, 70)
    held = resident(index, "cpu")
    total = np.zeros((2, 70), np.int64)
    for d, reason in ((3, "2 dimensions, not 3"), (2, "(?i)driver|cpu")):
        with pytest.raises((RuntimeError, ValueError), match=reason):
            drawn = some_draws(index, d)
            cover_and_penalise(held, *drawn, 5, 4.0, UNIT, total, back_end="triton")
    assert not total.any()


@pytest.mark.skipif(sys.platform != "linux", reason="Triton")
def test_triton_equals_the_compiled_draws_when_interpreted() -> None:
    """In a process of its own, since Triton decides when imported whether it interprets."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", __file__],  # of divisions by zero
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stdout == "equal\n", run.stdout + run.stderr


def interpret() -> None:
    """Pools of one block of rows and of three, the last in part beyond the last row."""
    from coreset_ray.core import plane_kernels

    plane_kernels._BLOCK = 128
    for make, n in itertools.product(POOLS, (2, 300)):
        index = pool(make, n)
        held = resident(index, "cpu")
        for alpha, exponent in ((0, 4.0), (1, 2.5), (n // 3, 4.0), (n - 1, 1.0), (n // 5, 0.0)):
            check(index, held, 2, alpha, exponent, "triton", count=4)
    sys.stdout.write("equal\n")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("n", [2, 70, 400, 5_500])
@pytest.mark.parametrize("make", POOLS)
def test_a_gpu_equals_the_compiled_draws(make, n: int) -> None:
    index = pool(make, n)
    held = resident(index, "cuda")
    for d, alpha, exponent in itertools.product([1, 2, 3], alphas(n), EXPONENTS):
        check(index, held, d, alpha, exponent, "auto")
        check(index, held, d, alpha, exponent, "torch")


if __name__ == "__main__":
    interpret()
