"""Streams shards through decoders and encoder actors into Parquet parts.

    shards ──read and decode (CPU tasks)──▶ blocks of pixels ──encode (actors)──▶ part writers

Ray Data runs the two stages and keeps the memory between them bounded. A part writer gathers
the rows of its shards and commits each shard as soon as it is whole, so a crash loses at most
the shards in flight. Batches never cross shards: what a row's embedding is does not depend on
how many workers there are.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayActorError

from coreset_ray.distributed.progress import Progress
from coreset_ray.distributed.session import Cluster
from coreset_ray.distributed.writer import PartWriter
from coreset_ray.io.filesystem import locate
from coreset_ray.io.images import BadImage, decode
from coreset_ray.io.shards import (
    IMAGE_EXTENSIONS,
    REPEATED,
    Sample,
    Shard,
    ShardError,
    read_samples,
)
from coreset_ray.io.tables import PartedTable, embedding_schema, uid_of
from coreset_ray.models.preprocess import Preprocess, preprocess_of
from coreset_ray.models.spec import EncoderSpec

_BLOCK_BYTES = 32 << 20  # of pixels between the two stages
# Bounds how many decoders a node runs. Asked of decoders alone, it also tells Ray Data to keep the
# two stages apart, so that shards are decoded ahead while encoders work.
_DECODER_BYTES = 512 << 20
_DECODER_CPUS = 0.25
_ENCODER_BYTES = 3 << 30  # a process with the default encoders
_SECONDS_OF_GRACE = 20.0
_PASSES = 3  # over shards whose writer was lost
_SHARDS_PER_WRITER = 16  # in flight at once, for choosing the number of writers


@dataclass(frozen=True)
class EmbedPlan:
    """How the work is laid out.

    encoders: actors; encoder_cpus, encoder_gpus: what each holds; batch_size: images a forward
    pass. An encoder actor always computes with one CPU thread: how torch splits a sum over threads
    moves its last bits, and the number of actors may not.
    """

    device: str
    encoders: int
    encoder_cpus: float
    encoder_gpus: float
    batch_size: int


def plan_embedding(
    on: Cluster, device: str, batch_size: int, encoders: int | None, encoder_gpus: float
) -> EmbedPlan:
    """As many encoder actors as the GPUs allow; without GPUs one a CPU, as far as memory allows."""
    if device == "cuda":
        count = encoders or max(1, int(on.gpus / encoder_gpus))
        cpus = min(1.0, on.cpus / (2 * count))
        return EmbedPlan(device, count, cpus, encoder_gpus, batch_size)
    room = (min(int(cpus), int(memory // _ENCODER_BYTES)) for cpus, memory in on.nodes)
    count = encoders or max(1, sum(room))
    # A quarter of the CPUs is left to decoders, which need less than encoders on a CPU do.
    return EmbedPlan(device, count, 0.75 * min(1.0, on.cpus / count), 0.0, batch_size)


def embed_shards(
    shards: Sequence[Shard],
    table: PartedTable,
    specs: Sequence[EncoderSpec],
    plan: EmbedPlan,
    *,
    dtype: str,
    precision: str,
    max_pixels: int,
) -> None:
    """Commits a part for every shard that has none yet.

    Raises `RuntimeError` naming the shards that could not be read, after all others are
    committed.
    """
    done = table.committed(shards)
    todo = [s for s in shards if s.name not in done]
    unreadable: dict[str, str] = {}
    for _ in range(_PASSES):
        if not todo:
            break
        unreadable |= _one_pass(todo, table, specs, plan, dtype, precision, max_pixels)
        done = table.committed(todo)
        todo = [s for s in todo if s.name not in done and s.name not in unreadable]
    if unreadable:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(unreadable.items()))
        raise RuntimeError(
            f"{len(unreadable)} of {len(shards)} shards could not be read; all others are "
            f"embedded. Make them readable or leave them out, and run again:\n{listed}"
        )
    if todo:
        raise RuntimeError(
            f"shard {todo[0].name!r} and {len(todo) - 1} others were not committed in {_PASSES} "
            "passes because their writers were lost; run again to go on from here"
        )


def _one_pass(
    shards: list[Shard],
    table: PartedTable,
    specs: Sequence[EncoderSpec],
    plan: EmbedPlan,
    dtype: str,
    precision: str,
    max_pixels: int,
) -> dict[str, str]:
    """Runs the pipeline over these shards; returns those that could not be opened, with why."""
    count = min(len(shards), max(1, plan.encoders // _SHARDS_PER_WRITER + 1))
    writers = [PartWriter.remote(table.folder.uri) for _ in range(count)]  # type: ignore[attr-defined]
    wanted = [preprocess_of(spec) for spec in specs]
    preprocess = list(dict.fromkeys(wanted))
    places = [preprocess.index(each) for each in wanted]
    read = _Reader(shards, preprocess, max_pixels, plan.batch_size, writers)
    arguments = (specs, places, plan, precision, dtype, [s.name for s in shards], writers)
    with _data_context():
        receipts = (
            ray.data.from_items(list(range(len(shards))), override_num_blocks=len(shards))
            .map_batches(
                cast(Any, read),
                batch_size=1,
                batch_format="numpy",
                num_cpus=_DECODER_CPUS,
                memory=_DECODER_BYTES,
            )
            .map_batches(
                _EncodeBlock,
                fn_constructor_args=arguments,
                batch_size=None,
                batch_format="numpy",
                compute=ActorPoolStrategy(size=min(plan.encoders, len(shards))),
                num_cpus=plan.encoder_cpus,
                num_gpus=plan.encoder_gpus or None,
            )
            .iter_batches(batch_size=None, batch_format="numpy")
        )
        _follow(receipts, len(shards), writers)
    states = _last_states(writers, len(shards))
    for writer in writers:
        ray.kill(cast(Any, writer))
    return {name: reason for s in states for name, reason in s["unreadable"].items()}


def _states(writers: Sequence[Any]) -> list[dict[str, Any]]:
    """What the living writers say. What a lost one had not committed is embedded again. Raises
    `RuntimeError` where a part could not be written."""
    states = []
    for writer in writers:
        with suppress(RayActorError):
            states.append(ray.get(writer.state.remote()))
    for state in states:
        if state["error"]:
            raise RuntimeError(state["error"])
    return states


def _last_states(writers: Sequence[Any], shards: int) -> list[dict[str, Any]]:
    """The writers' states once they account for every shard, or stand still: the last rows may
    still be on their way to them when the stream ends."""
    before, since = -1, time.monotonic()
    while True:
        states = _states(writers)
        settled = sum(s["shards"] + len(s["unreadable"]) for s in states)
        if settled > before:
            before, since = settled, time.monotonic()
        if settled >= shards or time.monotonic() - since > _SECONDS_OF_GRACE:
            return states
        time.sleep(0.1)


def _follow(receipts: Any, shards: int, writers: Sequence[Any]) -> None:
    """Draws the stream to its end and shows how far it is."""
    start = asked = time.monotonic()
    images = 0
    with Progress("embed", shards, "shards") as progress:
        for receipt in receipts:
            for error in filter(None, receipt["error"]):
                raise ValueError(error)
            images += int(receipt["rows"].sum())
            now = time.monotonic()
            if now - asked >= 1.0:
                asked = now
                _show(progress, images / (now - start), writers)
        _show(progress, images / (time.monotonic() - start), writers)


def _show(progress: Progress, rate: float, writers: Sequence[Any]) -> None:
    states = _states(writers)
    shards, rows, bad = (sum(s[k] for s in states) for k in ("shards", "rows", "quarantined"))
    progress.update(shards, f"{rows} images, {rate:.0f} images/s, {bad} quarantined")


class _Reader:
    """Reads and decodes one shard, as blocks of uint8 pixels, in the order of the shard."""

    def __init__(
        self,
        shards: list[Shard],
        preprocess: list[Preprocess],
        max_pixels: int,
        batch_size: int,
        writers: Sequence[Any],
    ):
        self._shards = ray.put(shards)
        self._preprocess, self._max_pixels = preprocess, max_pixels
        self._batch_size, self._writers = batch_size, writers

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        number = int(batch["item"][0])
        shard = ray.get(self._shards)[number]
        writer = self._writers[number % len(self._writers)]
        faults: list[tuple[str, str]] = []
        rows, total = [], 0
        fault = ""
        try:
            for sample in self._samples(shard):
                try:
                    rows.append(self._row(sample))
                except BadImage as error:
                    faults.append((sample.key, str(error)))
                    continue
                if len(rows) == self._batch_size:
                    yield self._block(rows, number, total)
                    total += len(rows)
                    rows = []
        except ShardError as error:
            fault = str(error)
        except OSError as error:
            ray.wait([writer.unreadable.remote(shard.name, f"{type(error).__name__}: {error}")])
            return
        if rows:
            yield self._block(rows, number, total)
            total += len(rows)
        ray.wait([writer.finish.remote(shard, total, faults, fault)])

    def _samples(self, shard: Shard) -> Iterator[Sample]:
        with locate(shard.uri).open_stream() as stream:
            yield from read_samples(stream, shard.size, IMAGE_EXTENSIONS.__contains__)

    def _row(self, sample: Sample) -> tuple[Any, ...]:
        if sample.repeated:
            raise BadImage(REPEATED)
        member = sample.image()
        if member is None:
            raise BadImage("the sample has no image")
        if member.data is None:
            raise BadImage(f"{member.size} bytes are too many for one image")
        image = decode(member.data, self._max_pixels)
        try:
            pixels = [fit(image) for fit in self._preprocess]
        except ValueError as error:  # so thin that resizing it would fill the memory
            raise BadImage(str(error)) from error
        return sample.key, hashlib.sha256(member.data).hexdigest(), *image.size, pixels

    def _block(self, rows: list[tuple[Any, ...]], shard: int, start: int) -> dict[str, Any]:
        keys, hashes, widths, heights, pixels = zip(*rows, strict=True)
        block = {
            "shard": np.full(len(rows), shard, np.int64),
            "row": np.arange(start, start + len(rows)),
            "key": np.array(keys, object),
            "sha256": np.array(hashes, object),
            "width": np.array(widths, np.int32),
            "height": np.array(heights, np.int32),
        }
        for place in range(len(self._preprocess)):
            block[f"pixels_{place}"] = np.stack([p[place] for p in pixels])
        return block


class _EncodeBlock:
    """Embeds one block of one shard and hands the rows to the shard's writer.

    Returns a receipt: how many rows, and what is wrong with the encoders, if anything is.
    """

    def __init__(
        self,
        specs: Sequence[EncoderSpec],
        places: list[int],
        plan: EmbedPlan,
        precision: str,
        dtype: str,
        names: list[str],
        writers: Sequence[Any],
    ):
        import torch  # here, so that decoders do without its hundreds of megabytes

        from coreset_ray.models.encoders import Encoder

        torch.set_num_threads(1)
        self._error = ""
        try:
            self._encoder = Encoder(specs, device=plan.device, precision=precision)
        except ValueError as error:  # raised from here it would reach the user as a dead actor
            self._error = str(error)
            return
        self._dtype = np.dtype(dtype)
        self._schema = embedding_schema(self._encoder.width, dtype)
        self._places, self._batch_size = places, plan.batch_size
        self._names, self._writers = names, writers
        self._sent: Any = None

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._error:
            return {"rows": np.array([0]), "error": np.array([self._error])}
        number = int(block["shard"][0])
        assert (block["shard"] == number).all(), "a block holds rows of one shard"
        embedding = self._encode(block).astype(self._dtype)
        finite = np.isfinite(embedding).all(axis=1)
        faults = [(key, "its embedding holds NaN or infinity") for key in block["key"][~finite]]
        rows = self._table(self._names[number], block, embedding, np.flatnonzero(finite))
        if self._sent is not None:
            ray.wait([self._sent])  # at most one hand-over under way
        writer = self._writers[number % len(self._writers)]
        self._sent = writer.add.remote(
            self._names[number], int(block["row"][0]), rows, faults, self._encoder.precision_
        )
        return {"rows": np.array([rows.num_rows]), "error": np.array([""])}

    def _encode(self, block: dict[str, np.ndarray]) -> np.ndarray:
        pixels = [block[f"pixels_{place}"] for place in self._places]
        size = self._batch_size
        return np.concatenate(
            [
                self._encoder([p[i : i + size] for p in pixels])
                for i in range(0, len(block["key"]), size)
            ]
        )

    def _table(
        self, shard: str, block: dict[str, np.ndarray], embedding: np.ndarray, rows: np.ndarray
    ) -> pa.Table:
        keys = [str(block["key"][i]) for i in rows]
        kind = self._schema.field("embedding").type
        flat = pa.array(embedding[rows].ravel(), kind.value_type)
        columns = [
            pa.array([uid_of(shard, key) for key in keys], pa.string()),
            pa.array([shard] * len(keys), pa.string()),
            pa.array(keys, pa.string()),
            pa.array([block["sha256"][i] for i in rows], pa.string()),
            pa.array(block["width"][rows], pa.int32()),
            pa.array(block["height"][rows], pa.int32()),
            pa.FixedSizeListArray.from_arrays(flat, kind.list_size),
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)


@contextmanager
def _data_context() -> Iterator[None]:
    """Ray Data's settings for the length of a run, put back afterwards."""
    context = DataContext.get_current()
    ours = {
        "target_max_block_size": _BLOCK_BYTES,
        "enable_progress_bars": False,
    }
    before = {name: getattr(context, name) for name in ours}
    try:
        for name, value in ours.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
