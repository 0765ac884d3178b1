"""Counter-based randomness: every number is a function of (seed, position) and of nothing else.

No generator is carried along, so the numbers do not depend on how the work is split over
workers, on the size of a chunk or on what was drawn before.
"""

import numba
import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the step of splitmix64: 2⁶⁴ over the golden ratio
_WORDS_PER_BLOCK = 4  # Philox4x64 gives four 64-bit words for each value of its counter


def draw_words(seed: int, first: int, count: int, width: int) -> np.ndarray:
    """Random words of draws `first` … `first + count - 1`.

    Source: Philox4x64-10 (Salmon et al., 2011). Draw t owns the counter values
    t·b … (t + 1)·b - 1 with b = ⌈width / 4⌉, so `draw_words(s, 0, 10, w)[7]` equals
    `draw_words(s, 7, 1, w)[0]`.

    Returns: (count, width) uint64.
    """
    blocks = -(-width // _WORDS_PER_BLOCK)
    stream = np.random.Philox(key=check_seed(seed), counter=first * blocks)
    words = stream.random_raw(count * blocks * _WORDS_PER_BLOCK)
    return words.reshape(count, blocks * _WORDS_PER_BLOCK)[:, :width]


def uid_uniform(seed: int, uid: np.ndarray, use: int = 0) -> np.ndarray:
    """One uniform number in [0, 1) for each row, a function of (seed, use, uid) alone.

    use: what the numbers are for; uses that may meet at one seed take different numbers.

    uid: (n, 2) uint64. Returns: (n,) float64 with 53 random bits.
    """
    start = np.uint64(_splitmix(np.uint64(check_seed(seed)))) ^ np.uint64(use)
    return unit_interval(row_words(uid, start))


@numba.njit(nogil=True, cache=True)
def row_words(uid, start):
    """A random word for each row, a function of its uid and of the word `start`: splitmix64 over
    that and the two halves of the uid. uid: (n, 2) uint64. Returns: (n,) uint64."""
    words = np.empty(len(uid), np.uint64)
    for i in range(len(uid)):
        words[i] = _splitmix(uid[i, 1] ^ _splitmix(uid[i, 0] ^ _splitmix(start)))
    return words


def unit_interval(words: np.ndarray) -> np.ndarray:
    """uint64 words of any shape → float64 in [0, 1), from their upper 53 bits."""
    return (words >> np.uint64(11)) * 2.0**-53


def below(words: np.ndarray, bound: int) -> np.ndarray:
    """uint64 words → integers uniform in {0 … bound - 1}, from their upper 32 bits.

    Multiply and shift (Lemire, 2019) without rejection: each value's probability is off by at
    most 2⁻³² in absolute terms. Needs bound ≤ 2³².
    """
    return ((words >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)


def check_seed(seed: int) -> int:
    """The seed itself; `ValueError` unless it is an integer in [0, 2⁶⁴)."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed!r}: expected an integer from 0 to 2**64 - 1")
    return int(seed)


@numba.njit(nogil=True, cache=True)
def mix(x):
    """The finaliser of splitmix64 (Steele et al., 2014): a bijection of uint64 that scrambles."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def _splitmix(x):
    return mix(x + GOLDEN)
