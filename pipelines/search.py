"""scores and pseudo-labels → the value of a selector's setting that is `auto`, with the curve."""

import logging
import time
from functools import partial
from typing import Any

import pyarrow as pa

from coreset_ray.config import Config, fingerprint
from coreset_ray.core.rule import Rule
from coreset_ray.core.selection import resolve_budget
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.search import Settings, Tried, try_values
from coreset_ray.io.tables import write_table
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage
from coreset_ray.version import __version__
from pipelines import score
from pipelines.inputs import NotReady, nothing_to_do, on_cluster, pool_table, workspace_of
from pipelines.report import curve_plot, curve_table
from pipelines.signals import GROUPS
from pipelines.signals import finished as signal

_log = logging.getLogger(__name__)


def stage_of(config: Config) -> tuple[Stage, dict[str, Any]]:
    """Where this configuration's search lies, and the record of the scores it ranks by."""
    scores, record = score.finished(config)
    wanted = config.select.search
    name, params, searched = config.selector()
    signals = [signal(config, s)[0].name for s in _signals(config)]
    content = [scores.name, signals, name, params, searched, config.select.balance]
    content += [_shares(config, record["rows"]), wanted.model_dump(exclude={"budgets"})]
    content += [config.signals.seed, config.score.seed]
    stage = workspace_of(config).stage("searches", f"{name}-{searched}", fingerprint(content))
    return stage, record


@as_stage("search")
def run(config: Config) -> dict[str, Any]:
    """Tries each value at each budget; returns the record, with the best value for the budget
    that is selected as `value`."""
    stage, record = stage_of(config)
    if stage.done() is not None:
        nothing_to_do(stage)
        return finished(config)[1]
    name, _, searched = config.selector()
    assert searched is not None, "the caller checked"
    rule = config.rule(0.0)
    assert isinstance(rule, Rule), "checked with the configuration"
    shares = _shares(config, record["rows"])
    values = {keep: rule.candidates(keep) for keep in shares}
    if empty := [keep for keep, some in values.items() if not some]:
        raise ValueError(f"select.params.{searched}=auto: no value fits a share of {empty[0]}")
    wanted, labels = config.select.search, signal(config, "pseudo_labels")[1]
    folders = {s: signal(config, s)[0].folder.uri for s in _signals(config)}
    balance = config.select.balance
    start = time.monotonic()
    with on_cluster(config, config.compute.wait_for):
        tried = try_values(
            config.score.build(),
            partial(_rule, config),
            values,
            PoolFiles(pool_table(config).stage.folder.uri, folders),
            (workspace_of(config).root / "scores" / score.finished(config)[0].name).uri,
            record["parts"],
            f"{balance}.{GROUPS[balance]}" if balance else None,
            Settings(
                held_out=wanted.held_out,
                rows=wanted.rows,
                early=wanted.stop == "early",
                seeds=wanted.seeds,
                classes=labels["classes"],
                seed=config.score.seed,
                proxy=config.signals.dynamics.mlp(),
            ),
        )
    curve = [{**vars(t), "accuracy": list(t.accuracy), "mean": t.mean} for t in tried]
    write_table(stage.folder / "curve.parquet", pa.Table.from_pylist(curve))
    with (stage.folder / "curve.svg").replacing() as sink:
        sink.write(curve_plot(curve, searched).encode())
    stage.finish(
        {
            "selector": name,
            "setting": searched,
            "curve": curve,
            "best": [[keep, best(tried, keep)] for keep in shares],
            "seconds": round(time.monotonic() - start, 2),
            "version": __version__,
        }
    )
    found = finished(config)[1]
    _log.info("search: %s = %g, in %s", searched, found["value"], stage.folder.uri)
    return found | {"report": curve_table(curve, searched)}


def best(tried: list[Tried], keep: float) -> float:
    """The value of the highest accuracy at a budget; of equal ones the smallest."""
    return max((t for t in tried if t.keep == keep), key=lambda t: (t.mean, -t.value)).value


def finished(config: Config) -> tuple[Stage, dict[str, Any]]:
    """The finished stage and its record, with the `value` found for the budget that is selected;
    `NotReady` when there is none."""
    stage, record = stage_of(config)
    done = stage.done()
    if done is None:
        raise NotReady("the setting is not searched: run `coreset-ray select` first")
    keep = resolve_budget(config.select.budget, record["rows"]) / record["rows"]
    value = dict(map(tuple, done["best"]))[keep]
    return stage, done | {"value": value, "stage": stage.name}


def _rule(config: Config, value: float) -> Rule:
    rule = config.rule(value)
    assert isinstance(rule, Rule)
    return rule


def _signals(config: Config) -> list[str]:
    balance = config.select.balance
    return ["pseudo_labels", *([balance] if balance not in (None, "pseudo_labels") else [])]


def _shares(config: Config, rows: int) -> list[float]:
    """The shares of the pool to search for, that of the selection among them."""
    wanted = [*(config.select.search.budgets or ()), config.select.budget]
    return sorted({resolve_budget(budget, rows) / rows for budget in wanted})
