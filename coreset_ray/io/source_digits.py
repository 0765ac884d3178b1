"""scikit-learn's handwritten digits as a source: 1,797 grey images of 8x8, ten classes, no network.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import numpy as np

from coreset_ray.io.source_png import png_bytes
from coreset_ray.io.source_sample import Sample, Source, Split

TEST_SHARE = 0.2


def digits_samples(split: Literal["train", "test"], *, seed: int = 0) -> Iterator[Sample]:
    """The samples of one split of `open_digits`. ValueError: an unknown split, no scikit-learn."""
    if split not in ("train", "test"):
        raise ValueError(f"digits has no split {split!r}: choose 'train' or 'test'")
    return iter(open_digits(seed=seed).splits[split])


def open_digits(*, seed: int = 0) -> Source:
    """Train and a held-out, stratified test split of 20%, drawn by `seed`.

    A key is the image's row in scikit-learn's table, so it names the same image for every seed;
    grey values 0..16 become 0..255. ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ValueError(
            "source 'digits' needs scikit-learn: pip install 'coreset-ray[demo]'"
        ) from error

    pixels, labels = load_digits(return_X_y=True)  # (n, 64) of 0..16, (n,)
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=seed
    )
    splits = {
        name: Split(len(rows), partial(_read, images, np.asarray(labels), np.sort(rows)))
        for name, rows in (("train", train), ("test", test))
    }
    return Source(splits, tuple(str(digit) for digit in range(10)))


def _read(images: np.ndarray, labels: np.ndarray, rows: np.ndarray, i: int) -> Sample:
    from PIL import Image

    row = rows[i]
    members = {"png": png_bytes(Image.fromarray(images[row])), "cls": str(labels[row]).encode()}
    return Sample(f"{row:05d}", members)
