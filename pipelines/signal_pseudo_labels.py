"""neighbours or clusters → a pseudo-label for every image; or the labels that are given."""

import logging
import time
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from coreset_ray.clustering.deep import HeadSettings
from coreset_ray.clustering.diagnosis import clustering_scores
from coreset_ray.clustering.kmeans_fit import Clustering
from coreset_ray.config import Config, fingerprint
from coreset_ray.distributed.deep_clusters import train_heads
from coreset_ray.distributed.export import locate_members
from coreset_ray.distributed.given_labels import SETTING, GivenLabels, write_given_labels
from coreset_ray.distributed.relabel import labels_of_clusters
from coreset_ray.io.labels import attach_labels, label_mark
from coreset_ray.io.tables import part_name, read_table
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage
from pipelines import classes, signal_clusters, signal_knn
from pipelines.inputs import (
    NotReady,
    filled,
    finish_signal,
    key_of,
    nothing_to_do,
    on_cluster,
    pool_table,
    scratch_of,
    uri_of,
    workspace_of,
)
from pipelines.trainings import running, training_mark

_log = logging.getLogger(__name__)

_DIAGNOSED = 200_000  # images at most

Wanted = HeadSettings | Clustering | GivenLabels


def before(config: Config) -> tuple[str, ...]:
    """The signals that this configuration's are made of."""
    if config.signals.labels != "pseudo":
        return ()
    return ("clusters" if config.signals.pseudo_labels.clustering == "kmeans" else "knn",)


def stage_of(config: Config) -> tuple[Stage, dict[str, Any], Wanted]:
    """Where this configuration's pseudo-labels lie, the snapshot they are of, and how they are
    made."""
    snapshot, told = pool_table(config).snapshot(), config.signals
    wanted: Wanted
    if told.labels != "pseudo":
        # Labels lie outside what was embedded: a part's name tells when its shard changed.
        source = uri_of(config, told.labels)
        mark = [label_mark(source, SETTING), list(filled(snapshot))]
        wrong = [told.corrupt, told.seed] if told.corrupt else []
        content = fingerprint(["given", key_of(snapshot), told.labels, mark, *wrong])
        found = workspace_of(config).stage("signals", "pseudo_labels", content)
        return found, snapshot, GivenLabels(source, told.corrupt, told.seed)
    if told.pseudo_labels.clustering == "kmeans":
        stage, _, wanted = signal_clusters.stage_of(_as_clusters(config))
        content = fingerprint(["kmeans", stage.name, asdict(wanted)])
    else:
        stage = signal_knn.stage_of(config)[0]
        wanted = told.pseudo_labels.heads(classes.count(config), told.seed)
        how = [told.pseudo_labels.clustering, stage.name, asdict(wanted)]
        content = training_mark(config, how)
    found = workspace_of(config).stage("signals", "pseudo_labels", content)
    return found, snapshot, wanted


@as_stage("pseudo_labels")
def run(config: Config) -> dict[str, Any]:
    """Writes the pseudo-labels, and what they are made of before them, if they are not there yet;
    returns their record and, where true labels are named, the report of how far they agree."""
    _make_before(config)
    stage, snapshot, wanted = stage_of(config)
    if (record := stage.done()) is not None:
        nothing_to_do(stage)
        _check_classes(config, record["classes"])
        return record | _diagnosis(config, stage, record)
    start = time.monotonic()
    with on_cluster(config, config.compute.wait_for):
        facts = _write(config, stage, snapshot, wanted)
    seconds = round(time.monotonic() - start, 2)
    count = _count(wanted, facts)
    kind = "given" if isinstance(wanted, GivenLabels) else config.signals.pseudo_labels.clustering
    _log.info(
        "pseudo_labels: %d classes of %d images, %s, in %.1f s, in %s",
        *(count, snapshot["rows"], kind, seconds, stage.folder.uri),
    )
    record = finish_signal(
        *(stage, snapshot, seconds),
        {"clustering": kind, "settings": asdict(wanted), **facts, "classes": count},
    )
    _check_classes(config, count)
    return record | _diagnosis(config, stage, record)


def _write(
    config: Config, stage: Stage, snapshot: dict[str, Any], wanted: Wanted
) -> dict[str, Any]:
    parts = filled(snapshot)
    if isinstance(wanted, GivenLabels):
        table = pool_table(config)
        shards = {part_name(shard): shard for shard in table.shards}
        return write_given_labels(table.parts, parts, shards, wanted, stage.folder)
    if isinstance(wanted, Clustering):
        clusters = signal_clusters.stage_of(_as_clusters(config))[0]
        counts = labels_of_clusters(clusters.folder, parts, stage.folder)
        return {"rows_of_label": counts, "made_of": [clusters.name, *classes.made_of(config)]}
    knn = signal_knn.stage_of(config)[0]
    facts = train_heads(
        *(pool_table(config).parts, parts, knn.folder, wanted, stage.folder),
        scratch=scratch_of(config, f"{key_of(snapshot)}-rows"),
        running=running(config, stage.folder, "heads"),
    )
    return facts | {"made_of": [knn.name, *classes.made_of(config)]}


def _make_before(config: Config) -> None:
    """What they are made of; nothing, said loudly, where they are given."""
    if config.signals.labels != "pseudo":
        _log.warning(
            "pseudo_labels: signals.labels=%s READS LABELS OF THE WHOLE POOL, and what is selected "
            "depends on them; signals.pseudo_labels finds none",
            config.signals.labels,
        )
        if config.signals.corrupt:
            _log.warning(
                "pseudo_labels: signals.corrupt=%g of them ARE MADE WRONG, for a trial",
                config.signals.corrupt,
            )
        return
    classes.run(config)
    if config.signals.pseudo_labels.clustering == "kmeans":
        signal_clusters.run(_as_clusters(config))
    else:
        signal_knn.run(config)


def _count(wanted: Wanted, facts: dict[str, Any]) -> int:
    """Classes."""
    if isinstance(wanted, GivenLabels):
        return len(facts["names"])
    return wanted.classes if isinstance(wanted, HeadSettings) else wanted.count


def _check_classes(config: Config, found: int) -> None:
    """`ValueError` where labels are given of another number of classes than is configured."""
    told = config.signals
    if told.labels != "pseudo" and told.classes not in ("auto", found):
        raise ValueError(
            f"signals.classes={told.classes}: {SETTING}={told.labels!r} names {found} classes; "
            "correct it or leave it out"
        )


def _as_clusters(config: Config) -> Config:
    """With as many clusters as there are classes."""
    clusters = config.signals.clusters.model_copy(update={"count": classes.count(config)})
    return config.replace("signals", clusters=clusters)


def _diagnosis(config: Config, stage: Stage, record: dict[str, Any]) -> dict[str, Any]:
    """How far the pseudo-labels agree with true labels; diagnosis.json beside them."""
    source = config.signals.pseudo_labels.truth
    if source is None:
        return {}
    table, own, rows = pool_table(config), [], []
    for part in record["parts"]:
        rows.append(read_table(table.parts.part(part), ["uid", "shard", "key"]))
        own.append(read_table(stage.folder / f"part-{part}.parquet", ["uid", "label"]))
        if sum(map(len, rows)) >= _DIAGNOSED:
            break
    shards = {shard.name: shard for shard in table.shards}
    with on_cluster(config, config.compute.wait_for):
        images = locate_members(shards, pa.concat_tables(rows))
        true = attach_labels(images, uri_of(config, source))
    own = pa.concat_tables(own).rename_columns(["uid", "pseudo"])
    both = own.join(true.select(["uid", "label"]), "uid")
    codes = both["label"].combine_chunks().dictionary_encode().indices.to_numpy()
    found = clustering_scores(both["pseudo"].to_numpy(), codes) | {"images": len(both)}
    (stage.folder / "diagnosis.json").write_json(found)
    told = ", ".join(f"{name.upper()} {found[name]:.3f}" for name in ("acc", "nmi", "ari"))
    return {"report": f"Pseudo-labels against {source} on {len(both):,} images: {told}\n"}


def finished(config: Config) -> tuple[Stage, dict[str, Any]]:
    """The finished stage and its record; `NotReady` when there is none."""
    stage = stage_of(config)[0]
    record = stage.done()
    if record is None:
        raise NotReady(
            "there are no pseudo-labels: run `coreset-ray signals --only pseudo_labels` with this "
            "configuration first"
        )
    return stage, record
