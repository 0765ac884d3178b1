"""What facility location in two rounds is worth beside one.

    python benchmarks/partitions.py WORKSPACE [--n 4000] [--budgets 40 400]

The first n rows of a workspace's only embedding table. Worth is of the whole pool, over all pairs
whatever the kernel that chose: Σ_i max_{j ∈ S} max(cos_ij, 0), as a share of what greedy choice in
one round over all pairs is worth.
"""

import argparse

import numpy as np
from peer_works import rows_of

from coreset_ray.core.alone import select_alone
from coreset_ray.core.directions import OfEmbeddings
from coreset_ray.core.pool import Pool
from coreset_ray.core.similarity import Dense, nearest_rows
from coreset_ray.core.submodular import FacilityLocation as Function
from coreset_ray.selectors.facility_location import FacilityLocation

_PARTITIONS = (1, 2, 5, 10)
_DRAWS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace")
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[40, 400])
    options = parser.parse_args()
    pool = rows_of(options.workspace, options.n, ("embedding",))
    of = OfEmbeddings(pool["embedding"])
    neighbor, similarity = nearest_rows(of, FacilityLocation.neighbors)
    told = {"knn.neighbor": neighbor, "knn.similarity": similarity.astype(np.float32)}
    pool, kernel = Pool(pool.uid, {**pool.columns, **told}), Dense(of)
    heads = " | ".join(f"{p} partition{'s' * (p > 1)}" for p in _PARTITIONS)
    print(f"| kept | kernel | {heads} | random |\n|---|---|{'---:|' * (len(_PARTITIONS) + 1)}")
    for k in options.budgets:
        rng = np.random.default_rng(0)
        drawn = [rng.choice(len(pool), k, replace=False) for _ in range(_DRAWS)]
        random = np.mean([Function(kernel).after(rows).value() for rows in drawn])
        worth = {}
        for name in ("dense", "neighbors"):
            for p in _PARTITIONS:
                rows = select_alone(FacilityLocation(kernel=name), pool, k, 0, partitions=p).rows
                worth[name, p] = Function(kernel).after(rows).value()
            best = worth["dense", 1]
            cells = " | ".join(f"{worth[name, p] / best:.4f}" for p in _PARTITIONS)
            print(f"| {k} | {name} | {cells} | {random / best:.4f} |", flush=True)


if __name__ == "__main__":
    main()
