"""How many classes a pool may have, proposed from a sample of its rows."""

from dataclasses import asdict
from typing import Any

import numpy as np

from coreset_ray.clustering.classes import propose
from coreset_ray.clustering.kmeans_fit import Clustering, space_for
from coreset_ray.clustering.kmeans_shard import Level, leading
from coreset_ray.distributed.kmeans import holding
from coreset_ray.io.tables import PartedTable

_SAMPLE = 20_000
_MORE = 1.1  # than are wanted are read, so that chance leaves no fewer


def propose_classes(
    table: PartedTable, parts: dict[str, int], wanted: Clustering, *, actors: int
) -> dict[str, Any]:
    """`classes`, how far it stands out, and the evidence: a line for each candidate, best first.

    wanted: of which only how rows are seen and the seed matter. The same for any number of actors
    and any cut of the pool. Raises `ValueError` for a pool too small to tell.
    """
    rows, most = sum(parts.values()), np.array([_SAMPLE])
    with holding(table, parts, actors=actors) as (ask, _):
        level = Level(space_for(ask, rows, wanted))
        sample = None
        for found in ask("first", level, most, wanted.seed, _MORE * _SAMPLE / rows):
            sample = leading([s for s in (sample, found) if s is not None], most)
    assert sample is not None, "a pool has parts"
    proposal = propose(sample.rows, seed=wanted.seed)
    return {**asdict(proposal), "stands_out": proposal.stands_out, "sample": len(sample.rows)}
