"""Whether all machines of the cluster see a folder: a workspace on a disk of one does not do."""

import time
import uuid
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from coreset_ray.io.filesystem import Location, locate

_SECONDS = 60.0  # that nodes have to answer; one that does not is not judged
_TRIES = 5  # of a look, a second apart: a network's file may take a moment to show

_seen: set[tuple[str, str]] = set()  # nodes and the folders that they see


def check_shared(folder: Location) -> None:
    """Raises `ValueError` where the folder is local and a living node does not see what this
    process writes there. Asks each node until it has answered."""
    here = ray.get_runtime_context().get_node_id()
    nodes = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}
    asked = [n for n in nodes if n != here and (n, folder.path) not in _seen]
    if not folder.local or not asked:
        return
    mark = folder / f".seen-{uuid.uuid4().hex}"
    mark.write_json({})
    try:
        answers = _answers(asked, mark)
    finally:
        mark.fs.delete_file(mark.path)
    if blind := [node for node, sees in answers.items() if not sees]:
        raise ValueError(
            f"workspace={folder.path!r} is a folder of this machine, and {len(blind)} of "
            f"{len(nodes)} nodes of the cluster do not see what is written there "
            f"({nodes[blind[0]]} first): use a filesystem that all mount at this path, or an "
            "object store (s3://, gs://, abfs://)"
        )
    _seen.update((node, folder.path) for node in answers)


def _answers(nodes: list[str], mark: Location) -> dict[str, bool]:
    """What the nodes say that answer."""
    tasks: dict[Any, str] = {}
    for node in nodes:
        on = NodeAffinitySchedulingStrategy(node, soft=False)
        tasks[_sees.options(scheduling_strategy=on).remote(mark.uri)] = node
    ready, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=_SECONDS)
    answers = {}
    for task in ready:
        try:
            answers[tasks[task]] = ray.get(task)
        except RayError:  # the node was lost meanwhile
            continue
    return answers


@ray.remote(num_cpus=0, max_retries=0)
def _sees(mark: str) -> bool:
    for _ in range(_TRIES):
        if locate(mark).exists():
            return True
        time.sleep(1.0)
    return False
