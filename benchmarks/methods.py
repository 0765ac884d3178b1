"""Seconds and memory of methods that select by themselves, each in a process of its own.

    python benchmarks/methods.py WORKSPACE [--k 5000] [--methods k_center ...]     a pool's own rows
    python benchmarks/methods.py --rows 1000000 --dims 64 [--k 10000] ...          made-up rows

The runner of one process (`coreset_ray.core.alone`). Of a workspace: the embeddings of its only
finished neighbours, and its only signals of each name. Made-up rows: `coreset_ray.core.made_up`.
--balance: as many of each class of the classifier that a method reads; --partitions: of a method
that needs all rows, here one after another; --params: settings of each of --methods, as JSON. A
target set is 100 rows of the pool. `peak` is of the whole process, `before` what it was before the
method began. Seconds include the compiling of what numba compiles.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from coreset_ray import catalog
from coreset_ray.core.alone import select_alone
from coreset_ray.core.made_up import Widths, can_make_up, made_up
from coreset_ray.core.pool import Pool, joined
from coreset_ray.core.rule import Rule
from coreset_ray.core.whole_set import WholeSet
from coreset_ray.distributed.blocks import PoolFiles, signals_of

_TARGETS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", nargs="?")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--k", type=int, default=5000)
    parser.add_argument("--balance", action="store_true")
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--params", type=json.loads, default={})
    parser.add_argument("--methods", nargs="+", default=_methods())
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
    method = catalog.build_selector(options.one, options.params)
    assert not isinstance(method, Rule)
    targeted = isinstance(method, WholeSet) and method.targeted
    needs = method.needs
    if options.balance and "proxy.label" not in needs:
        needs = *needs, "proxy.label"
    if options.rows:
        pool = made_up(needs, options.rows, Widths(options.dims, classes=options.classes))
    else:
        pool = read(options.workspace, needs)
    group = pool["proxy.label"] if options.balance else None
    target = pool["embedding"][:_TARGETS].copy() if targeted else None
    told = {"group": group, "target": target, "partitions": options.partitions}
    before, start, cpu = _peak(), time.perf_counter(), time.process_time()
    select_alone(method, pool, options.k, 0, **told)
    told = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    print(json.dumps(told | {"before": before, "peak": _peak()}))


def read(workspace: str, needs: tuple[str, ...]) -> Pool:
    root = Path(workspace)
    signals = {name: _only(root, name) for name in signals_of(needs)}
    (table,) = (root / "embeddings").glob("*/parts")
    files = PoolFiles(str(table.parent), {name: str(folder) for name, folder in signals.items()})
    done = json.loads((_only(root, "knn") / "done.json").read_text())
    return joined([files.read(part, needs) for part in done["parts"]])


def _only(root: Path, signal: str) -> Path:
    """The folder of a workspace's only finished signal of this name."""
    (done,) = (root / "signals").glob(f"{signal}-*/done.json")
    return done.parent


def _methods() -> list[str]:
    """Those that read what can be made up, but for local patterns, which few workspaces hold."""
    known = [(n, k) for n, k in catalog.selector_classes().items() if not issubclass(k, Rule)]
    return [n for n, k in known if can_make_up(k.needs) and "patterns.pattern" not in k.needs]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
