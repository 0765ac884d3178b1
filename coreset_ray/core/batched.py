"""Many draws at a time on a torch device, with the sums of `draws.cover_and_penalise`.

Distances, powers and the rounding to whole numbers are those of `draws`, in float64 and in the
same order, so that the sums are equal to the last digit wherever the exponent is a whole number
up to 64. Other exponents need the device's own power function: a penalty may then differ by one
part in `unit`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from coreset_ray.core.columns import Index, numbers
from coreset_ray.core.pool import uid_order

if TYPE_CHECKING:
    import torch

BackEnd = Literal["auto", "torch", "triton"]

_WIDTH = 32  # rows are padded to a multiple of it, so that loads are aligned and need no mask
_ROW_BYTES = 64  # of scratch a row and draw at once, in the torch form
_DRAW_BYTES = 256  # of scratch a draw, in the Triton form
_CPU_BYTES = 1 << 27  # more leaves the caches
_MOST_WHOLE = 64  # exponents up to it are applied by repeated multiplication


@dataclass(frozen=True)
class Resident:
    """The n rows of a pool by dimension on a device, in ascending order of uid: among rows at
    equal distance the first is the one with the smallest uid.

    value: (m, w) float32, w the multiple of 32 that holds n rows, those beyond n infinite;
    low, high: (m,) float64, extremes of the n rows; place: (n,) int64, where each row went.
    """

    value: "torch.Tensor"
    low: "torch.Tensor"
    high: "torch.Tensor"
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.place)


def resident(index: Index, device: "str | torch.device") -> Resident:
    """Copies the columns to a device, one at a time. Needs 4·m·n bytes there."""
    import torch

    known = numbers(index)
    m, n = known.shape
    order = uid_order(index.uid)
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    rows = torch.tensor(order, device=device)
    value = torch.full((m, -(-n // _WIDTH) * _WIDTH), torch.inf, device=device)
    for j in range(m):
        value[j, :n] = torch.tensor(known[j], device=device)[rows]
    low, high = torch.aminmax(value[:, :n], dim=1)
    return Resident(value, low.double(), high.double(), place)


def cover_and_penalise(
    held: Resident,
    dims: np.ndarray,
    points: np.ndarray,
    chosen: np.ndarray,
    neighbors: int,
    exponent: float,
    unit: int,
    total: np.ndarray,
    *,
    back_end: BackEnd = "auto",
) -> None:
    """Adds draws to `total` in place, in any order of draws.

    dims: (t, d) int64; points: (t, d) float64; chosen: (t,) int64, a row that covers whatever
    the point, or -1 for the nearest; neighbors: 0 adds no redundancy; total: (2, n) int64,
    coverage in ones and redundancy in 1/unit. back_end: `triton` needs d = 2 and a device that
    Triton can use, and is what `auto` takes for d = 2 on CUDA.
    """
    import torch

    plane, device = dims.shape[1] == 2, held.value.device
    if back_end == "triton" and not plane:
        raise ValueError(f"back_end='triton' draws in 2 dimensions, not {dims.shape[1]}: use torch")
    if len(dims) == 0:
        return
    if back_end == "triton" or (back_end == "auto" and plane and device.type == "cuda"):
        from coreset_ray.core.plane_kernels import add_draws

        each = _DRAW_BYTES
    else:
        add_draws, each = _add_draws, _ROW_BYTES * held.value.shape[1]
    size = max(1, free_bytes(device) // each)
    alpha = min(neighbors, len(held) - 1)
    rows = np.where(chosen >= 0, held.place[chosen], -1)
    sums = torch.zeros((2, held.value.shape[1]), dtype=torch.int64, device=device)
    for start in range(0, len(dims), size):
        part = slice(start, start + size)
        where, near, who = (torch.tensor(a[part], device=device) for a in (dims, points, rows))
        with torch.cuda.device_of(held.value):
            add_draws(held, where, near, who, alpha, float(exponent), unit, sums)
    total += sums.cpu().numpy()[:, held.place]


def whole_exponent(exponent: float) -> int:
    """How often to multiply, or -1 where the exponent needs a power function."""
    return int(exponent) if exponent == int(exponent) and exponent <= _MOST_WHOLE else -1


def free_bytes(device: "torch.device") -> int:
    """Memory that a batch may take: half of what a GPU has free, little on a CPU."""
    import torch

    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _CPU_BYTES


def _add_draws(
    held: Resident,
    dims: "torch.Tensor",
    points: "torch.Tensor",
    rows: "torch.Tensor",
    alpha: int,
    exponent: float,
    unit: int,
    sums: "torch.Tensor",
) -> None:
    """The torch form, for any number of dimensions. rows: (t,) int64, -1 for the nearest; sums:
    (2, w) int64 on the device. Memory: some t·n float64."""
    import torch

    if bool((rows < 0).any()):
        rows = torch.where(rows < 0, _distances(held, dims, points).argmin(dim=1), rows)
    sums[0].index_add_(0, rows, torch.ones_like(rows))
    if alpha == 0:
        return
    centre = held.value[dims, rows[:, None]].double()
    distance = _distances(held, dims, centre)
    distance.scatter_(1, rows[:, None], torch.inf)
    closest = distance.amin(dim=1, keepdim=True)
    cut = distance.kthvalue(alpha, dim=1, keepdim=True).values
    cut[closest == 0] = 0.0  # only rows that coincide with the centre count
    near = distance <= cut
    power = _powers(torch.where(closest == 0, 1.0, closest / distance), exponent)
    few = near.sum(dim=1, keepdim=True) <= 1 << 22
    fine = torch.where(few, 2.0**40, 2.0**28).double()
    whole = torch.where(near, power * fine + 0.5, 0.0).long().sum(dim=1, keepdim=True)
    scale = float(unit) * fine / whole.double()
    penalty = torch.where(near, power * scale + 0.5, 0.0).long()
    sums[1, : len(held)] += penalty.sum(dim=0)


def _distances(held: Resident, dims: "torch.Tensor", points: "torch.Tensor") -> "torch.Tensor":
    """(t, n) float64 L1 distances, summed in the order of `dims`."""
    n = len(held)
    distance = (held.value[dims[:, 0], :n].double() - points[:, :1]).abs_()
    for j in range(1, dims.shape[1]):
        distance += (held.value[dims[:, j], :n].double() - points[:, j : j + 1]).abs_()
    return distance


def _powers(ratio: "torch.Tensor", exponent: float) -> "torch.Tensor":
    """ratio ** exponent, by repeated multiplication where `draws` does so."""
    import torch

    whole = whole_exponent(exponent)
    if whole < 0:
        return ratio**exponent
    power = torch.ones_like(ratio)
    for _ in range(whole):
        power *= ratio
    return power
