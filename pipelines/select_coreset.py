"""score table, or signals → manifest of what is kept."""

import logging
import time
from typing import Any

import numpy as np

from coreset_ray.config import Config, fingerprint, plain
from coreset_ray.core.selection import resolve_budget
from coreset_ray.core.stability import expected_overlap
from coreset_ray.distributed.alone import Start, choose_alone
from coreset_ray.distributed.at_hand import FromScores
from coreset_ray.distributed.choose import choose_kept
from coreset_ray.io.tables import matrix, read_table
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage
from coreset_ray.version import __version__
from coreset_ray.versions import versions
from pipelines import filters, score, search
from pipelines.embed import embed
from pipelines.inputs import (
    NotReady,
    Table,
    filled,
    key_of,
    nothing_to_do,
    on_cluster,
    pool_table,
    workspace_of,
)
from pipelines.kept import kept_already
from pipelines.select_source import source_of
from pipelines.signals import GROUPS, signal_stages
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
    told = _told(config)
    content.append(k)
    content += [sorted(inputs["filters"])] if config.select.filters else []
    if told["method"] != "top" or told["balance"]:
        content += [told, inputs.get("signals"), config.score.seed]
    content += [inputs[name] for name in ("keep", "target", "partitions") if name in inputs]
    stage = workspace_of(config).stage("selections", config.name, fingerprint(content))
    return stage, record | {"kept": k, "inputs": inputs, "select": told}


def _told(config: Config) -> dict[str, Any]:
    """The selector as it will run: its name, all settings, and the groups that are balanced."""
    name, _, searched = config.selector()
    found = search.finished(config)[1] if searched else None
    params = config.rule(found and found["value"]).settings()
    told: dict[str, Any] = {"method": name, "params": params, "balance": None}
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
    make_inputs(config)
    run(config)
    return finished(config)[0]


def make_inputs(config: Config) -> None:
    """The signals and scores that it reads, where they are not there yet."""
    make_signals(config)
    if config.scores:
        score.run(config)


def prepare(config: Config) -> tuple[Stage, dict[str, Any]]:
    """`stage_of` once all that it depends on beside signals and scores is there."""
    if config.selector()[2]:
        search.run(config)
    if config.select.target is not None:
        embed(config, _target(config))
    filters.run(config)
    return stage_of(config)


@as_stage("select")
def run(config: Config) -> dict[str, Any]:
    """Writes manifest.parquet and selection.json; returns the stage's record."""
    stage, record = prepare(config)
    if (done := stage.done()) is not None:
        nothing_to_do(stage)
        return done
    manifest, start = stage.folder / "manifest.parquet", time.monotonic()
    with on_cluster(config, config.compute.wait_for.cpus_alone):
        source = source_of(config, record)
        if isinstance(source, FromScores):
            choose_kept(
                *(source.ranking, source.parts, source.span, record["kept"], manifest),
                kept=kept_already(config),
            )
        else:
            balance = record["select"]["balance"]
            choose_alone(
                *(source.method, source.seed, source.files, dict(source.parts)),
                *(record["kept"], manifest),
                group=source.group,
                groups=balance["groups"] if balance else 1,
                start=Start(kept_already(config), _target_rows(config)),
                partitions=config.select.partitions,
            )
    return publish(config, stage, record, {"seconds": round(time.monotonic() - start, 2)})


def publish(
    config: Config, stage: Stage, record: dict[str, Any], spent: dict[str, Any]
) -> dict[str, Any]:
    """Writes selection.json beside the manifest, and the stage's record. spent: what goes there of
    the time and memory that it took."""
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
    balance = record["select"]["balance"]
    if balance and record["kept"] < balance["groups"]:
        _log.warning(
            "select: a budget of %d images for the %d groups of select.balance leaves %d or more "
            "without any: raise it",
            *(record["kept"], balance["groups"], balance["groups"] - record["kept"]),
        )
    uri = (stage.folder / "manifest.parquet").uri
    _log.info("select: kept %d of %d, in %s", record["kept"], record["rows"], uri)
    return stage.finish({"kept": record["kept"], "pool": record["rows"], **spent})


def _target_rows(config: Config) -> np.ndarray | None:
    """The embeddings of the target set, (t, m), where there is one."""
    if config.select.target is None:
        return None
    table = _target(config)
    parts = [table.parts.part(part) for part in filled(table.snapshot())]
    return np.concatenate([matrix(read_table(p, ["embedding"])["embedding"]) for p in parts])


def _target(config: Config) -> Table:
    """The embedding table of the target set."""
    assert config.select.target is not None, "the caller checked"
    return Table(config, config.select.target, "target_embeddings")


def _start_told(config: Config) -> dict[str, Any]:
    """What else the choice starts from, where anything is given."""
    told: dict[str, Any] = {}
    if config.select.keep is not None:
        told["keep"] = fingerprint(list(kept_already(config)))
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
