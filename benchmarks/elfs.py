"""ELFS and the other label-free methods on signals beside random, by linear probe over seeds; what
each stage of it costs.

    python benchmarks/elfs.py POOL TEST WORKSPACE [--budgets 0.01 0.05 0.1 0.3] [--seeds 5]

Every seed clusters, trains, scores, searches and selects anew. Ends with the table, how far the
pseudo-labels agree with the true labels (read for that alone), and the seconds of each stage.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from convergence import labeled

from coreset_ray.config import Config, load
from coreset_ray.distributed.probe import ProbeJob, probe_all
from coreset_ray.io.tables import read_table
from pipelines import embed, evaluate, score, search, select_coreset, signals
from pipelines.inputs import filled, pool_table
from pipelines.report import markdown, results_table

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_blindcs.yaml"
_BLIND = "score.params={draws: 1_000_000, dims: 2, neighbors: 1000, exponent: 4.0}"
_ELFS = [  # what two CPU cores can do
    *("score.method=elfs", "score.params={}", "signals.classes=10"),
    "signals.pseudo_labels.truth=cls",
]
METHODS: dict[str, list[str]] = {
    "elfs": [],
    "elfs, k-means labels": ["signals.pseudo_labels={clustering: kmeans, truth: cls}"],
    "aum + ccs": ["score.method=aum", "select.method=ccs", "select.params.beta=auto"],
    "aum, the hardest": ["score.method=aum"],
    "prototypicality": ["score.method=prototypicality", "select.balance=clusters"],
    "moderate": [
        *("score.method=prototypicality", "select.method=moderate", "select.balance=clusters")
    ],
    "d2": ["score={}", "select.method=d2"],
    "blindcs": ["score.method=blindcs", _BLIND],
    "random": ["score.method=random"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool")
    parser.add_argument("test")
    parser.add_argument("workspace")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="which of them")
    parser.add_argument("--heads", default="{}", help="settings of TEMI's heads")
    options = parser.parse_args()
    base = [
        *(f"pool.shards={options.pool}", f"evaluate.test.shards={options.test}"),
        *(f"workspace={options.workspace}", "compute.score_workers=2", *_ELFS),
        f"signals.pseudo_labels.params={options.heads}",
    ]
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=40)
    config = load(CONFIG, base)
    embed.run(config)
    test = evaluate.test_table(config)
    embed.embed(config, test)
    table, labels, truth = pool_table(config), labeled(pool_table(config)), labeled(test)
    results, jobs = [], []
    for name in options.methods:
        for budget in options.budgets:
            config = load(CONFIG, [*base, *METHODS[name], f"select.budget={budget}"])
            if config.selector()[2]:  # one search for all budgets
                wanted = {"budgets": tuple(options.budgets)}
                both = config.select.search.model_copy(update=wanted)
                config = config.replace("select", search=both)
            for seed in range(options.seeds):
                rows = chosen(config.seeded(seed))
                jobs.append(ProbeJob(rows.join(labels, "uid"), False))
                results.append(
                    {
                        **{"evaluator": "probe", "method": name, "baseline": "random"},
                        **{"seed": seed, "images": len(rows)},
                    }
                )
    assert config.evaluate is not None and config.evaluate.probe is not None
    outcomes = probe_all(
        *(jobs, (table.parts, list(filled(table.snapshot())))),
        *((test.parts, list(filled(test.snapshot()))), truth),
        **config.evaluate.probe.model_dump(),
    )
    both = zip(results, outcomes, strict=True)
    print(markdown(results_table([r | {"accuracy": o["accuracy"]} for r, o in both])))
    costs(options.workspace)
    ray.shutdown()


def chosen(config: Config) -> pa.Table:
    """uid and weight of what is kept; says which value was searched."""
    signals.make(config)
    if config.scores:
        score.run(config)
    select_coreset.run(config)
    if config.selector()[2]:
        found = search.finished(config)[1]
        told = f"{config.label} seed {config.score.seed} budget {config.select.budget}"
        print(f"{told}: {found['setting']} = {found['value']}", flush=True)
    stage, _ = select_coreset.finished(config)
    return read_table(stage.folder / "manifest.parquet", ["uid", "weight"])


def costs(workspace: str) -> None:
    """Seconds of each kind of stage, the least, the median and the most of the runs."""
    spent: dict[str, list[float]] = {}
    agreed: dict[str, list[dict[str, Any]]] = {}
    for kind in ("signals", "scores", "searches"):
        for done in sorted(Path(workspace, kind).glob("*/done.json")):
            record = json.loads(done.read_text())
            name = done.parent.name.rsplit("-", 1)[0]
            spent.setdefault(f"{kind}/{name}", []).append(record.get("seconds", np.nan))
            if (told := done.parent / "diagnosis.json").exists():
                agreed.setdefault(record["clustering"], []).append(json.loads(told.read_text()))
    for name, seconds in spent.items():
        low, middle, high = np.percentile(seconds, [0, 50, 100])
        print(f"{name}: {middle:.0f} s ({low:.0f} to {high:.0f}, {len(seconds)} runs)")
    for name, runs in agreed.items():
        told = [
            f"{key.upper()} {np.mean([r[key] for r in runs]):.3f} ± "
            f"{np.std([r[key] for r in runs], ddof=min(1, len(runs) - 1)):.3f}"
            for key in ("acc", "nmi", "ari")
        ]
        print(f"pseudo-labels by {name}, {len(runs)} seeds: {', '.join(told)}")


if __name__ == "__main__":
    main()
