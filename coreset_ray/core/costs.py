"""What a run needs, as arithmetic on the size of its pool: bytes of memory and of disk, and how
rows and draws are shared out so that they fit.

n rows, m dimensions, k rows kept. Whatever depends on a machine is measured and passed in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coreset_ray.core.columns import sample_size
from coreset_ray.core.lanes import LANES

COLUMN_SHARE = 0.6  # of a node's memory for the columns that its processes share
SCRATCH = 28  # bytes a row of a draw's scratch: rows 4, distances 8, powers 8, words of rows 8
HEADER = 128  # of a .npy file

# Parquet with zstd as PyArrow writes it, measured on parts of 50 to 50,000 rows whose uid and
# sha256 are hashes, with keys of nine digits.
PART = 2_500  # bytes of a part that do not depend on its rows
IDENTITY = 61  # a row: uid 17, sha256 33, key, sizes and the shard's name
SCORED = 40  # a row: uid, key and three float64
KEPT = 42  # a row of the manifest
VALUES = 0.93  # of float32 and float16 values: mantissas hardly compress
DICTIONARY = 1 << 18  # float32 values of a part that are first put into a dictionary,
INDEXED = 1.5  # bytes more of each of them

Nodes = Sequence[tuple[float, float]]  # CPUs and bytes of memory of each


@dataclass(frozen=True)
class Spreading:
    """workers: replicas of the pool; row_shards: processes of each, which hold its rows."""

    workers: int
    row_shards: int


@dataclass(frozen=True)
class NodeNeed:
    """Bytes on one node. columns: of the `shards` row shards whose processes may run there,
    shared by all of them; each: private to a process; processes: as many as may run there;
    memory: what the node has."""

    shards: int
    columns: int
    processes: int
    each: int
    memory: int

    @property
    def total(self) -> int:
        return self.columns + self.processes * self.each


def column_bytes(n: int, m: int, row_shards: int = 1, width: int = 4) -> dict[str, int]:
    """Files of one row shard: value width·n·m, code 1·n·m (rows rounded up to 64), uid 16·n, and
    the whole pool's sample 4·s·m. n: rows of the whole pool; width: bytes of a value."""
    rows = math.ceil(n / row_shards)
    return {
        "value": width * rows * m + HEADER,
        "code": math.ceil(rows / LANES) * LANES * m + HEADER,
        "sample": 4 * sample_size(n) * m + HEADER,
        "uid": 16 * rows + HEADER,
    }


def columns_total(n: int, m: int, row_shards: int = 1, width: int = 4) -> int:
    """Bytes of one row shard's files."""
    return sum(column_bytes(n, m, row_shards, width).values())


def sum_bytes(n: int, channels: int) -> int:
    """Of the sum of some draws over n rows: two halves of int64, in memory and as a file."""
    return 16 * channels * n + HEADER


def process_bytes(n: int, channels: int, row_shards: int, base: int) -> int:
    """Private memory of a process that draws, at most: its base; the sum; as much again while
    it is committed; and the scratch of a draw that touches every row of its shard."""
    rows = math.ceil(n / row_shards)
    return base + 2 * sum_bytes(rows, channels) + SCRATCH * rows


def value_bytes(dtype: str) -> int:
    """Of one value: float32 or float16."""
    return {"float32": 4, "float16": 2}[dtype]


def embedding_bytes(n: int, m: int, dtype: str, parts: int) -> int:
    """Of the embedding table on disk."""
    width = value_bytes(dtype)
    indexed = min(n * m, DICTIONARY * parts) if dtype == "float32" else 0
    return int(n * (VALUES * width * m + IDENTITY) + INDEXED * indexed) + PART * parts


def score_bytes(n: int, parts: int) -> int:
    return SCORED * n + PART * parts


def manifest_bytes(k: int) -> int:
    return KEPT * k + PART


def ledger_bytes(n: int, channels: int, workers: int) -> int:
    """Of the sums on disk at most: each replica's last one, one that is taking its place, and
    the one of all."""
    return (2 * workers + 1) * sum_bytes(n, channels)


def choose_spreading(
    n: int,
    m: int,
    nodes: Nodes,
    workers: int | None = None,
    row_shards: int | None = None,
    width: int = 4,
) -> Spreading:
    """The fewest row shards with which every node holds those on it in `COLUMN_SHARE` of its
    memory, and a worker for all the CPUs they leave. What is given wins.

    One row shard wherever a node holds the pool: its processes share one copy, and a draw needs no
    messages. Where nothing fits, the spreading that comes nearest, left to `check_memory`.
    """
    cpus = int(sum(c for c, _ in nodes))

    def workers_of(shards: int) -> int:
        return workers or max(1, cpus // shards)

    def fullest(shards: int) -> float:
        spreading = Spreading(workers_of(shards), shards)
        one = columns_total(n, m, shards, width)
        return max(shards_on(c, nodes, spreading) * one / max(memory, 1) for c, memory in nodes)

    if row_shards is None:
        choices = range(1, max(1, cpus // (workers or 1)) + 1)
        fitting = (s for s in choices if fullest(s) <= COLUMN_SHARE)
        row_shards = next(fitting, None) or min(choices, key=lambda s: (fullest(s), s))
    return Spreading(workers_of(row_shards), row_shards)


def shards_on(cpus: float, nodes: Nodes, spreading: Spreading) -> int:
    """Different row shards whose processes may come to run on a node with so many CPUs: Ray puts
    each process wherever a CPU is free, so no more than the node has CPUs."""
    return min(spreading.row_shards, processes_on(cpus, nodes, spreading))


def processes_on(cpus: float, nodes: Nodes, spreading: Spreading) -> int:
    processes = spreading.workers * spreading.row_shards
    if processes > sum(c for c, _ in nodes):  # they hold no CPU, and may all run on one node
        return processes
    return min(processes, max(1, int(cpus)))


def node_needs(
    n: int, m: int, channels: int, spreading: Spreading, nodes: Nodes, base: int, width: int = 4
) -> list[NodeNeed]:
    """What each node needs while drawing, at most."""
    one = columns_total(n, m, spreading.row_shards, width)
    each = process_bytes(n, channels, spreading.row_shards, base)
    needs = []
    for cpus, memory in nodes:
        shards = shards_on(cpus, nodes, spreading)
        processes = processes_on(cpus, nodes, spreading)
        needs.append(NodeNeed(shards, shards * one, processes, each, int(memory)))
    return needs
