"""What all rows of a pool have in common, agreed between the places that hold its shards."""

from collections.abc import Callable
from typing import Any

import numpy as np

from coreset_ray.core.columns import Spread, finish_spread, middle_ranks
from coreset_ray.core.ranks import RankSearch, values_of


def survey(ask: Callable[..., list[Any]], rows: int) -> tuple[Spread, np.ndarray]:
    """The spread of a pool of so many rows, and the sample that guesses radii.

    ask(step, *arguments): what each shard answers to `extremes`, `digits`, `moments`, `sample`
    (`io.row_files`). Exact whatever the shards: minima, maxima and whole-number sums are merged,
    and the median is found by counting. Holds numbers by dimension, none by row.
    """
    lows, highs = zip(*ask("extremes"), strict=True)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    search = RankSearch(np.tile(middle_ranks(rows), (len(low), 1)), np.uint32)
    while not search.done:
        search.answer(np.sum(ask("digits", *search.question()), axis=0))
    mode = values_of(search.found).astype(float).mean(axis=1)
    moments = np.array(ask("moments", low, high), object).sum(axis=0)
    sample = np.concatenate(ask("sample"), axis=1)
    return finish_spread(low, mode, high, moments, rows), sample
