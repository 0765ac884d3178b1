"""score table, or signals → manifest of what is kept."""

import logging
import time
from typing import Any

import numpy as np

from coreset_ray.config import Config, fingerprint, plain
from coreset_ray.core.rule import Rule
from coreset_ray.core.selection import resolve_budget
from coreset_ray.core.stability import expected_overlap
from coreset_ray.distributed.alone import Start, choose_alone
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.choose import Ranking, Scored, choose_kept
from coreset_ray.distributed.session import session
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import matrix, read_table
from coreset_ray.io.workspace import Stage, Workspace
from coreset_ray.version import __version__
from coreset_ray.versions import versions
from pipelines import filters, score, search
from pipelines.embed import embed
from pipelines.inputs import NotReady, Table, filled, key_of, pool_table
from pipelines.signals import GROUPS, signal_folders, signal_stages
from pipelines.signals import finished as signal
from pipelines.signals import make as make_signals

_log = logging.getLogger(__name__)

_TOLD = (
    *("method", "params", "seed", "columns", "rounding", "draws", "facts"),
    *("lowest", "highest", "stability"),
)


def stage_of(config: Config) -> tuple[Stage, dict[str, Any]]:
    """Where this configuration's manifest lies, and what is selected from: the record of the
    scores, else of the pool, with the budget as `kept` and what tells the selector."""
    if config.scores:
        scores, record = score.finished(config)
        inputs: dict[str, Any] = {"scores": scores.name}
        content: list[Any] = [scores.name]
    else:
        snapshot, needs = pool_table(config).snapshot(), config.rule().needs
        record = {
            "rows": snapshot["rows"],
            "parts": filled(snapshot),
            "table": snapshot["table"],
            "snapshot": key_of(snapshot),
        }
        inputs, content = {"signals": signal_stages(config, needs)}, [key_of(snapshot)]
        inputs |= _start_told(config)
    k = resolve_budget(config.select.budget, record["rows"])
    if k == 0:
        raise ValueError(
            f"select.budget={config.select.budget} of {record['rows']} images keeps none: raise it"
        )
    inputs |= {"table": record["table"], "snapshot": record["snapshot"]}
    if config.select.filters:
        inputs["filters"] = {
            name: told["dropped"] for name, told in filters.finished(config).items()
        }
    told = _told(config, inputs)
    content.append(k)
    content += [sorted(inputs["filters"])] if config.select.filters else []
    if told["method"] != "top" or told["balance"]:
        content += [told, inputs.get("signals"), config.score.seed]
        content += [inputs[name] for name in ("keep", "target", "partitions") if name in inputs]
    stage = Workspace(config.workspace).stage("selections", config.name, fingerprint(content))
    return stage, record | {"kept": k, "inputs": inputs, "select": told}


def _told(config: Config, inputs: dict[str, Any]) -> dict[str, Any]:
    """The selector as it will run: its name, all settings, and the groups that are balanced."""
    name, _, searched = config.selector()
    found = search.finished(config)[1] if searched else None
    told = {"method": name, "params": vars(config.rule(found and found["value"])), "balance": None}
    if found:
        told["searched"] = {"setting": searched, "search": found["stage"]}
    if balance := config.select.balance:
        stage, record = signal(config, balance)
        told["balance"] = {
            "signal": balance,
            "stage": stage.name,
            "column": GROUPS[balance],
            "groups": record["classes" if balance == "pseudo_labels" else "count"],
        }
    return told


def make(config: Config) -> Stage:
    """The finished selection, with the signals and scores that it reads; what is not there yet is
    made."""
    make_signals(config)
    if config.scores:
        score.run(config)
    run(config)
    return finished(config)[0]


def run(config: Config) -> dict[str, Any]:
    """Writes manifest.parquet and selection.json; returns the stage's record."""
    if config.selector()[2]:
        search.run(config)
    if config.select.target is not None:
        embed(config, _target(config))
    filters.run(config)
    stage, record = stage_of(config)
    if (done := stage.done()) is not None:
        _log.info("select: nothing to do, %s is finished", stage.folder.uri)
        return done
    manifest, workspace = stage.folder / "manifest.parquet", Workspace(config.workspace)
    start = time.monotonic()
    selector = config.select.build(record["select"]["method"], record["select"]["params"])
    with session(config.compute.address):
        if isinstance(selector, Rule):
            choose_by_rule(config.score.build(), selector, record, workspace, manifest)
        else:
            _choose_alone(config, selector, record, manifest)
    selection: dict[str, Any] = {
        "name": config.name,
        "manifest": "manifest.parquet",
        "kept": record["kept"],
        "pool": record["rows"],
        "inputs": record["inputs"],
        "select": record["select"],
        "config": plain(config),
        "versions": {"coreset_ray": __version__, **versions()},
    }
    if config.scores:
        selection["score"] = {k: record[k] for k in _TOLD if k in record}
    if (noise := record.get("stability")) and record["select"]["method"] == "top":
        fraction = record["kept"] / record["rows"]
        selection["score"]["overlap_of_two_such_selections"] = {
            "expected": expected_overlap(noise, fraction),
            "by_chance": fraction,
        }
    (stage.folder / "selection.json").write_json(selection)
    _log.info("select: kept %d of %d, in %s", record["kept"], record["rows"], manifest.uri)
    seconds = round(time.monotonic() - start, 2)
    return stage.finish({"kept": record["kept"], "pool": record["rows"], "seconds": seconds})


def choose_by_rule(
    method: Any, rule: Rule, record: dict[str, Any], workspace: Workspace, manifest: Location
) -> None:
    """Writes the manifest of a scored pool. record: of the scores, with `inputs`, `kept` and
    `select` as in `stage_of`."""
    balance, scores = record["select"]["balance"], record["inputs"]["scores"]
    left_out = record["inputs"].get("filters", {})
    parts = []
    for part in record["parts"]:
        place, group = workspace.root / "scores" / scores / f"part-{part}.parquet", None
        if balance:
            told = workspace.root / "signals" / balance["stage"] / f"part-{part}.parquet"
            group = told.uri, balance["column"]
        dropped = [f"{workspace.root.uri}/filters/{f}/part-{part}.parquet" for f in left_out]
        parts.append(Scored(place.uri, group, tuple(dropped)))
    ranking = Ranking(method, rule, record["seed"], balance["groups"] if balance else 1)
    choose_kept(ranking, parts, (record["lowest"], record["highest"]), record["kept"], manifest)


def _choose_alone(config: Config, method: Any, record: dict[str, Any], manifest: Location) -> None:
    """Writes the manifest of a method that selects by itself. record: as in `stage_of`."""
    balance, needs = record["select"]["balance"], [*method.needs]
    group = f"{balance['signal']}.{balance['column']}" if balance else None
    folders = signal_folders(config, needs + ([group] if group else []))
    target = None
    if config.select.target is not None:
        table = _target(config)
        parts = [table.parts.part(part) for part in filled(table.snapshot())]
        target = np.concatenate([matrix(read_table(p, ["embedding"])["embedding"]) for p in parts])
    root = Workspace(config.workspace).root
    left_out = tuple((root / "filters" / f).uri for f in record["inputs"].get("filters", {}))
    files = PoolFiles(pool_table(config).stage.folder.uri, folders, left_out)
    choose_alone(
        *(method, config.score.seed, files),
        *(record["parts"], record["kept"], manifest),
        group=group,
        groups=balance["groups"] if balance else 1,
        start=Start(_kept(config), target),
        partitions=config.select.partitions,
    )


def _target(config: Config) -> Table:
    """The embedding table of the target set."""
    assert config.select.target is not None, "the caller checked"
    return Table(config, config.select.target, "target_embeddings")


def _kept(config: Config) -> tuple[str, ...]:
    """The images that are chosen already, in their order."""
    if config.select.keep is None:
        return ()
    place = locate(config.select.keep)
    if not place.exists():
        raise ValueError(
            f"select.keep={config.select.keep!r} does not exist: give a manifest.parquet"
        )
    return tuple(read_table(place, ["uid"])["uid"].to_pylist())


def _start_told(config: Config) -> dict[str, Any]:
    """What else the choice starts from, where anything is given."""
    told: dict[str, Any] = {}
    if config.select.keep is not None:
        told["keep"] = fingerprint(list(_kept(config)))
    if config.select.target is not None:
        told["target"] = key_of(_target(config).snapshot())
    if config.select.partitions != 1:
        told["partitions"] = config.select.partitions
    return told


def finished(config: Config) -> tuple[Stage, dict[str, Any]]:
    """The finished stage and its record; `NotReady` when there is none."""
    stage, _ = stage_of(config)
    record = stage.done()
    if record is None:
        raise NotReady("nothing is selected: run `coreset-ray select` with this configuration")
    return stage, record


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["select", *sys.argv[1:]])
