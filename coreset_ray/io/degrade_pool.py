"""A degraded pool as a stream: samples into shards, the truth about them beside the shards."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coreset_ray.io.degrade import Degrade
from coreset_ray.io.degrade_image import blank, changed, draw_changes, noise
from coreset_ray.io.degrade_plan import BLANK, NOISE, OFF_TOPIC, Plan, plan_pool
from coreset_ray.io.filesystem import Location
from coreset_ray.io.images import BadImage, decode
from coreset_ray.io.shards import IMAGE_EXTENSIONS
from coreset_ray.io.source_sample import Sample, Source, Split
from coreset_ray.io.source_writer import write_shards
from coreset_ray.io.truth import TRUTH

MAX_PIXELS = 50_000_000  # of an image to change; the default of embed.max_pixels


@dataclass(frozen=True)
class DegradedPool:
    """The images of a plan, made one by one. topic, off_topic: where the originals are read."""

    settings: Degrade
    plan: Plan
    topic: Split
    off_topic: Split | None

    def __len__(self) -> int:
        return len(self.plan.what)

    def read(self, place: int) -> tuple[Sample, dict[str, str | None]]:
        """The sample at a place of the pool, and its row of `TRUTH` but for the shard.

        What is drawn depends on the seed, the original and the number of the copy, not on the
        place. ValueError: an original that has to be decoded and cannot be.
        """
        plan = self.plan
        what, origin, copy = (int(column[place]) for column in (plan.what, plan.origin, plan.copy))
        rng = np.random.default_rng([self.settings.seed, 1 + what, origin, copy])
        source = self.off_topic if what == OFF_TOPIC else self.topic
        assert source is not None, "a plan without a second source has nothing off topic"
        original = source.read(origin)
        if what in (BLANK, NOISE):
            make, kind = (blank, "blank") if what == BLANK else (noise, "noise")
            extension, data = make(_decoded(original)[1].size, rng)
            members, truth = {extension: data}, {"kind": kind}
        else:
            members, truth = self._image(original, copy, rng)
        if what == OFF_TOPIC:
            members = {e: data for e, data in members.items() if e != "cls"}
            truth |= {"kind": "off_topic", "label": None}
        key = f"{place:08d}"
        return Sample(key, members), {"key": key, **truth}

    def _image(
        self, original: Sample, copy: int, rng: np.random.Generator
    ) -> tuple[dict[str, bytes], dict[str, str | None]]:
        """The members and the truth of a copy; of the original for copy 0."""
        members, change = original.members, None
        if copy:
            changes = draw_changes(rng, self.settings.exact, self.settings.composed)
            change = "+".join(changes) or "copy"
            members = _changed(original, changes, rng) if changes else members
        truth = {"origin": original.key, "kind": change or "original", "change": change}
        return members, truth | {"label": label_of(original)}


def degraded(
    source: Source, settings: Degrade, off_topic: Source | None = None, *, shuffle: bool = True
) -> DegradedPool:
    """The degraded form of a source's train split. off_topic: images of its train split, or of
    the first it has.

    ValueError: no train split, `long_tail` without labels, `off_topic` without a source or a
    source without `off_topic`, more distinct images than there are.
    """
    if "train" not in source.splits:
        raise ValueError(
            f"the source has splits {list(source.splits)} and no train split: only that is degraded"
        )
    if (off_topic is None) != (settings.off_topic == 0):
        raise ValueError(
            f"off_topic={settings.off_topic:g} needs a second source, of images of other things: "
            "name it (--off-topic SOURCE), or set the share to 0"
            if off_topic is None
            else "off_topic=0 takes nothing of the second source: set its share, or leave it out"
        )
    topic = source.splits["train"]
    strangers = None
    if off_topic is not None:
        strangers = off_topic.splits.get("train") or next(iter(off_topic.splits.values()))
    plan = plan_pool(
        settings,
        topic.size,
        labels=_labels(topic, settings.long_tail) if settings.long_tail > 1 else None,
        off_topic=0 if strangers is None else strangers.size,
        shuffle=shuffle,
    )
    return DegradedPool(settings, plan, topic, strangers)


def write_degraded(
    pool: DegradedPool, out: Location, *, per_shard: int = 1000
) -> tuple[list[Location], dict[str, int]]:
    """Writes `out/train/00000.tar`, … and then `out/truth.parquet`. Returns the shards, and how
    many images of each kind there are."""
    kinds: Counter[str] = Counter()
    with (
        (out / "truth.parquet").replacing() as sink,
        pq.ParquetWriter(sink, TRUTH, compression="zstd") as writer,
    ):
        samples = _recorded(pool, per_shard, writer, kinds)
        shards = write_shards(samples, (out / "train").uri, per_shard=per_shard)
    return shards, dict(sorted(kinds.items()))


def label_of(sample: Sample) -> str | None:
    """The text of its .cls member; None where that is missing or empty."""
    return sample.members.get("cls", b"").decode(errors="replace").strip() or None


def _recorded(
    pool: DegradedPool, per_shard: int, writer: pq.ParquetWriter, kinds: Counter[str]
) -> Iterator[Sample]:
    """Every sample in order; the truth of a shard's samples is written once they are made."""
    for first in range(0, len(pool), per_shard):
        rows: list[dict[str, Any]] = []
        shard = f"{first // per_shard:05d}.tar"
        for place in range(first, min(first + per_shard, len(pool))):
            sample, truth = pool.read(place)
            rows.append({"shard": shard, **truth})
            kinds[str(truth["kind"])] += 1
            yield sample
        writer.write_table(pa.Table.from_pylist(rows, schema=TRUTH))


def _labels(split: Split, ratio: float) -> list[str]:
    labels = []
    for sample in split:
        label = label_of(sample)
        if label is None:
            raise ValueError(
                f"long_tail={ratio:g} needs a class for every image, and {sample.key!r} has no "
                ".cls: give a source with classes, or leave long_tail at 1"
            )
        labels.append(label)
    return labels


def _changed(
    original: Sample, changes: tuple[str, ...], rng: np.random.Generator
) -> dict[str, bytes]:
    """The members of a copy: the changed image, and all else as it is."""
    extension, image = _decoded(original)
    rest = {e: data for e, data in original.members.items() if e != extension}
    name, data = changed(image, extension, changes, rng)
    return {name: data} | {e: other for e, other in rest.items() if e != name}


def _decoded(sample: Sample) -> tuple[str, Any]:
    """The extension and the pixels of a sample's image, the first there is."""
    extension = next(e for e in sample.members if e in IMAGE_EXTENSIONS)
    try:
        return extension, decode(sample.members[extension], MAX_PIXELS)
    except BadImage as error:
        raise ValueError(
            f"image {sample.key!r} cannot be changed ({error}): remove it from the source"
        ) from error
