"""Shares out draws over replicas, and commits their sums as they come."""

import time
from collections import deque
from typing import Any

import ray

from coreset_ray.core.method import Sampled
from coreset_ray.core.pace import pause_after
from coreset_ray.distributed import metrics
from coreset_ray.distributed.losses import LOST, Losses
from coreset_ray.distributed.progress import Progress
from coreset_ray.distributed.replicas import Pool, Replica, agreed, new_replica
from coreset_ray.io.ledger import Chunk, Ledger, Record, missing

_CHUNK_SECONDS = 2.0
_FIRST, _MOST = 256, 1 << 17  # draws of a chunk

Span = tuple[int, int]  # draws first … last - 1


class Drawing:
    """Replicas at work on one method, seed and pool.

    Draws go out in chunks to whichever replicas are up: one that starts late, or never for want
    of room, holds nothing back, and what a lost one had not committed is drawn again.
    """

    def __init__(self, pool: Pool, method: Sampled, seed: int, ledger: Ledger, replicas: int):
        self.pool, self.method, self.seed, self.ledger = pool, method, seed, ledger
        self.known: Any = None
        self.count, self.losses = replicas, Losses("score")
        self.replicas: list[Replica] = []
        self.idle: list[Replica] = []
        self.busy: dict[ray.ObjectRef, tuple[Replica, Span | None]] = {}
        self.facts: dict[str, Any] | None = None

    def until(self, draws: int) -> list[Record]:
        """Draws whatever of the first `draws` is not in the ledger; the records that hold it."""
        done = [chunk for record in self.ledger.usable(draws) for chunk in record.chunks]
        self.todo = deque(missing(done, 0, draws))
        self.drawn = draws - self._left()
        self.begun = time.monotonic()
        with Progress("score", draws, "draws") as progress:
            progress.update(self.drawn)
            while not self._committed():
                while self.todo or self._drawing() or self.facts is None:
                    self._staff()
                    self._hand_out()
                    self._take_in()
                    progress.update(self.drawn)
        return self.ledger.usable(draws)

    def end(self) -> None:
        for replica in self.replicas:
            replica.end()
        self.replicas, self.idle, self.busy = [], [], {}

    def _committed(self) -> bool:
        """Commits what has been drawn, once nothing is left to draw; False where more is."""
        if self.todo or self._drawing() or self.facts is None:
            return False
        for replica in list(self.replicas):
            try:
                with metrics.timed("write"):
                    replica.commit(self.ledger, self.pool.shards)
            except LOST as error:
                self._lost(replica, None, error)
        return not self.todo

    def _staff(self) -> None:
        while self.known is None:
            first = new_replica(self.pool, self.method)
            try:
                self.known = ray.put(agreed(first.actors, self.pool.shards[0].pool))
                self._start(first)
            except LOST as error:
                self._lost(first, None, error)
        while len(self.replicas) < self.count:
            self._start(new_replica(self.pool, self.method))

    def _start(self, replica: Replica) -> None:
        self.replicas.append(replica)
        ready = replica.lead.start.remote(
            self.known, self.method, self.seed, self.ledger.folder.uri
        )
        self.busy[ready] = replica, None

    def _hand_out(self) -> None:
        while self.todo and self.idle:
            replica = self.idle.pop()
            span = self._next(self._size(replica))
            self.busy[replica.lead.tally.remote(*span)] = replica, span

    def _take_in(self) -> None:
        for reference in ray.wait(list(self.busy), num_returns=1, fetch_local=False)[0]:
            replica, span = self.busy.pop(reference)
            try:
                answer = ray.get(reference)
                if span is None:
                    if self.facts is None:
                        metrics.add(layout=time.monotonic() - self.begun)
                    self.facts = answer
                    metrics.add(replicas=1)
                else:
                    self._count(replica, span, *answer)
                self.idle.append(replica)
            except LOST as error:
                self._lost(replica, span, error)

    def _count(self, replica: Replica, span: Span, mark: int, seconds: float) -> None:
        replica.chunks.append(Chunk(*span, mark))
        replica.speed = (span[1] - span[0]) / max(seconds, 1e-6)
        draws = span[1] - span[0]
        self.drawn += draws
        scanned = draws * self.method.draw_bytes(self.pool.shards[0].pool)
        metrics.add(draws=draws, draw=seconds, scanned=scanned)
        start = time.monotonic()
        if start > replica.next_commit:
            with metrics.timed("write"):
                replica.commit(self.ledger, self.pool.shards)
            self.losses.got_on()
            spent = time.monotonic() - start
            replica.next_commit = start + spent + pause_after(spent)

    def _lost(self, replica: Replica, span: Span | None, error: BaseException) -> None:
        """Puts back what a lost replica had not committed, whose place another will take."""
        self.losses.met(error)
        kept = len(replica.committed.chunks) if replica.committed else 0
        for chunk in replica.chunks[kept:]:
            self.todo.append((chunk.first, chunk.last))
            self.drawn -= chunk.last - chunk.first
        if span is not None and all(chunk.first != span[0] for chunk in replica.chunks):
            self.todo.append(span)
        self.replicas = [other for other in self.replicas if other is not replica]
        self.idle = [other for other in self.idle if other is not replica]
        self.busy = {r: work for r, work in self.busy.items() if work[0] is not replica}
        replica.end()

    def _drawing(self) -> bool:
        return any(span is not None for _, span in self.busy.values())

    def _left(self) -> int:
        return sum(last - first for first, last in self.todo)

    def _size(self, replica: Replica) -> int:
        """Draws of the next chunk: some seconds of work, and no more than a fair share."""
        wanted = replica.speed * _CHUNK_SECONDS if replica.speed else _FIRST
        fair = max(_FIRST, self._left() // (2 * self.count))
        return int(max(1, min(wanted, fair, _MOST)))

    def _next(self, size: int) -> Span:
        first, last = self.todo.popleft()
        if last - first > size:
            self.todo.appendleft((first + size, last))
        return first, min(last, first + size)
