"""A fingerprint of sums that can itself be summed: over draws, and over shards of rows."""

import numba
import numpy as np

from coreset_ray.core.random import GOLDEN, mix


@numba.njit(nogil=True, cache=True)
def checksum(uid, total):
    """Σ total[h, c, i] · w(h, c, uid_i) modulo 2⁶⁴, w odd and pseudo-random.

    Of two different sums it is equal by accident once in about 2⁶³. Linear in `total`, so the
    checksum of a sum is the sum of checksums, and independent of the order of rows.
    uid: (n, 2) uint64; total: (2, channels, n) int64.
    """
    result = np.uint64(0)
    for h in range(total.shape[0]):
        for c in range(total.shape[1]):
            salt = GOLDEN * np.uint64(1 + h * total.shape[1] + c)
            for i in range(total.shape[2]):
                w = mix(uid[i, 0] ^ mix(uid[i, 1] ^ salt)) | np.uint64(1)
                result += np.uint64(total[h, c, i]) * w
    return result
