"""Wall times and bytes of each stage, from what was measured on the cluster and the pool's size.

n rows, m dimensions, k rows kept, t draws. Rates are of one process unless a name says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coreset_ray.core import costs
from coreset_ray.core.pace import share_left


@dataclass(frozen=True)
class PoolSize:
    """The pool. rows, dims: of the table; image_bytes: of its shards; missing_bytes,
    missing_rows: of shards not embedded yet; exact: rows are counted, not estimated."""

    shards: int
    image_bytes: int
    rows: int
    dims: int
    missing_shards: int
    missing_bytes: int
    missing_rows: int
    exact: bool


@dataclass(frozen=True)
class DrawCost:
    """Seconds of one draw of one worker, all at work: fixed + per_row · n. rows: of the trials it
    is fitted to, of `dims` dimensions; real: on the pool's own columns."""

    fixed: float
    per_row: float
    rows: tuple[int, ...]
    dims: int
    real: bool

    def seconds(self, n: int) -> float:
        return self.fixed + self.per_row * n


@dataclass(frozen=True)
class Drawing:
    """start: seconds from nothing to all workers ready; workers: that came up in the trial."""

    cost: DrawCost
    start: float
    workers: int


@dataclass(frozen=True)
class RowCosts:
    """Seconds and bytes by process. layout: bytes of columns laid out a second; save: bytes of
    sums committed a second; finish, rank: seconds a row to turn sums into score parts, and to
    rank them; start: seconds for an actor to come up; base: bytes of a process that draws."""

    layout: float
    save: float
    finish: float
    rank: float
    start: float
    base: int


@dataclass(frozen=True)
class Encoding:
    """width: m; start: seconds until images flow; decode, encode: seconds an image; memory: bytes
    of an encoder process; actors: encoders of the run; device; cpus: of the cluster."""

    width: int
    start: float
    decode: float
    encode: float
    memory: int
    actors: int
    device: str
    encoder_cpus: float
    cpus: float

    @property
    def rate(self) -> float:
        """Images a second: the encoders', unless the CPUs that decode (and on a CPU also encode)
        give fewer."""
        if self.device == "cpu":
            shared = self.cpus / (self.decode + self.encode)
        else:
            left = max(0.5, self.cpus - self.actors * self.encoder_cpus)
            shared = left / self.decode
        return min(self.actors / self.encode, shared)


@dataclass(frozen=True)
class Stage:
    """reads, writes: bytes; seconds: None where not planned; note: what to know of it."""

    name: str
    reads: int
    writes: int
    seconds: float | None
    note: str = ""


def fit(trials: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(fixed, per row) of seconds that grow linearly with rows, through the smallest and the
    largest trial; proportional where they do not grow, which says too much, not too little."""
    (low, early), (high, late) = min(trials), max(trials)
    if high == low:
        return 0.0, late / high
    slope = (late - early) / (high - low)
    if slope <= 0 or late - slope * high < 0:
        return 0.0, late / high
    return late - slope * high, slope


def embed_stage(pool: PoolSize, encoding: Encoding | None, dtype: str) -> Stage:
    if encoding is None:
        return Stage("embed", 0, 0, 0.0, "finished")
    written = costs.embedding_bytes(pool.missing_rows, pool.dims, dtype, pool.missing_shards)
    seconds = encoding.start + pool.missing_rows / encoding.rate
    note = f"{encoding.rate:,.0f} images/s, {encoding.actors} encoders on {encoding.device}"
    return Stage("embed", pool.missing_bytes, written, seconds, note)


def draw_rate(drawing: Drawing, n: int, channels: int, spreading: costs.Spreading,
              rows: RowCosts) -> float:  # fmt: skip
    """Draws a second of all workers, less the time that commits take."""
    kept = share_left(commit_seconds(n, channels, rows, spreading.row_shards))
    return kept * spreading.workers / drawing.cost.seconds(n)


def score_stage(
    pool: PoolSize,
    table_bytes: int,
    channels: int,
    draws: int,
    spreading: costs.Spreading,
    nodes: int,
    laid_out: bool,
    drawing: Drawing | None,
    rows: RowCosts,
    width: int,
) -> Stage:
    """Start, layout of the columns, draws, and score parts from their sums. draws: still to do;
    width: bytes of a value of the columns. The first replica lays out its shards at once, and
    other machines while it draws."""
    n, shards = pool.rows, spreading.row_shards
    columns = 0 if laid_out else costs.columns_total(n, pool.dims, shards, width)
    sums = costs.ledger_bytes(n, channels, spreading.workers)
    scores = costs.score_bytes(n, pool.shards)
    seconds = rows.start + columns / rows.layout + n * rows.finish / shards
    note = "no draws are left"
    if drawing is not None and draws:
        seconds += drawing.start
        rate = draw_rate(drawing, n, channels, spreading, rows)
        seconds += draws / rate + spreading.workers * commit_seconds(n, channels, rows, shards)
        note = f"{draws:,} draws at {rate:,.0f}/s"
    held = min(nodes, spreading.workers * shards)  # nodes that lay out a copy, at most
    reads = 0 if laid_out else table_bytes * (held if shards == 1 else 1)
    copies = columns * shards * (held if shards == 1 else 1)
    return Stage("score", reads, copies + sums + scores, seconds, note)


def commit_seconds(n: int, channels: int, rows: RowCosts, shards: int) -> float:
    """Seconds of one commit."""
    return costs.sum_bytes(n, channels) / shards / rows.save


def rows_stage(pool: PoolSize, table_bytes: int, cpus: float, rows: RowCosts) -> Stage:
    """Scoring by a method that looks at each row alone: a task a part."""
    tasks = max(1, min(int(cpus), pool.shards))
    seconds = rows.start + pool.rows * rows.finish / tasks
    return Stage("score", table_bytes, costs.score_bytes(pool.rows, pool.shards), seconds)


def select_stage(pool: PoolSize, k: int, processes: int, rows: RowCosts) -> Stage:
    """Reads uid and score of every row, in so many processes; one more writes the manifest."""
    seconds = 2 * rows.start + pool.rows * rows.rank / processes
    reads = costs.score_bytes(pool.rows, pool.shards)
    return Stage("select", reads, costs.manifest_bytes(k), seconds)


def export_stage(pool: PoolSize, k: int, rate: float, cpus: float, start: float) -> Stage:
    """Every shard is searched once, then the chosen bytes are read and written. rate: bytes a
    second of one reader."""
    chosen = pool.image_bytes * k // max(1, pool.rows)
    readers = max(1, min(int(cpus), pool.shards))
    seconds = start + (pool.image_bytes + 2 * chosen) / (rate * readers)
    return Stage("export", pool.image_bytes + chosen, chosen + 2 * costs.manifest_bytes(k), seconds)
