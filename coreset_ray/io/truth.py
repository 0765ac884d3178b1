"""What each image of a degraded pool really is, and what a selection bought by that measure.

For scoring only: nothing that selects reads it.
"""

from collections import Counter
from typing import Any

import pyarrow as pa

from coreset_ray.io.labels import class_names

# shard, key: of the image in the pool; origin: key of the original in the source, null for blank
# and noise; kind: original, copy (the same bytes), a change or two of them (crop, resize, color,
# jpeg, joined by +), off_topic, blank or noise; change: copy or the changes, also of a copy that is
# off topic, null for whatever is no copy; label: of the original, null where it has none.
TRUTH = pa.schema(
    [(name, pa.string()) for name in ("shard", "key", "origin", "kind", "change", "label")]
)

WORTHLESS = ("off_topic", "blank", "noise")


def bought(manifest: pa.Table, truth: pa.Table) -> dict[str, Any]:
    """What the chosen images are worth.

    manifest: columns shard and key; truth: `TRUTH`. A shard is found by its file's name.
    Returns `images` chosen; `distinct`, how many different originals of the topic are among them;
    `duplicates`, `off_topic`, `blank`, `noise`, shares of the chosen, where a duplicate is any
    image of the topic but the first of its original (these and distinct / images add up to 1);
    `classes` and `rare_classes` of which at least one is chosen, beside `classes_in_pool` and
    `rare_in_pool`. Rare is the third of the classes with the fewest originals, ties in the order
    of the classes.

    ValueError: no chosen images, or one that the truth does not know.
    """
    if not len(manifest):
        raise ValueError("the manifest chooses no image: there is nothing to score")
    chosen = _found(manifest, truth).to_pylist()
    originals = truth.group_by(["kind", "label", "origin"]).aggregate([]).to_pylist()
    topic, pool = (
        [row for row in rows if row["kind"] not in WORTHLESS] for rows in (chosen, originals)
    )
    distinct = len({row["origin"] for row in topic})
    covered = {row["label"] for row in topic} - {None}
    classes = _rarest_first(pool)
    rare = set(classes[: max(1, len(classes) // 3)])
    kinds = Counter(row["kind"] for row in chosen)
    return {
        "images": len(chosen),
        "distinct": distinct,
        "duplicates": (len(topic) - distinct) / len(chosen),
        **{kind: kinds[kind] / len(chosen) for kind in WORTHLESS},
        "classes": len(covered),
        "classes_in_pool": len(classes),
        "rare_classes": len(covered & rare),
        "rare_in_pool": len(rare),
    }


def _found(manifest: pa.Table, truth: pa.Table) -> pa.Table:
    """The rows of the truth that speak of the chosen images."""
    places = pa.table({"shard": _file_names(manifest["shard"]), "key": manifest["key"]})
    known = truth.set_column(0, "shard", _file_names(truth["shard"]))
    missing = places.join(known, ["shard", "key"], join_type="left anti")
    if len(missing):
        first = missing.sort_by([("shard", "ascending"), ("key", "ascending")]).slice(0, 1)
        shard, key = first.to_pylist()[0].values()
        raise ValueError(
            f"{len(missing)} of {len(places)} chosen images are not in the truth (shard {shard!r}, "
            f"key {key!r} first): give the truth.parquet that was written beside their shards"
        )
    return places.join(known, ["shard", "key"], join_type="inner")


def _file_names(shards: pa.ChunkedArray) -> pa.Array:
    return pa.array([name.rpartition("/")[2] for name in shards.to_pylist()], pa.string())


def _rarest_first(pool: list[dict[str, Any]]) -> list[str]:
    """Labels by their number of originals; ties in the order of `class_names`."""
    origins = {(row["label"], row["origin"]) for row in pool if row["label"] is not None}
    count = Counter(label for label, _ in origins)
    return sorted(class_names(list(count)), key=count.__getitem__)
