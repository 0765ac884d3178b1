"""k-NN probe: what the nearest images of a coreset say about an image, without any training."""

import numpy as np

from coreset_ray.core.cosine import nearest_rows, unit_rows


def knn_accuracy(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, *, k: int = 5
) -> float:
    """Share of test images that the majority of their k nearest coreset images names right.

    Nearest by cosine; all of a coreset of fewer than k. Votes count alike: a tie goes to the class
    of the larger sum of cosines, then to the smallest. Of images equally near the first of `train`
    are taken, so its order matters there alone.

    train: (n, m); labels: (n,) integers from 0; test: (q, m); truth: (q,). O(q n m).
    """
    if k < 1 or not len(train):
        raise ValueError(f"k={k} neighbours of {len(train)} images: expected one or more of each")
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"test embeddings have {test.shape[1]} dimensions, where the coreset's have "
            f"{train.shape[1]}: embed both with the same encoders"
        )
    place, cosine = nearest_rows(unit_rows(test), unit_rows(train), min(k, len(train)))
    voted, lines = labels[place], np.arange(len(test))
    shape = len(test), int(labels.max()) + 1
    count, total = np.zeros(shape, np.int64), np.zeros(shape)
    for vote, near in zip(voted.T, cosine.T, strict=True):  # best first: sums in a fixed order
        count[lines, vote] += 1
        total[lines, vote] += near
    most = count == count.max(axis=1, keepdims=True)
    return float((np.where(most, total, -np.inf).argmax(axis=1) == truth).mean())
