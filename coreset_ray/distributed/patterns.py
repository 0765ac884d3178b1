"""Local patterns of every image: the shards are read once more, each by the actor that writes its
part.

Actors decode what they encode. On GPUs `encoder_gpus` says how many share one, each with a CPU to
decode on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.util import ActorPool

from coreset_ray.distributed.embed import EmbedPlan
from coreset_ray.distributed.progress import Progress
from coreset_ray.distributed.weights import at_hand
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.part_images import read_images
from coreset_ray.io.shards import Shard
from coreset_ray.io.tables import PartedTable, list_column, read_table, write_table
from coreset_ray.models.patterns import Patterns
from coreset_ray.models.spec import EncoderSpec

_OFF = 0.01  # that a pattern's length may be from 1


@dataclass(frozen=True)
class PatternWork:
    """encoder, block, count: as in `models.patterns`; max_pixels: as the images were embedded;
    table: the embedding table; out: where parts go; device, batch_size: of a forward pass."""

    encoder: EncoderSpec
    block: int
    count: int
    max_pixels: int
    table: str
    out: str
    device: str
    batch_size: int


def find_patterns(
    table: PartedTable,
    parts: Mapping[str, Shard],
    out: Location,
    *,
    encoder: EncoderSpec,
    block: int,
    count: int,
    max_pixels: int,
    plan: EmbedPlan,
) -> None:
    """Writes part-NAME.parquet for every embedding part that has none yet: uid and pattern,
    float16[count·d], `count` rows of length 1 one after another.

    parts: the shard of each. Raises `ValueError` for an encoder that yields no patterns;
    `RuntimeError` naming an image that its shard no longer holds as it was.
    """
    left = [(part, shard) for part, shard in parts.items() if not _place(out, part).exists()]
    work = PatternWork(
        encoder=encoder,
        block=block,
        count=count,
        max_pixels=max_pixels,
        table=table.folder.uri,
        out=out.uri,
        device=plan.device,
        batch_size=plan.batch_size,
    )
    writers: list[Any] = [
        _Writer.options(num_cpus=plan.encoder_cpus, num_gpus=plan.encoder_gpus).remote(work)  # type: ignore[attr-defined]
        for _ in range(min(plan.encoders, len(left)))
    ]
    done = len(parts) - len(left)
    try:
        with Progress("patterns", len(parts), "parts") as progress:
            progress.update(done)
            for _ in ActorPool(writers).map_unordered(lambda a, each: a.write.remote(*each), left):
                progress.update(done := done + 1)
    finally:
        for writer in writers:
            ray.kill(writer)


@ray.remote(max_restarts=-1, max_task_retries=3)
class _Writer:
    """Writes parts, each from its shard alone; computes with one CPU thread, since how threads
    share a sum moves digits."""

    def __init__(self, work: PatternWork):
        torch.set_num_threads(1)
        self.work, self.model = work, None

    def write(self, part: str, shard: Shard) -> None:
        work = self.work
        if self.model is None:  # raised in __init__ an error would reach the user as a dead actor
            self.model = Patterns(
                at_hand(work.encoder), block=work.block, count=work.count, device=work.device
            )
        rows = read_table(PartedTable(locate(work.table)).part(part), ["uid", "key", "sha256"])
        images = read_images(shard, rows, work.max_pixels, self.model.prepare)
        pattern = np.concatenate([self.model(b) for b in _batches(images, work.batch_size)])
        length = np.linalg.norm(pattern, axis=2)
        wrong = np.flatnonzero(~(np.abs(length - 1) < _OFF).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"image {rows['key'][wrong[0]].as_py()!r} of shard {shard.name!r}: its patterns "
                f"hold NaN, infinity or nothing; use other weights than those of encoder "
                f"{work.encoder.name!r}"
            )
        flat = pattern.reshape(len(pattern), -1).astype(np.float16)
        columns = {"uid": rows["uid"], "pattern": list_column(flat)}
        write_table(_place(locate(work.out), part), pa.table(columns))


def _batches(images: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """So many images at a time, stacked; fewer the last time."""
    batch = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _place(out: Location, part: str) -> Location:
    return out / f"part-{part}.parquet"
