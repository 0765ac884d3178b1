"""Draws in planes, compiled by Triton: one program a draw, no memory but the columns and sums.

A program reads its two columns once for the nearest row, two or three times to find the distance
of the last neighbour (by a histogram of 256 steps of a sixteenth of an octave, then of 256 finer
steps within one of those, until a step's end parts the neighbours exactly from the rest), once
to sum the powers and once to add the penalties: 5 or 6 readings of 8·n bytes a draw. The floor is
2, one to find the row that covers and one to find what lies around it.

Estimates for 10⁶ draws on an H100, not measured: at n = 50,000 a plane is 400 kB and stays in the
L2, 2.4 TB in all, 0.45 s at 5.5 TB/s; at n = 1,281,167 it is 10.2 MB and comes from memory, 61 TB,
18 s at 3.35 TB/s, nearly half of it where draws in `slices.near_order` share a column. About 400
instructions a row and draw, most of them for powers of rows that are no neighbours, take about
as long: 0.7 s and 18 s at 3·10¹³ a second.
"""

# Triton's types know neither how kernels are launched nor what is done with their tensors.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from coreset_ray.core.batched import whole_exponent

if TYPE_CHECKING:
    from coreset_ray.core.batched import Resident

_BLOCK = 2048  # rows looked at together by one program
_BINS = tl.constexpr(256)
_COARSE = tl.constexpr(48)  # bits below a step of a sixteenth of an octave
_NO_ROW = tl.constexpr(2**31 - 1)


def add_draws(
    held: "Resident",
    dims: torch.Tensor,
    points: torch.Tensor,
    rows: torch.Tensor,
    alpha: int,
    exponent: float,
    unit: int,
    sums: torch.Tensor,
) -> None:
    """dims, points: (t, 2) int64 and float64; rows: (t,) int64, -1 for the nearest, filled in;
    alpha: at most n - 1, 0 for no redundancy; sums: (2, w) int64, added to in place."""
    t, width = len(dims), held.value.shape[1]
    block = min(_BLOCK, triton.next_power_of_2(width))
    # Without fused operations, whose results are not those of `draws`.
    shape = {"BLOCK": block, "num_warps": max(1, block // 256), "enable_fp_fusion": False}
    _nearest[(t,)](held.value, dims, points, rows, width, **shape)
    sums[0].index_add_(0, rows, torch.ones_like(rows))
    if alpha == 0:
        return
    spans = _spans(held, dims, rows)
    cut, closest = (torch.empty(t, dtype=torch.float64, device=rows.device) for _ in range(2))
    found = torch.empty_like(rows)
    planes = (held.value, dims, rows)
    _cut[(t,)](*planes, spans, cut, closest, found, width, alpha, **shape)
    numbers = torch.tensor([unit, exponent], dtype=torch.float64, device=rows.device)
    ends = (cut, closest, found, numbers, sums[1])
    _share[(t,)](*planes, *ends, width, WHOLE=whole_exponent(exponent), **shape)


def _spans(held: "Resident", dims: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(t,) float64 that no distance from row `rows[t]` exceeds, rounded as distances are."""
    centre = held.value[dims, rows[:, None]].double()
    return torch.maximum(held.high[dims] - centre, centre - held.low[dims]).sum(dim=1)


@triton.jit
def _plane(value, dims, width):
    """Pointers to the two columns of this program's draw."""
    t = tl.program_id(0).to(tl.int64)
    a = tl.load(dims + 2 * t)
    b = tl.load(dims + 2 * t + 1)
    return value + a * width, value + b * width


@triton.jit
def _distance(first, second, rows, width, p, q):
    """(BLOCK,) float64; infinite beyond the last row."""
    x = tl.load(first + rows, mask=rows < width, other=float("inf"))
    y = tl.load(second + rows, mask=rows < width, other=float("inf"))
    return tl.abs(x.to(tl.float64) - p) + tl.abs(y.to(tl.float64) - q)


@triton.jit
def _nearest(value, dims, points, chosen, width, BLOCK: tl.constexpr):
    """Fills in the row nearest to the point, the first of equals, where none was chosen."""
    t = tl.program_id(0).to(tl.int64)
    if tl.load(chosen + t) < 0:
        first, second = _plane(value, dims, width)
        p = tl.load(points + 2 * t)
        q = tl.load(points + 2 * t + 1)
        lane = tl.arange(0, BLOCK)
        least = tl.full((BLOCK,), float("inf"), tl.float64)
        place = tl.full((BLOCK,), _NO_ROW, tl.int32)
        for start in range(0, width, BLOCK):
            rows = start + lane
            distance = _distance(first, second, rows, width, p, q)
            better = distance < least
            least = tl.where(better, distance, least)
            place = tl.where(better, rows, place)
        lowest = tl.min(least, axis=0)
        tl.store(chosen + t, tl.min(tl.where(least == lowest, place, _NO_ROW), axis=0).to(tl.int64))


@triton.jit
def _cut(value, dims, chosen, spans, cut, closest, found, width, alpha, BLOCK: tl.constexpr):
    """The distance of the last of alpha neighbours of row k and of its ties, or a larger one that
    no other row is within; that of the first; how many there are. Where rows coincide with k,
    both distances are 0 and the number has no meaning.

    Distances of at least 0 order as their bits do. The key sought lies in [start, end), which
    each turn cuts into steps; what lies far below the end falls into the first of them.
    """
    t = tl.program_id(0).to(tl.int64)
    first, second = _plane(value, dims, width)
    k = tl.load(chosen + t).to(tl.int32)
    p = tl.load(first + k).to(tl.float64)
    q = tl.load(second + k).to(tl.float64)
    lane, steps = tl.arange(0, BLOCK), tl.arange(0, _BINS)
    least = tl.full((BLOCK,), float("inf"), tl.float64)
    end = tl.load(spans + t).to(tl.int64, bitcast=True) + 1
    start, below, within = end * 0, k * 0, k * 0
    going = end > start
    while going:
        shift = _shift(end - start)
        base = tl.maximum(end - (end * 0 + _BINS << shift), start)
        counts = tl.zeros((_BINS,), tl.int32)
        for block in range(0, width, BLOCK):
            rows = block + lane
            distance = _distance(first, second, rows, width, p, q)
            distance = tl.where(rows == k, float("inf"), distance)
            least = tl.minimum(least, distance)
            key = distance.to(tl.int64, bitcast=True)
            step = tl.minimum(tl.maximum(key - base, 0) >> shift, _BINS - 1).to(tl.int32)
            counts += tl.histogram(step, _BINS, mask=(key >= start) & (key < end))
        reached = below + tl.cumsum(counts, axis=0)
        last = tl.sum((reached < alpha).to(tl.int32), axis=0)
        within = tl.sum(tl.where(steps == last, reached, 0), axis=0)
        below = within - tl.sum(tl.where(steps == last, counts, 0), axis=0)
        end = tl.minimum(end, base + (last.to(tl.int64) + 1 << shift))
        start = tl.where(last == 0, start, base + (last.to(tl.int64) << shift))
        going = (tl.min(least, axis=0) > 0) & (within != alpha) & (end - start > 1)
    nearest = tl.min(least, axis=0)
    edge = (end - 1).to(tl.float64, bitcast=True)
    tl.store(cut + t, tl.where(nearest > 0, edge, 0.0))
    tl.store(closest + t, nearest)
    tl.store(found + t, within.to(tl.int64))


@triton.jit
def _shift(span):
    """Bits of a step: the coarse step, or the least of 0, 8 … 40 whose steps reach over the
    span of keys."""
    shift = span * 0 + _COARSE
    for turn in tl.static_range(6):
        finer = 40 - 8 * turn
        shift = tl.where(span <= (span * 0 + _BINS << finer), finer, shift)
    return shift


@triton.jit
def _share(
    value,
    dims,
    chosen,
    cut,
    closest,
    found,
    numbers,
    redundancy,
    width,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds each neighbour's penalty, as `draws.norm` and `draws.share` do: the powers of rows
    that coincide with row k are 1, and they share evenly."""
    t = tl.program_id(0).to(tl.int64)
    first, second = _plane(value, dims, width)
    k = tl.load(chosen + t).to(tl.int32)
    p = tl.load(first + k).to(tl.float64)
    q = tl.load(second + k).to(tl.float64)
    limit, one = tl.load(cut + t), tl.load(closest + t)
    unit, exponent = tl.load(numbers), tl.load(numbers + 1)
    fine = tl.where(tl.load(found + t) <= 1 << 22, 2.0**40, 2.0**28).to(tl.float64)
    lane = tl.arange(0, BLOCK)
    parts = tl.zeros((BLOCK,), tl.int64)
    for block in range(0, width, BLOCK):
        rows = block + lane
        distance = _distance(first, second, rows, width, p, q)
        near = (distance <= limit) & (rows != k)
        power = _power(one, distance, exponent, WHOLE)
        parts += tl.where(near, power * fine + 0.5, 0.0).to(tl.int64)
    scale = unit * fine / tl.sum(parts, axis=0).to(tl.float64)
    for block in range(0, width, BLOCK):
        rows = block + lane
        distance = _distance(first, second, rows, width, p, q)
        near = (distance <= limit) & (rows != k)
        power = _power(one, distance, exponent, WHOLE)
        penalty = tl.where(near, power * scale + 0.5, 0.0).to(tl.int64)
        tl.atomic_add(redundancy + rows, penalty, mask=near, sem="relaxed")


@triton.jit
def _power(closest, distance, exponent, WHOLE: tl.constexpr):
    """(closest / distance)^exponent, or 1 where closest is 0."""
    ratio = tl.where(closest == 0, 1.0, closest / distance)
    if WHOLE < 0:
        power = tl.exp2(exponent * tl.log2(ratio))
    else:
        power = tl.full(ratio.shape, 1.0, tl.float64)
        for _ in range(WHOLE):
            power *= ratio
    return power
