"""A finished selection → proof that it is what its record says: draws replayed, sums compared."""

import logging
import random
import tempfile
from typing import Any

from coreset_ray import catalog
from coreset_ray.config import WaitConfig
from coreset_ray.core.method import Sampled
from coreset_ray.core.rule import Rule
from coreset_ray.distributed.choose import choose_kept
from coreset_ray.distributed.replay import examine, replay
from coreset_ray.distributed.session import session
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.ledger import Chunk, Ledger, missing
from coreset_ray.io.tables import PartedTable, read_table
from coreset_ray.io.workspace import Workspace
from pipelines.score import layout_for
from pipelines.select_source import scored

_log = logging.getLogger(__name__)


class Mismatch(RuntimeError):
    """Something is not what the record of the run says."""


def run(selection: str, chunks: int = 3, seed: int | None = None) -> dict[str, Any]:
    """Checks a selection folder against the run that made it.

    Replays `chunks` of the chunks of draws that were recorded, chosen at random (by `seed`, else
    differently each time); adds up all recorded checksums and compares them with the sums kept;
    compares the scores with the sums, and the manifest with the scores. Raises `Mismatch` that
    names the first thing that differs.
    """
    folder = locate(selection.removesuffix("/").removesuffix("/selection.json"))
    if not (folder / "selection.json").exists():
        raise ValueError(
            f"{selection!r} is no selection: give a folder that holds selection.json, such as "
            "WORKSPACE/selections/NAME"
        )
    told = (folder / "selection.json").read_json()
    workspace = Workspace(folder.parent.parent.uri)
    if "scores" not in told["inputs"]:
        raise ValueError(
            f"{selection!r} was chosen by {told['select']['method']!r}, which reads no scores: "
            "there is nothing to replay"
        )
    scores = workspace.root / "scores" / told["inputs"]["scores"]
    record = (scores / "done.json").read_json()
    method = catalog.build(record["method"], record["params"], "params")
    with session(None, WaitConfig()):
        checked = {}
        if isinstance(method, Sampled):
            checked = _check_draws(method, record, workspace, scores, chunks, seed)
        _check_manifest(method, record, told, workspace, folder)
    _log.info(
        "verify: %s holds: %s",
        folder.uri,
        ", ".join([*(f"{v} {k}" for k, v in checked.items()), f"manifest of {told['kept']}"]),
    )
    return checked | {"kept": told["kept"]}


def _check_draws(
    method: Sampled,
    record: dict[str, Any],
    workspace: Workspace,
    scores: Location,
    chunks: int,
    seed: int | None,
) -> dict[str, int]:
    recorded = [Chunk(a, b, int(mark, 16)) for a, b, mark in record["chunks"]]
    if (
        missing(recorded, 0, record["draws"])
        or sum(c.last - c.first for c in recorded) != (record["draws"])
    ):
        raise Mismatch(f"{scores.uri}: the recorded chunks are not {record['draws']} draws")
    table = PartedTable(workspace.root / "embeddings" / record["table"])
    layout = layout_for(workspace, record["snapshot"], columns=record.get("columns", "float32"))
    shards = layout.shards(record["parts"])
    ledger = Ledger(workspace.root / "sums" / record["sums"])
    kept = ledger.usable(record["draws"])
    if sum(r.draws for r in kept) != record["draws"]:
        raise Mismatch(
            f"{ledger.folder.uri} no longer holds the sums of all {record['draws']} draws: score "
            "again to have them made again"
        )
    total, differing = examine(method, table, shards, ledger, kept, scores.uri)
    if total != sum(c.checksum for c in recorded) % 2**64:
        raise Mismatch(f"{ledger.folder.uri}: the sums kept are not those of the recorded chunks")
    if differing:
        raise Mismatch(f"{scores.uri}: part {differing!r} does not hold the scores of its sums")
    chosen = random.Random(seed).sample(recorded, min(chunks, len(recorded)))
    for chunk, mark in replay(method, record["seed"], table, shards, ledger, chosen):
        if mark != chunk.checksum:
            raise Mismatch(
                f"draws {chunk.first} to {chunk.last - 1} give {mark:016x} and not "
                f"{chunk.checksum:016x} as {scores.uri}/done.json says: a machine computed wrongly "
                "or the embeddings have changed; delete scores and sums and score again"
            )
    return {
        "chunks replayed": len(chosen),
        "draws replayed": sum(c.last - c.first for c in chosen),
        "draws recorded": record["draws"],
    }


def _check_manifest(
    method: Any,
    record: dict[str, Any],
    told: dict[str, Any],
    workspace: Workspace,
    folder: Location,
) -> None:
    select = told.get("select", {"method": "top", "params": {}, "balance": None})
    rule = catalog.build_selector(select["method"], select["params"], "params")
    assert isinstance(rule, Rule), "it read scores"
    with tempfile.TemporaryDirectory() as scratch:
        again = locate(scratch) / "manifest.parquet"
        whole = record | {"inputs": told["inputs"], "kept": told["kept"], "select": select}
        source = scored(method, rule, whole, workspace)
        choose_kept(source.ranking, source.parts, source.span, told["kept"], again)
        if not read_table(again).equals(read_table(folder / told["manifest"])):
            raise Mismatch(
                f"{folder.uri}: the manifest is not the {told['kept']} that {select['method']!r} "
                "keeps by score"
            )


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["verify", *sys.argv[1:]])
