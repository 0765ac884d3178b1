"""Images of coresets and of the test set with their labels, for evaluation alone."""

import pyarrow as pa

from coreset_ray.config import Config
from coreset_ray.distributed.export import locate_members
from coreset_ray.io.labels import attach_labels, class_names
from coreset_ray.io.tables import read_table
from pipelines.inputs import Table, filled, pool_table, uri_of

_NAMED = ["uid", "shard", "key"]


def labeled_images(
    config: Config, coresets: list[pa.Table], test: Table
) -> tuple[pa.Table, pa.Table, list[str]]:
    """Images of all coresets and of the test set: uid, path, offset, size, label; class names.

    coresets: columns uid, shard and key.
    """
    assert config.evaluate is not None, "the caller checked"
    source, unlabeled = uri_of(config, config.evaluate.labels), config.evaluate.unlabeled
    wanted = pa.concat_tables([rows.select(_NAMED) for rows in coresets])
    wanted = wanted.group_by(_NAMED).aggregate([])
    shards = {shard.name: shard for shard in pool_table(config).shards}
    pool = attach_labels(locate_members(shards, wanted), source, unlabeled=unlabeled)
    truth = attach_labels(
        locate_members({s.name: s for s in test.shards}, _every_image(test)), source
    )
    names = class_names(pool["label"].to_pylist() + truth["label"].to_pylist())
    return _numbered(pool, names), _numbered(truth, names), names


def _every_image(test: Table) -> pa.Table:
    parts = list(filled(test.snapshot()))
    return pa.concat_tables([read_table(test.parts.part(part), _NAMED) for part in parts])


def _numbered(images: pa.Table, names: list[str]) -> pa.Table:
    number = {name: i for i, name in enumerate(names)}
    label = pa.array([number[text] for text in images["label"].to_pylist()], pa.int32())
    return images.select(["uid", "path", "offset", "size"]).append_column("label", label)
