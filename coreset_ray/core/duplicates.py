"""One of each group of rows that resemble one another."""

import numba
import numpy as np


def repeats(one: np.ndarray, other: np.ndarray, n: int) -> np.ndarray:
    """Rows that resemble an earlier row which stays, (n,) bool: decided from the first row on, so
    that a row stays where all that it resembles before it have gone.

    one, other: (e,) int64, the two rows of each pair that is alike, either way round. O(e log e).
    """
    early, late = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((late, early))
    return _repeats(early[order], late[order], n)


@numba.njit(nogil=True, cache=True)
def _repeats(early, late, n):
    gone = np.zeros(n, np.bool_)
    for e in range(len(early)):
        if not gone[early[e]]:
            gone[late[e]] = True
    return gone
