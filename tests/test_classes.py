"""The number of classes: found where groups stand apart, in doubt where they do not."""

import numpy as np
import pytest
from pools import table_of

from coreset_ray.clustering.classes import propose
from coreset_ray.clustering.kmeans_fit import Clustering
from coreset_ray.clustering.neighbors import single_thread
from coreset_ray.distributed.classes import propose_classes


def blobs(n: int, c: int, apart: float) -> np.ndarray:
    rng = np.random.default_rng(c)
    centers = apart * rng.normal(size=(c, 16))
    return (centers[rng.integers(0, c, n)] + rng.normal(size=(n, 16))).astype(np.float32)


@pytest.mark.parametrize("classes", [3, 10, 30])
@pytest.mark.parametrize("apart", [2.0, 20.0])  # one graph, or one for each class
def test_groups_that_stand_apart_are_counted(classes: int, apart: float) -> None:
    single_thread()
    found = propose(blobs(40 * classes + 400, classes, apart))
    assert found.classes == classes and found.strength > 1.5
    gaps = [line["gap"] for line in found.evidence]
    assert gaps == sorted(gaps, reverse=True) and len(gaps) > 30
    assert all("agreement" in line for line in found.evidence[:3])


def test_one_cloud_shows_no_number() -> None:
    single_thread()
    found = propose(np.random.default_rng(0).normal(size=(900, 16)).astype(np.float32))
    assert not found.stands_out


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="classes=auto: 99 images that differ are too few"):
        propose(np.ones((99, 3), np.float32))


def test_the_proposal_is_the_same_on_any_actors(ray_local, tmp_path) -> None:
    z, told = np.repeat(blobs(500, 4, 5.0), 2, axis=0), []
    table, parts = table_of(tmp_path / "table", z, 4)
    for actors in (1, 3):
        told.append(propose_classes(table, parts, Clustering(2), actors=actors))
    assert told[0] == told[1] and told[0]["sample"] == 500
    assert told[0]["classes"] == 4 and told[0]["stands_out"]
