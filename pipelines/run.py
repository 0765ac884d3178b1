"""The whole chain: an encoder where it learns from the pool, embed, signals where a method needs
them, score, select, export, evaluate. Finished stages are not repeated."""

from typing import Any

from coreset_ray.config import Config
from pipelines import embed, evaluate, export, pretrain, select_coreset
from pipelines.inputs import listed_once, on_cluster


@listed_once()
def run(config: Config) -> dict[str, Any]:
    """Runs every stage; returns where things lie and the report, if there is one."""
    if config.evaluate is not None:
        evaluate.check(config)  # before hours are spent on the way there
    with on_cluster(config):  # each stage waits for the nodes that it uses
        if config.pretrain is not None:
            pretrain.run(config)
        snapshot = embed.run(config)
        select_coreset.make(config)
        export.run(config)
        report = evaluate.run(config)["report"] if config.evaluate is not None else None
    selection, record = select_coreset.finished(config)
    exported, _ = export.finished(config)
    return {
        "images": snapshot["rows"],
        "quarantined": snapshot["quarantined"],
        "kept": record["kept"],
        "manifest": (selection.folder / "manifest.parquet").uri,
        "shards": exported.folder.uri,
        "report": report,
    }


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["run", *sys.argv[1:]])
