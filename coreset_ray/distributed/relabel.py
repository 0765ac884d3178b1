"""Clusters of k-means as pseudo-labels."""

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import read_table, write_table


def labels_of_clusters(clusters: Location, parts: dict[str, int], out: Location) -> list[int]:
    """Writes a part of labels for every part of clusters that has none yet: uid, label,
    confidence, 1 / (1 + distance to the centroid), and agreement, 1. Returns rows of each label.
    """
    tasks = [_relabel.remote((clusters / f"part-{p}.parquet").uri, out.uri, p) for p in parts]
    counts = ray.get(tasks)
    total = np.zeros(max(map(len, counts)), np.int64)
    for count in counts:
        total[: len(count)] += count
    return total.tolist()


@ray.remote(num_cpus=1)
def _relabel(clusters: str, out: str, part: str) -> np.ndarray:
    rows, place = read_table(locate(clusters)), locate(out) / f"part-{part}.parquet"
    label = rows["cluster"].to_numpy()
    if not place.exists():
        confidence = 1 / (1 + rows["distance"].to_numpy())
        columns = {
            "uid": rows["uid"],
            "label": pa.array(label, pa.int32()),
            "confidence": pa.array(confidence, pa.float32()),
            "agreement": pa.array(np.ones(len(rows)), pa.float32()),
        }
        write_table(place, pa.table(columns))
    return np.bincount(label)
