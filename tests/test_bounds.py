"""The heap of bounds against Python's own."""

import heapq

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset_ray.core.bounds import Bounds

GAINS = st.lists(st.integers(-3, 3).map(lambda x: x / 2), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None, database=None)
@given(GAINS, st.lists(st.integers(1, 9), max_size=12), st.randoms(use_true_random=False))
def test_rows_come_in_the_order_of_a_plain_heap(gains, counts, random):
    """With many equal bounds; what is put back has a lower one, as gains that fall have."""
    rows = np.arange(len(gains)) * 3 + 1
    bounds = Bounds(rows, np.array(gains))
    heap = [(-gain, row, 0) for gain, row in zip(gains, rows.tolist(), strict=True)]
    heapq.heapify(heap)
    for step, count in enumerate(counts, start=1):
        found = bounds.stale(step, count)
        wanted = []
        while heap and len(wanted) < count and heap[0][2] < step:
            wanted.append(heapq.heappop(heap))
        assert found.tolist() == [row for _, row, _ in wanted]
        lower = [-low - random.choice([0.0, 0.5, 1.0]) for low, _, _ in wanted]
        bounds.put(found, np.array(lower), step)
        for (_, row, _), gain in zip(wanted, lower, strict=True):
            heapq.heappush(heap, (-gain, row, step))
        while heap and heap[0][2] < step:  # as lazy choice does before it takes a row
            _, row, _ = heapq.heappop(heap)
            assert bounds.stale(step, 1).tolist() == [row]
        if not heap:
            return
        assert len(bounds.stale(step, count)) == 0, "the first is of this step"
        low, row, _ = heapq.heappop(heap)
        assert bounds.pop(step) == (row, -low)
        if not heap:
            return


def test_all_come_out_in_order():
    rng = np.random.default_rng(0)
    gain = rng.integers(0, 50, 1000).astype(np.float64)
    bounds = Bounds(np.arange(1000), gain)
    assert bounds.stale(1, 2000).tolist() == np.lexsort((np.arange(1000), -gain)).tolist()
