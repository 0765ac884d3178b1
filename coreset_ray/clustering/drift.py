"""How new data differ from old, by a sample of each: where its mean moved, what a coreset of the
old leaves uncovered of the new, which clusters are new, and how many labels it would take.

o, n rows sampled of the old and of the new data, m dimensions, all of length 1.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

COVERED = 0.95  # the share of old data that the coreset is taken to cover
MOVED = 0.2  # standard deviations; a small effect (Cohen, 1988)
_MOST_CLUSTERS = 32
_ROWS_EACH = 50  # sampled for each cluster, at least
_FEW = 10  # sampled rows that make a new cluster
_RARE = 0.1  # of its share among the new, at most so much among the old
_BLOCK = 1 << 12


def shift(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Of each dimension the mean of the new minus that of the old, in standard deviations of the
    old, (m,) float64; 0 where neither varies, infinite where only the old do not."""
    difference = new.mean(axis=0, dtype=np.float64) - old.mean(axis=0, dtype=np.float64)
    deviation = old.std(axis=0, dtype=np.float64)
    still = np.where(difference == 0, 0.0, np.copysign(np.inf, difference))
    return np.divide(difference, deviation, out=still, where=deviation > 0)


def radius_of(cosine: np.ndarray) -> float:
    """The cosine down to which the coreset covers `COVERED` of the old rows. cosine: (o,), of each
    with the nearest image kept."""
    return float(np.quantile(cosine, 1 - COVERED, method="lower"))


def labels_to_cover(rows: np.ndarray, cosine: np.ndarray, radius: float) -> int:
    """How many of the new rows have to be bought until `COVERED` of them lie within the radius of
    an image that is kept or bought: each time the row that covers most of what is left (greedy set
    cover, within ln n of the fewest; Chvátal, 1979).

    rows: (n, m); cosine: (n,) with the nearest image kept. O(u² m) of u rows left uncovered.
    """
    left = rows[cosine < radius]
    allowed = int((1 - COVERED) * len(rows))
    gain, bought = _degrees(left, radius), 0
    open_ = np.ones(len(left), bool)
    while open_.sum() > allowed:
        best = int(np.argmax(np.maximum(gain, open_)))  # each covers itself, one of zeros too
        hit = open_ & (left @ left[best] >= radius)
        hit[best] = open_[best]
        if not hit.any():  # it counted rows that lie on the radius, to rounding
            gain[best] = -1
            continue
        covered = np.flatnonzero(hit)
        for i in range(0, len(covered), _BLOCK):
            gain -= (left @ left[covered[i : i + _BLOCK]].T >= radius).sum(axis=1)
        open_[covered] = False
        bought += 1
    return bought


def _degrees(rows: np.ndarray, radius: float) -> np.ndarray:
    """How many of the rows each one covers, itself among them."""
    found = [(rows[i : i + _BLOCK] @ rows.T >= radius).sum(1) for i in range(0, len(rows), _BLOCK)]
    return np.concatenate([np.empty(0, np.int64), *found])


@dataclass(frozen=True)
class Clusters:
    """centroids: (c, m) float32; old, new: shares of the sampled rows in each, (c,); fresh: (c,)
    truths, whether one holds new data and hardly any old."""

    centroids: np.ndarray
    old: np.ndarray
    new: np.ndarray
    fresh: np.ndarray


def clusters_of(old: np.ndarray, new: np.ndarray, seed: int) -> Clusters:
    """k-means of both samples together (scikit-learn), at most 32 clusters."""
    both = np.concatenate([old, new])
    count = max(1, min(_MOST_CLUSTERS, len(both) // _ROWS_EACH))
    fitted = KMeans(count, n_init=1, random_state=seed % 2**32).fit(both)  # type: ignore[arg-type]
    labels = (both @ fitted.cluster_centers_.T.astype(np.float32)).argmax(axis=1)
    counts = [np.bincount(part, minlength=count) for part in np.split(labels, [len(old)])]
    before, after = (c / max(1, c.sum()) for c in counts)
    fresh = (counts[1] >= _FEW) & (before <= _RARE * after)
    return Clusters(fitted.cluster_centers_.astype(np.float32), before, after, fresh)
