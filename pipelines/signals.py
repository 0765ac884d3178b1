"""embedding table → what further methods read: neighbours, clusters, pseudo-labels, dynamics, what
a classifier makes of each image and the local patterns in it.

Each signal is a stage of its own, which makes first what it reads itself.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from coreset_ray.config import Config
from coreset_ray.distributed.blocks import signals_of
from coreset_ray.io.workspace import Stage
from pipelines import (
    signal_clusters,
    signal_dynamics,
    signal_knn,
    signal_patterns,
    signal_proxy,
    signal_pseudo_labels,
)
from pipelines.inputs import NotReady, on_cluster, workspace_of

SIGNALS: dict[str, ModuleType] = {
    "knn": signal_knn,
    "clusters": signal_clusters,
    "pseudo_labels": signal_pseudo_labels,
    "dynamics": signal_dynamics,
    "proxy": signal_proxy,
    "patterns": signal_patterns,
}
ASKED = ("patterns",)  # made where they are named or needed: a network of its own reads all images
GROUPS = {"clusters": "cluster", "pseudo_labels": "label"}  # the column that groups rows


def run(config: Config, only: Sequence[str] = ()) -> dict[str, Any]:
    """Writes these signals, by default all but those in `ASKED`, and what they are made of, where
    they are not there yet; returns their records and the report of what was found."""
    for name in only:
        if name not in SIGNALS:
            raise ValueError(f"signal {name!r} does not exist: there are {', '.join(SIGNALS)}")
    with on_cluster(config):  # each stage waits for the nodes that it uses
        names = only or [name for name in SIGNALS if name not in ASKED]
        records = {name: SIGNALS[name].run(config) for name in names}
    told = [record["report"] for record in records.values() if record.get("report")]
    return {"signals": records, "report": "\n".join(told)}


def make(config: Config) -> None:
    """Writes what the configuration's method and selector need."""
    if needed := needed_by(config):
        run(config, needed)


def needed_by(config: Config) -> list[str]:
    """The signals that scoring and selecting read."""
    name, params, searched = config.selector()
    selector = config.select.build(name, params)
    needs = [*signals_of(selector.needs)]
    if config.scores:
        needs += signals_of(config.score.build().needs)
    for wanted in config.select.filters:
        needs += signals_of(wanted.build().needs)
    needs += [config.select.balance] if config.select.balance else []
    needs += ["pseudo_labels"] if searched else []
    return [name for name in SIGNALS if name in needs]


def wanted_by(config: Config) -> list[str]:
    """The signals that a run makes: those needed, and those they are made of, in their order."""
    wanted, waiting = set(), needed_by(config)
    while waiting:
        wanted.add(name := waiting.pop())
        waiting += SIGNALS[name].before(config)
    return [name for name in SIGNALS if name in wanted]


def finished(config: Config, signal: str) -> tuple[Stage, dict[str, Any]]:
    """The finished stage of a signal and its record; `NotReady` when there is none."""
    stage = SIGNALS[signal].stage_of(config)[0]
    record = stage.done()
    if record is None:
        raise NotReady(
            f"the signal {signal!r} is not there: run `coreset-ray signals --only {signal}` with "
            "this configuration first"
        )
    return stage, record


def signal_stages(config: Config, needs: Sequence[str]) -> list[str]:
    """The names of the finished stages that hold the signals among these columns."""
    return [finished(config, signal)[0].name for signal in sorted(signals_of(needs))]


def signal_folders(config: Config, needs: Sequence[str]) -> dict[str, str]:
    """Where the signals among these columns lie."""
    return {signal: finished(config, signal)[0].folder.uri for signal in signals_of(needs)}


def seconds(config: Config, names: Sequence[str]) -> float | None:
    """Wall time of these stages and of all that they are made of, each counted once; None where
    a record does not say."""
    folder, spent, waiting = workspace_of(config).root / "signals", {}, list(names)
    while waiting:
        name = waiting.pop()
        if name in spent:
            continue
        record = Stage(folder / name).done()
        if record is None or "made_of" not in record:
            return None
        spent[name] = record["seconds"]
        waiting += record["made_of"]
    return sum(spent.values())


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["signals", *sys.argv[1:]])
