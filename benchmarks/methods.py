"""Seconds and memory of methods that select by themselves, each in a process of its own.

    python benchmarks/methods.py WORKSPACE [--k 5000] [--methods k_center ...]     a pool's own rows
    python benchmarks/methods.py --rows 1000000 --dims 64 [--k 10000] ...          made-up rows

The runner of one process (`coreset_ray.core.alone`). Of a workspace: the embeddings of its only
finished neighbours, and these. Made-up rows are drawn around 1,000 centres; their neighbours are
others of the same centre, drawn. `peak` is of the whole process, `before` what it was before the
method began. Seconds include the compiling of what numba compiles.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from coreset_ray import catalog
from coreset_ray.core.alone import select_alone
from coreset_ray.core.pool import Pool
from coreset_ray.core.rule import Rule
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable, array_of, matrix, read_table, uid_words

_NEIGHBORS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", nargs="?")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--k", type=int, default=5000)
    parser.add_argument("--methods", nargs="+", default=_without_proxy())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return run(options)
    print("| method | seconds | CPU seconds | before | peak |\n|---|---:|---:|---:|---:|")
    for name in options.methods:
        words = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        told = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
        print(
            f"| {name} | {told['seconds']:.1f} | {told['cpu']:.1f} | {told['before']:.2f} GiB | "
            f"{told['peak']:.2f} GiB |",
            flush=True,
        )


def run(options: argparse.Namespace) -> None:
    method = catalog.build_selector(options.one, {})
    assert not isinstance(method, Rule)
    pool = made_up(options, method.needs) if options.rows else read(options.workspace, method.needs)
    before, start, cpu = _peak(), time.perf_counter(), time.process_time()
    select_alone(method, pool, options.k, 0)
    told = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    print(json.dumps(told | {"before": before, "peak": _peak()}))


def read(workspace: str, needs: tuple[str, ...]) -> Pool:
    (done,) = Path(workspace, "signals").glob("knn-*/done.json")
    record = json.loads(done.read_text())
    table = PartedTable(locate(f"{workspace}/embeddings/{record['table']}"))
    columns: dict[str, list[np.ndarray]] = {name: [] for name in needs}
    uid = []
    for part in record["parts"]:
        rows = read_table(table.part(part), ["uid", "embedding"])
        uid.append(uid_words(rows["uid"]))
        for name in needs:
            if name == "embedding":
                columns[name].append(matrix(rows["embedding"]))
            else:
                column = name.partition(".")[2]
                told = read_table(locate(f"{done.parent}/part-{part}.parquet"), [column])
                columns[name].append(array_of(told[column]))
    return Pool(np.concatenate(uid), {n: np.concatenate(c) for n, c in columns.items()})


def made_up(options: argparse.Namespace, needs: tuple[str, ...]) -> Pool:
    rng = np.random.default_rng(0)
    centre = np.sort(rng.integers(0, 1000, options.rows))
    uid = np.stack([np.zeros(options.rows), np.arange(options.rows)], 1).astype(np.uint64)
    columns: dict[str, np.ndarray] = {}
    if "embedding" in needs:
        means = rng.normal(size=(1000, options.dims)).astype(np.float32)
        noise = rng.normal(size=(options.rows, options.dims)).astype(np.float32)
        columns["embedding"] = means[centre] + noise
    if "knn.neighbor" in needs:
        first = np.searchsorted(centre, np.arange(1000))
        size = np.bincount(centre, minlength=1000)
        drawn = rng.random((options.rows, _NEIGHBORS), np.float32)
        near = first[centre][:, None] + (drawn * size[centre][:, None]).astype(np.int64)
        columns["knn.neighbor"] = near
        columns["knn.similarity"] = -np.sort(-rng.uniform(0.3, 0.9, drawn.shape), 1).astype("f4")
    return Pool(uid, columns)


def _without_proxy() -> list[str]:
    """The methods that read embeddings and neighbours alone, and no target set."""
    known = catalog.selector_classes().items()
    return [
        name
        for name, kind in known
        if not issubclass(kind, Rule)
        and all(n == "embedding" or n.startswith("knn.") for n in kind.needs)
        and not getattr(kind, "targeted", False)
    ]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
