"""Where the usable images of shards lie, before anything else is known of them: a task a shard."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from coreset_ray.distributed.progress import Progress
from coreset_ray.io.filesystem import locate
from coreset_ray.io.images import BadImage, decode
from coreset_ray.io.shards import IMAGE_EXTENSIONS, Sample, Shard, ShardError, read_samples

FOUND = pa.schema(
    [
        ("shard", pa.string()),
        ("key", pa.string()),
        ("path", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


def find_images(shards: Sequence[Shard], max_pixels: int) -> tuple[pa.Table, list[str]]:
    """Every image that decodes, in the order of the shards: columns of `FOUND` (offset and size in
    bytes of the file `path`). And of each sample that has none, and of each shard that ends early,
    what and why.

    Reads nothing of a sample but its image. Raises `RuntimeError` for a shard that cannot be read.
    """
    found: list[Any] = [None] * len(shards)
    tasks = {_find.remote(shard, max_pixels): i for i, shard in enumerate(shards)}
    waiting = list(tasks)
    with Progress("find images", len(shards), "shards") as progress:
        while waiting:
            (ready, *_), waiting = ray.wait(waiting)
            found[tasks[ready]] = ray.get(ready)
            progress.update(len(shards) - len(waiting))
    tables = pa.concat_tables([table for table, _ in found]).unify_dictionaries()
    return tables, [reason for _, reasons in found for reason in reasons]


@ray.remote(num_cpus=1)
def _find(shard: Shard, max_pixels: int) -> tuple[pa.Table, list[str]]:
    columns: dict[str, list[Any]] = {"key": [], "offset": [], "size": []}
    bad: list[str] = []
    try:
        with locate(shard.uri).open_stream() as stream:
            for sample in read_samples(stream, shard.size, IMAGE_EXTENSIONS.__contains__):
                try:
                    values = (sample.key, *_place(sample, max_pixels))
                except BadImage as error:
                    bad.append(f"image {sample.key!r} of shard {shard.name!r}: {error}")
                    continue
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    except ShardError as error:
        bad.append(f"shard {shard.name!r}: {error}")
    except OSError as error:
        raise RuntimeError(f"shard {shard.name!r} cannot be read: {error}") from error
    n = len(columns["key"])
    columns |= {"shard": [shard.name] * n, "path": [shard.uri] * n}
    return pa.table([columns[name] for name in FOUND.names], schema=FOUND), bad


def _place(sample: Sample, max_pixels: int) -> tuple[int, int]:
    """Offset and size of the image; `BadImage` where it is none."""
    member = sample.image()
    if sample.repeated or member is None or member.data is None:
        raise BadImage("its key is repeated, or it has no image, or one that is too large")
    decode(member.data, max_pixels)
    return member.offset, member.size
