"""What a selection is made from: a scored pool under a rule, or a pool and a method that selects by
itself."""

from typing import Any

from coreset_ray.config import Config
from coreset_ray.core.method import Scorer
from coreset_ray.core.rule import Rule
from coreset_ray.distributed.at_hand import ByItself, FromScores
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.choose import Ranking, Scored
from coreset_ray.io.workspace import Workspace
from pipelines.inputs import pool_table, workspace_of
from pipelines.signals import signal_folders


def source_of(config: Config, record: dict[str, Any]) -> FromScores | ByItself:
    """What is chosen from, and by what. record: as in `stage_of`."""
    selector = config.select.build(record["select"]["method"], record["select"]["params"])
    if isinstance(selector, Rule):
        return scored(config.score.build(), selector, record, workspace_of(config))
    balance = record["select"]["balance"]
    group = f"{balance['signal']}.{balance['column']}" if balance else None
    folders = signal_folders(config, [*selector.needs, *([group] if group else [])])
    root = workspace_of(config).root
    left_out = tuple((root / "filters" / f).uri for f in record["inputs"].get("filters", {}))
    files = PoolFiles(pool_table(config).stage.folder.uri, folders, left_out)
    return ByItself(selector, config.score.seed, files, tuple(record["parts"].items()), group)


def scored(method: Scorer, rule: Rule, record: dict[str, Any], workspace: Workspace) -> FromScores:
    """A scored pool under a rule. record: of the scores, with `inputs` and `select` as in
    `stage_of`."""
    balance, scores = record["select"]["balance"], record["inputs"]["scores"]
    left_out = record["inputs"].get("filters", {})
    parts = []
    for part in record["parts"]:
        place, group = workspace.root / "scores" / scores / f"part-{part}.parquet", None
        if balance:
            told = workspace.root / "signals" / balance["stage"] / f"part-{part}.parquet"
            group = told.uri, balance["column"]
        dropped = [(workspace.root / "filters" / f / f"part-{part}.parquet").uri for f in left_out]
        parts.append(Scored(place.uri, group, tuple(dropped)))
    ranking = Ranking(method, rule, record["seed"], balance["groups"] if balance else 1)
    span = record["lowest"], record["highest"]
    return FromScores(ranking, tuple(parts), sum(record["parts"].values()), span)
