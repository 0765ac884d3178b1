"""A finished run looked at again: its sums, and some of its draws made once more."""

from collections.abc import Iterator, Sequence

import ray

from coreset_ray.core.method import Sampled
from coreset_ray.distributed.finish import gather
from coreset_ray.distributed.replicas import Pool, agreed, new_replica
from coreset_ray.io.ledger import Chunk, Ledger, Record
from coreset_ray.io.row_files import RowShard
from coreset_ray.io.tables import PartedTable


def replay(
    method: Sampled,
    seed: int,
    table: PartedTable,
    shards: Sequence[RowShard],
    ledger: Ledger,
    chunks: Sequence[Chunk],
) -> Iterator[tuple[Chunk, int]]:
    """Each chunk and the checksum that its draws give now. Writes nothing to the ledger."""
    replica = new_replica(Pool(table.folder.uri, shards, 0.0), method)
    try:
        known = ray.put(agreed(replica.actors, shards[0].pool))
        ray.get(replica.lead.start.remote(known, method, seed, ledger.folder.uri))
        for chunk in chunks:
            yield chunk, ray.get(replica.lead.tally.remote(chunk.first, chunk.last))[0]
    finally:
        replica.end()


def examine(
    method: Sampled,
    table: PartedTable,
    shards: Sequence[RowShard],
    ledger: Ledger,
    records: Sequence[Record],
    scores: str,
) -> tuple[int, str | None]:
    """The checksum of the sums kept, and the first part whose scores are not those of its sum."""
    actors = gather(method, ledger, records, shards)
    total = sum(ray.get([a.checksum.remote(table.folder.uri) for a in actors])) % 2**64
    found = ray.get([a.differing.remote(scores) for a in actors])
    return total, next(filter(None, found), None)
