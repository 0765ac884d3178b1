"""Processes of a run that Ray kills because a node is short of memory.

Ray begins anew whatever such a process was at, without end (`task_oom_retries`), so on nodes that
are too small a run would neither get on nor end.
"""

import logging
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.state import list_workers

from coreset_ray.distributed.lookout import Lookout
from coreset_ray.distributed.progress import Progress

_log = logging.getLogger(__name__)
_SECONDS = 10.0  # between looks
_MOST = 30  # looks that see kills, one after another, with nothing done between: five minutes
_KEPT = 1000  # workers that Ray tells of


class MemoryKills(Lookout):
    """Says which processes of this run were killed, and ends the run where for minutes nothing
    happened but kills. Sees nothing where the cluster runs without Ray's dashboard."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__(_SECONDS)
        self.most = most or _MOST
        self.seen: set[str] = set()
        self.looks = self.kills = self.steps = 0
        self.reason = ""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        super().__exit__(kind, error, trace)
        if self.reason and isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise RuntimeError(self.reason) from None

    def once(self) -> None:
        context = ray.get_runtime_context()
        killed: list[Any] = list_workers(
            address=context.gcs_address,
            filters=[("exit_type", "=", "NODE_OUT_OF_MEMORY")],
            limit=_KEPT,
            detail=True,
            raise_on_missing_output=False,
        )
        here = {node["NodeID"] for node in ray.nodes()}
        self.look([worker for worker in killed if worker.node_id in here], context.get_job_id())
        if self.reason:
            self.end.set()
            if not _interrupt():
                _log.error("%s", self.reason)

    def look(self, killed: Sequence[Any], job: str) -> None:
        """killed: workers for want of memory, as `list_workers` tells of them, whosever they were;
        job: of this run."""
        if Progress.steps != self.steps:
            self.looks, self.kills, self.steps = 0, 0, Progress.steps
        new = [w for w in killed if w.worker_id not in self.seen and f"job ID={job}" in _why(w)]
        if not new:
            return
        self.seen |= {w.worker_id for w in new}
        self.looks, self.kills = self.looks + 1, self.kills + len(new)
        for node, count in Counter(w.ip for w in new).items():
            _log.warning(
                "%d processes of this run were killed on %s, which is short of memory, and what "
                "they were at is begun again",
                *(count, node),
            )
        if self.looks >= self.most:
            used = _why(new[-1]).partition("\n")[0]
            self.reason = (
                f"{self.kills} processes were killed for want of memory, one after another, and "
                f"nothing got done between. What is finished is kept, and the same command goes "
                "on from there: give nodes more memory, or lower compute.encoders, "
                f"compute.score_workers or compute.batch_size. Of the last one Ray says: {used}"
            )


def _why(worker: Any) -> str:
    return worker.exit_detail or ""


def _interrupt() -> bool:
    """Has the main thread end the run in order, as if by hand; whether it listens to that."""
    main = threading.main_thread().ident
    for number in (signal.SIGINT, signal.SIGTERM):
        if main is not None and callable(signal.getsignal(number)):
            signal.pthread_kill(main, number)
            return True
    return False
