"""Linear and k-NN probes as Ray tasks, over embeddings that are gathered once for all of them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable, matrix, read_table
from coreset_ray.models.knn_probe import knn_accuracy
from coreset_ray.models.probe import ProbeResult, linear_probe


@dataclass(frozen=True)
class ProbeJob:
    """One coreset to probe. train: columns uid, label (integers) and weight; weighted: whether the
    fit uses it; neighbors: how many vote, by a k-NN probe, which knows no weights; None for a
    linear probe."""

    train: pa.Table
    weighted: bool
    neighbors: int | None = None


def probe_all(
    jobs: list[ProbeJob],
    pool: tuple[PartedTable, list[str]],
    test: tuple[PartedTable, list[str]],
    truth: pa.Table,
    *,
    l2: float,
    max_iterations: int,
) -> list[dict[str, Any]]:
    """Accuracy of each job's probe on the test images, in the order of the jobs.

    pool, test: a table and the names of its parts; truth: columns uid and label of test images;
    l2, max_iterations: of linear probes.
    """
    union = pa.concat_tables([job.train.select(["uid"]) for job in jobs])
    union = union.group_by("uid").aggregate([])["uid"]
    train = gather.remote(pool[0].folder.uri, pool[1], union)
    place = {uid: row for row, uid in enumerate(union.to_pylist())}
    embeddings = gather.remote(test[0].folder.uri, test[1], truth["uid"])
    answer = ray.put(truth["label"].to_numpy())
    settings = {"l2": l2, "max_iterations": max_iterations}
    tasks = []
    for job in jobs:
        rows = np.array([place[uid] for uid in job.train["uid"].to_pylist()])
        tasks.append(_probe.remote(job, rows, train, embeddings, answer, settings))
    return ray.get(tasks)


@ray.remote(num_cpus=1)
def _probe(
    job: ProbeJob,
    rows: np.ndarray,
    pool: np.ndarray,
    test: np.ndarray,
    truth: np.ndarray,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """rows: where the job's images lie in `pool`, the embeddings of all jobs together."""
    weights = job.train["weight"].to_numpy() if job.weighted else None
    labels = job.train["label"].to_numpy()
    if job.neighbors is None:
        return asdict(linear_probe(pool[rows], labels, weights, test, truth, **settings))
    order = np.argsort(job.train["uid"].to_pylist())  # of images equally near the smallest uid
    near = knn_accuracy(pool[rows[order]], labels[order], test, truth, k=job.neighbors)
    return asdict(ProbeResult(near, True))


@ray.remote(num_cpus=1)
def gather(folder: str, parts: list[str], uid: pa.ChunkedArray) -> np.ndarray:
    """Embeddings of the images named, (k, m) float32 in that order; one part in memory at a
    time beside the result."""
    table = PartedTable(locate(folder))
    wanted = set(uid.to_pylist())
    found = []
    for part in parts:
        rows = read_table(table.part(part), ["uid", "embedding"])
        found.append(rows.filter(pa.array([u in wanted for u in rows["uid"].to_pylist()])))
    rows = pa.concat_tables(found)
    place = {u: i for i, u in enumerate(rows["uid"].to_pylist())}
    return matrix(rows["embedding"])[[place[u] for u in uid.to_pylist()]]
