"""The images of an embedding part's rows, read once more from their shard."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from PIL import Image

from coreset_ray.io.filesystem import locate
from coreset_ray.io.images import BadImage, decode
from coreset_ray.io.shards import IMAGE_EXTENSIONS, Sample, Shard, ShardError, read_samples


def read_images(
    shard: Shard, rows: pa.Table, max_pixels: int, fit: Callable[[Image.Image], Any]
) -> Iterator[Any]:
    """What `fit` makes of each row's image, in the order of the rows, which is the shard's.

    rows: columns key and sha256 of the part that was made of this shard. Raises `RuntimeError`
    naming the first image that is not there as it was embedded, or that `fit` refuses.
    """
    key = ""
    try:
        with locate(shard.uri).open_stream() as stream:
            samples = read_samples(stream, shard.size, IMAGE_EXTENSIONS.__contains__)
            wanted = zip(rows["key"].to_pylist(), rows["sha256"].to_pylist(), strict=True)
            for key, sha256 in wanted:
                yield fit(decode(_bytes(samples, key, sha256), max_pixels))
    except (BadImage, ShardError, OSError, ValueError) as error:
        raise RuntimeError(
            f"image {key!r} of shard {shard.name!r} is not what was embedded: {error}. Put the "
            "shard back, or run `coreset-ray embed` again where it has changed"
        ) from error


def _bytes(samples: Iterator[Sample], key: str, sha256: str) -> bytes:
    """Of the next sample with this key."""
    sample = next((s for s in samples if s.key == key and not s.repeated), None)
    member = sample.image() if sample else None
    if member is None or member.data is None:
        raise BadImage("its shard no longer holds it")
    if hashlib.sha256(member.data).hexdigest() != sha256:
        raise BadImage("its bytes are others")
    return member.data
