"""What lies at each place of a degraded pool, decided from counts and labels before any image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coreset_ray.io.degrade import Degrade
from coreset_ray.io.labels import class_names

TOPIC, OFF_TOPIC, BLANK, NOISE = range(4)


@dataclass(frozen=True)
class Plan:
    """The pool, place by place. what: (n,) one of the four above; origin: (n,) position of the
    original in its source (for blank and noise: of the image whose size they take); copy: (n,) 0
    for the original itself, else the number of the copy. distinct: originals of the topic."""

    what: np.ndarray
    origin: np.ndarray
    copy: np.ndarray
    distinct: int


def plan_pool(
    settings: Degrade,
    images: int,
    *,
    labels: Sequence[str] | None = None,
    off_topic: int = 0,
    shuffle: bool = True,
) -> Plan:
    """images, off_topic: how many each source has; labels: of the images, where `long_tail` is on.

    ValueError: `size` asks for more distinct images than there are.
    """
    order = np.random.default_rng([settings.seed, 0])
    kept = order.permutation(images)
    if settings.long_tail > 1:
        assert labels is not None and len(labels) == images
        kept = long_tail(labels, settings.long_tail, order)
    distinct = len(kept) if settings.size is None else int(settings.size / settings.factor)
    if distinct > len(kept):
        raise ValueError(
            f"size={settings.size} at factor={settings.factor:g} takes {distinct} distinct images; "
            f"the source has {len(kept)} at long_tail={settings.long_tail:g}: lower size to "
            f"{int(len(kept) * settings.factor)}, or raise factor"
        )
    total = settings.size or math.ceil(distinct * settings.factor - 1e-6)
    off, blank, noise = (
        int(share * total + 1e-9) for share in (settings.off_topic, settings.blank, settings.noise)
    )
    topic = order.permutation(kept[:distinct])
    strangers = order.permutation(off_topic)[: min(off, max(1, int(off / settings.factor)))]
    parts = [
        _groups(TOPIC, topic, total - off - blank - noise, settings.exponent),
        _groups(OFF_TOPIC, strangers, off, settings.exponent),
        *(
            (np.full(n, what), order.choice(topic, n), np.arange(n))
            for what, n in ((BLANK, blank), (NOISE, noise))
        ),
    ]
    what, origin, copy = (np.concatenate(column) for column in zip(*parts, strict=True))
    places = order.permutation(total) if shuffle else np.arange(total)
    return Plan(what[places], origin[places], copy[places], distinct)


def group_sizes(groups: int, images: int, exponent: float) -> np.ndarray:
    """How many images each group has: one each, the others in proportion to rank^-exponent, by
    largest remainder. Returns: (groups,) integers, largest first, that add up to `images`."""
    assert groups <= images
    weights = np.arange(1.0, groups + 1) ** -exponent
    share = (images - groups) * (weights / weights.sum())
    sizes = np.floor(share).astype(np.int64)
    short = images - groups - sizes.sum()
    sizes[np.argsort(sizes - share, kind="stable")[:short]] += 1
    return sizes + 1


def long_tail(labels: Sequence[str], ratio: float, order: np.random.Generator) -> np.ndarray:
    """Positions of the images that stay when class i of c, in the order of the classes, keeps
    max · ratio^(-i / (c - 1)), at least one and at most what it has.

    They come in an order of which every beginning holds the classes in these proportions, and
    each class at least once where it is as long as the number of classes.
    """
    names = class_names(labels)
    number = {name: i for i, name in enumerate(names)}
    codes = np.array([number[label] for label in labels])
    largest = np.bincount(codes).max()
    rows, depths = [], []
    for i in range(len(names)):
        members = order.permutation(np.flatnonzero(codes == i))
        count = max(1, round(largest * ratio ** (-i / max(1, len(names) - 1))))
        rows.append(members[:count])
        depths.append(np.arange(len(rows[-1])) / len(rows[-1]))
    place = np.argsort(np.concatenate(depths), kind="stable")  # ties: in the order of the classes
    return np.concatenate(rows)[place]


def _groups(what: int, origins: np.ndarray, images: int, exponent: float) -> tuple[np.ndarray, ...]:
    """(what, origin, copy) of one group of duplicates after another, largest first."""
    if images == 0:
        return (np.empty(0, np.int64),) * 3
    sizes = group_sizes(len(origins), images, exponent)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.full(images, what), np.repeat(origins, sizes), np.arange(images) - starts
