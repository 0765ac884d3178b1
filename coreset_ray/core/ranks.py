"""Exact order statistics of numbers that lie in several places: counts are merged, never values.

A radix search: each round counts, among the numbers whose leading digits are those found so far,
how often each next digit occurs. Counts from all places are added, and the digit is found in
which the wanted rank lies. The number of rounds depends on the width of the type alone.
"""

import numba
import numpy as np

DIGITS = {np.uint32: 8, np.uint64: 16}  # bits of a digit


def ordered_bits(values: np.ndarray) -> np.ndarray:
    """float32 or float64 of any shape → uint32 or uint64 that order as the values do."""
    kind = {4: np.uint32, 8: np.uint64}[values.dtype.itemsize]
    bits = np.ascontiguousarray(values).view(kind)
    top = kind(1) << kind(8 * bits.itemsize - 1)
    return np.where(bits & top, ~bits, bits | top)


def values_of(bits: np.ndarray) -> np.ndarray:
    """The inverse of `ordered_bits`."""
    kind = bits.dtype.type
    top = kind(1) << kind(8 * bits.itemsize - 1)
    plain = np.where(bits & top, bits & ~top, ~bits)
    return plain.view({4: np.float32, 8: np.float64}[bits.itemsize])


class RankSearch:
    """Finds the numbers at given ranks of several collections at once.

    ranks: (c, r) int64, ascending ranks from 0, for each of c collections. After all rounds
    `found` holds (c, r) ordered bits.
    """

    def __init__(self, ranks: np.ndarray, kind: type[np.unsignedinteger], digit: int | None = None):
        self.found = np.zeros(ranks.shape, kind)
        self.left = np.array(ranks, np.int64)
        self.shift = 8 * np.dtype(kind).itemsize
        self.digit = digit or DIGITS[kind]

    @property
    def done(self) -> bool:
        return self.shift == 0

    def question(self) -> tuple[np.ndarray, int]:
        """What each place is asked to count: the digits found so far, and the shift."""
        return self.found, self.shift

    def answer(self, counts: np.ndarray) -> None:
        """counts: (c, r, 2^digit) int64, the sum of every place's `count_digits`."""
        below = np.cumsum(counts, axis=-1)
        place = (below <= self.left[..., None]).sum(axis=-1)
        before = np.take_along_axis(below, np.maximum(place - 1, 0)[..., None], -1)[..., 0]
        self.left -= np.where(place > 0, before, 0)
        self.shift -= self.digit
        self.found |= place.astype(self.found.dtype) << self.found.dtype.type(self.shift)


def count_digits(bits: np.ndarray, found: np.ndarray, shift: int) -> np.ndarray:
    """One collection's counts. bits: (n,) ordered; found: (r,); returns (r, 2^digit) int64."""
    digit = DIGITS[bits.dtype.type]
    counts = np.zeros((len(found), 1 << digit), np.int64)
    width = 8 * bits.itemsize
    for row, prefix in zip(counts, found, strict=True):
        _count(bits, prefix, shift, shift - digit, width, (1 << digit) - 1, row)
    return counts


@numba.njit(nogil=True, cache=True)
def count_in_groups(bits, group, found, shift, digit):
    """Counts of each of c collections that lie mixed. bits: (n,) ordered uint64; group: (n,)
    int64, the collection of each, -1 for none; found: (c,). Returns (c, 2^digit) int64."""
    counts = np.zeros((len(found), 1 << digit), np.int64)
    low = np.uint64(shift - digit)
    mask = np.uint64((1 << digit) - 1)
    for i in range(len(bits)):
        c = group[i]
        if c >= 0 and (shift >= 64 or (bits[i] ^ found[c]) >> np.uint64(shift) == 0):
            counts[c, np.int64((bits[i] >> low) & mask)] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _count(bits, prefix, above, below, width, mask, counts):
    for value in bits:
        if above >= width or (np.uint64(value) ^ np.uint64(prefix)) >> np.uint64(above) == 0:
            counts[np.int64((np.uint64(value) >> np.uint64(below)) & np.uint64(mask))] += 1
