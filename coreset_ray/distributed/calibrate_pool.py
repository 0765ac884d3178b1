"""A short look at the pool itself: samples a byte, reading speed, and what its encoders do."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import ray

from coreset_ray.core.forecast import Encoding
from coreset_ray.distributed.embed import EmbedPlan
from coreset_ray.distributed.session import Cluster
from coreset_ray.distributed.weights import at_hand
from coreset_ray.io.filesystem import locate
from coreset_ray.io.images import BadImage, decode
from coreset_ray.io.shards import IMAGE_EXTENSIONS, Shard, ShardError, read_samples
from coreset_ray.models.preprocess import preprocess_of
from coreset_ray.models.spec import EncoderSpec

_SHARDS = 4  # that are looked into, from all over the pool
_SAMPLES = 500  # of each
_SECONDS = 1.0  # of reading a shard, decoding, encoding
_IMAGES = 64  # decoded for the encoder
_PROBES = 8  # encoders at once


@dataclass(frozen=True)
class Reading:
    """What the first samples of some shards said. images, covered: samples with an image, and
    the bytes of shard they took; rate: bytes a second of one reader, all reading at once."""

    shards: int
    images: int
    covered: int
    rate: float

    def rows(self, size: int) -> int:
        """Images to be expected in so many bytes of shards."""
        return round(self.images / max(1, self.covered) * size)


def read_some(shards: Sequence[Shard]) -> Reading:
    """Reads the beginning of a few shards, each in a task of its own."""
    chosen = spread_over(shards, _SHARDS)
    heads = ray.get([_head.remote(shard) for shard in chosen])
    images, covered, seconds = (sum(column) for column in zip(*heads, strict=True))
    return Reading(len(chosen), images, covered, covered / max(seconds, 1e-6))


def spread_over(items: Sequence[Any], count: int) -> list[Any]:
    """So many of them at about equal distances, the first among them."""
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))
    return [items[i] for i in places]


@ray.remote(num_cpus=1)
def _head(shard: Shard) -> tuple[int, int, float]:
    """Images, bytes they took, and seconds. A shard that is broken counts as far as it goes."""
    start, images, last = time.monotonic(), 0, 0
    with locate(shard.uri).open_stream() as stream:
        samples = read_samples(stream, shard.size, IMAGE_EXTENSIONS.__contains__)
        try:
            for count, sample in enumerate(samples, 1):
                images += sample.image() is not None and not sample.repeated
                last = max(m.offset + m.size for m in sample.members.values())
                if count >= _SAMPLES or time.monotonic() - start > _SECONDS:
                    return images, last, time.monotonic() - start
        except ShardError:
            pass
    return images, shard.size, time.monotonic() - start


def probe_encoders(
    shards: Sequence[Shard],
    specs: Sequence[EncoderSpec],
    plan: EmbedPlan,
    on: Cluster,
    *,
    precision: str,
    max_pixels: int,
) -> Encoding:
    """Loads the encoders in as many actors as the run would have (at most eight), and has all of
    them decode and encode images of the pool at once. Raises `ValueError` as loading does."""
    pipeline = _empty_pipeline()
    options = {"num_cpus": plan.encoder_cpus, "num_gpus": plan.encoder_gpus or None}
    count = min(plan.encoders, _PROBES)
    start = time.monotonic()
    actors: list[Any] = [_Probe.options(**options).remote() for _ in range(count)]  # type: ignore[attr-defined]
    try:
        ready, _ = ray.wait(
            [a.load.remote(list(specs), plan, precision) for a in actors],
            num_returns=count,
            timeout=600,
        )
        widths = ray.get(ready)
        loaded = time.monotonic() - start
        first = spread_over(shards, _SHARDS)
        told = ray.get([a.measure.remote(first, max_pixels) for a in actors])
    finally:
        for actor in actors:
            ray.kill(actor)
    decoding, encoding, memory = (np.array(column) for column in zip(*told, strict=True))
    return Encoding(
        *(widths[0], pipeline + loaded, float(decoding.mean()), float(encoding.mean())),
        *(int(memory.max()), plan.encoders, plan.device, plan.encoder_cpus, on.cpus),
    )


def _empty_pipeline() -> float:
    """Seconds that Ray Data takes to start and end, with nothing to do."""
    start = time.monotonic()
    stream = ray.data.from_items([0]).map_batches(cast(Any, _same), batch_size=1, num_cpus=0.25)
    for _ in stream.iter_batches(batch_size=None):
        pass
    return time.monotonic() - start


def _same(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return batch


@ray.remote(max_restarts=0)
class _Probe:
    """One encoder process, as the run has them."""

    def load(self, specs: list[EncoderSpec], plan: EmbedPlan, precision: str) -> int:
        """The width of the embeddings."""
        import torch

        from coreset_ray.models.encoders import Encoder

        torch.set_num_threads(1)
        self.plan, self.wanted = plan, [preprocess_of(spec) for spec in specs]
        self.encoder = Encoder(
            [at_hand(spec) for spec in specs], device=plan.device, precision=precision
        )
        return self.encoder.width

    def measure(self, shards: list[Shard], max_pixels: int) -> tuple[float, float, int]:
        """Seconds to decode and to encode an image, and the bytes this process holds."""
        start = time.monotonic()
        rows, left_out = self._images(shards, max_pixels)
        decoding = (time.monotonic() - start) / max(1, len(rows) + left_out)
        if not rows:
            raise ValueError(
                f"no image of shard {shards[0].name!r} and {len(shards) - 1} others can be "
                "decoded: see that pool.shards names shards of images"
            )
        return decoding, self._encode(rows), resident_bytes()

    def _images(self, shards: list[Shard], max_pixels: int) -> tuple[list[list[np.ndarray]], int]:
        """Pixels for each encoder of some images, and how many were left out as bad."""
        rows: list[list[np.ndarray]] = []
        start, left_out = time.monotonic(), 0
        for shard in shards:
            try:
                with locate(shard.uri).open_stream() as stream:
                    samples = read_samples(stream, shard.size, IMAGE_EXTENSIONS.__contains__)
                    for member in filter(None, (s.image() for s in samples)):
                        try:
                            image = decode(member.data or b"", max_pixels)
                            rows.append([fit(image) for fit in self.wanted])
                        except (BadImage, ValueError):
                            left_out += 1
                        late = rows and time.monotonic() - start > _SECONDS
                        if late or len(rows) >= _IMAGES:
                            return rows, left_out
            except ShardError:
                continue
        return rows, left_out

    def _encode(self, rows: list[list[np.ndarray]]) -> float:
        """Seconds an image, in batches of the run's size or as many as fit a second or so."""
        self._batch(rows, 1)  # warms up
        one = self._batch(rows, 1)
        wanted = self.plan.batch_size
        size = wanted if self.plan.device != "cpu" else int(min(wanted, max(1, _SECONDS / one)))
        if size > 1:
            self._batch(rows, size)
        seconds, images = 0.0, 0
        while seconds < _SECONDS:
            seconds += self._batch(rows, size)
            images += size
        return seconds / images

    def _batch(self, rows: list[list[np.ndarray]], size: int) -> float:
        start = time.monotonic()
        batch = [rows[i % len(rows)] for i in range(size)]
        self.encoder([np.stack(pixels) for pixels in zip(*batch, strict=True)])
        return time.monotonic() - start


def resident_bytes() -> int:
    """What this process holds in memory, shared libraries included."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
