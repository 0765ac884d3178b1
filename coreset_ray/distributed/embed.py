"""Streams shards through decoders and encoder actors into Parquet parts.

    shards ──read and decode (CPU tasks)──▶ blocks of pixels ──encode (actors)──▶ part writers

Ray Data runs the two stages and keeps the memory between them bounded. A part writer gathers
the rows of its shards and commits each shard as soon as it is whole, so a crash loses at most
the shards in flight. Batches never cross shards: what a row's embedding is does not depend on
how many workers there are.
"""

import hashlib
import logging
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from coreset_ray.distributed.attempts import Attempts, given_up
from coreset_ray.distributed.losses import LOST, Losses
from coreset_ray.distributed.metrics import Totals, add, timed
from coreset_ray.distributed.progress import Progress
from coreset_ray.distributed.session import Cluster
from coreset_ray.distributed.watch import needing
from coreset_ray.distributed.weights import at_hand
from coreset_ray.distributed.writer import PartWriter, Told
from coreset_ray.io.filesystem import locate
from coreset_ray.io.images import BadImage, decode
from coreset_ray.io.metered_stream import MeteredStream
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
from coreset_ray.telemetry.run import peak

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 32 << 20  # of pixels between the two stages
# Bounds how many decoders a node runs. Asked of decoders alone, it also tells Ray Data to keep the
# two stages apart, so that shards are decoded ahead while encoders work.
_DECODER_BYTES = 512 << 20
_DECODER_CPUS = 0.25
_ENCODER_BYTES = 3 << 30  # a process with the default encoders
_MORE_MEMORY = "give nodes more of it, or lower "
_SECONDS_OF_GRACE = 5.0
_PASSES = 3  # over shards that were lost on their way, that commit none of them
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
    losses, idle = Losses("embed"), 0
    while todo and idle < _PASSES:
        totals = Totals()
        try:
            with needing("an encoder", cpus=plan.encoder_cpus, gpus=plan.encoder_gpus):
                unreadable |= _one_pass(
                    todo, table, specs, plan, dtype, precision, max_pixels, totals
                )
        except LOST as error:
            losses.met(error)
        before, done = len(todo), table.committed(todo)
        committed = done.values()  # also by a writer that was lost before it could say so
        totals.reach(
            {
                "images": sum(c.rows for c in committed),
                "quarantined": sum(c.quarantined for c in committed),
            }
        )
        todo = [s for s in todo if s.name not in done and s.name not in unreadable]
        idle = idle + 1 if len(todo) == before else 0
        if todo:
            _log.warning(
                "embed: %d shards were lost on their way with a process or a node, and are "
                "embedded again",
                len(todo),
            )
    if unreadable:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(unreadable.items()))
        raise RuntimeError(
            f"{len(unreadable)} of {len(shards)} shards could not be read; all others are "
            f"embedded. Make them readable or leave them out, and run again:\n{listed}"
        )
    if todo:
        raise RuntimeError(
            f"shard {todo[0].name!r} and {len(todo) - 1} others were not committed: of {_PASSES} "
            "passes over them none committed any, as processes were lost; the same command goes on "
            "from here"
        )


def _one_pass(
    shards: list[Shard],
    table: PartedTable,
    specs: Sequence[EncoderSpec],
    plan: EmbedPlan,
    dtype: str,
    precision: str,
    max_pixels: int,
    totals: Totals,
) -> dict[str, str]:
    """Runs the pipeline over these shards; returns those that could not be opened, with why."""
    count = min(len(shards), max(1, plan.encoders // _SHARDS_PER_WRITER + 1))
    writers = [PartWriter.remote(table.folder.uri) for _ in range(count)]  # type: ignore[attr-defined]
    told = Told(writers)
    wanted = [preprocess_of(spec) for spec in specs]
    preprocess = list(dict.fromkeys(wanted))
    places = [preprocess.index(each) for each in wanted]
    attempts = Attempts.remote()  # type: ignore[attr-defined]
    read = _Reader(shards, preprocess, max_pixels, plan.batch_size, writers, attempts)
    names = [s.name for s in shards]
    arguments = (specs, places, plan, precision, dtype, names, writers, attempts)
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
        try:
            _follow(receipts, len(shards), told, totals)
            states = _last_states(told, len(shards))
            _account(states, totals)
        finally:
            for actor in (*writers, attempts):
                ray.kill(cast(Any, actor))
    return {name: reason for s in states for name, reason in s["unreadable"].items()}


def _last_states(told: Told, shards: int) -> list[dict[str, Any]]:
    """The writers' states once they account for every shard, or stand still: the last rows may
    still be on their way to them when the stream ends."""
    before, since = -1, time.monotonic()
    while True:
        states = told.ask()
        settled = sum(s["shards"] + len(s["unreadable"]) for s in states)
        if settled > before:
            before, since = settled, time.monotonic()
        if settled >= shards or time.monotonic() - since > _SECONDS_OF_GRACE:
            return states
        time.sleep(0.1)


def _account(states: Sequence[dict[str, Any]], totals: Totals) -> None:
    """Counts what the writers tell of."""
    for state in states:
        counts = {"images": state["rows"], "quarantined": state["quarantined"]}
        totals.tell(state["writer"], state["spent"] | counts)
        peak(encoder_memory=state["encoder_memory"])


def _follow(receipts: Any, shards: int, told: Told, totals: Totals) -> None:
    """Draws the stream to its end and shows how far it is."""
    start = asked = time.monotonic()
    images = 0
    with timed("flow"), Progress("embed", shards, "shards") as progress:
        for receipt in receipts:
            for error in filter(None, receipt["error"]):
                raise ValueError(error)
            now = time.monotonic()
            if not images:
                add(start=now - start)
            images += int(receipt["rows"].sum())
            if now - asked >= 1.0:
                asked = now
                _show(progress, images / (now - start), told, totals)
        _show(progress, images / (time.monotonic() - start), told, totals)


def _show(progress: Progress, rate: float, told: Told, totals: Totals) -> None:
    states = told.ask()
    _account(states, totals)
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
        attempts: Any,
    ):
        self._shards = ray.put(shards)
        self._preprocess, self._max_pixels = preprocess, max_pixels
        self._batch_size, self._writers, self._attempts = batch_size, writers, attempts

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        number = int(batch["item"][0])
        shard = ray.get(self._shards)[number]
        writer = self._writers[number % len(self._writers)]
        remedy = f"{_MORE_MEMORY}embed.max_pixels or compute.batch_size"
        if reason := given_up(self._attempts, f"read {shard.name}", "its reader", remedy):
            ray.wait([writer.unreadable.remote(shard.name, reason)])
            return
        faults: list[tuple[str, str]] = []
        rows, total = [], 0
        fault, clock = "", _ReaderClock()
        try:
            for sample in self._samples(shard, clock):
                try:
                    rows.append(self._row(sample))
                except BadImage as error:
                    faults.append((sample.key, str(error)))
                    continue
                if len(rows) == self._batch_size:
                    block = self._block(rows, number, total)
                    with clock.stopped():
                        yield block
                    total += len(rows)
                    rows = []
        except ShardError as error:
            fault = str(error)
        except OSError as error:
            ray.wait([writer.unreadable.remote(shard.name, f"{type(error).__name__}: {error}")])
            return
        if rows:
            block = self._block(rows, number, total)
            with clock.stopped():
                yield block
            total += len(rows)
        ray.wait([writer.finish.remote(shard, total, faults, fault, clock.spent())])

    def _samples(self, shard: Shard, clock: "_ReaderClock") -> Iterator[Sample]:
        start = time.perf_counter()
        with self._open(shard) as stream:
            clock.opened = time.perf_counter() - start
            clock.stream = metered = MeteredStream(stream)
            source = cast(BinaryIO, metered)  # of which only `read` is asked
            yield from read_samples(source, shard.size, IMAGE_EXTENSIONS.__contains__)

    def _open(self, shard: Shard) -> BinaryIO:
        return locate(shard.uri).open_stream()

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


class _ReaderClock:
    """What one shard took: the store's share is to open it and wait for its bytes; the rest is
    decoding, less the time in which a block waited to be taken."""

    def __init__(self) -> None:
        self._start, self._waited = time.perf_counter(), 0.0
        self.opened = 0.0
        self.stream: MeteredStream | None = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def spent(self) -> dict[str, float]:
        read = self.opened + (self.stream.seconds if self.stream else 0.0)
        whole = time.perf_counter() - self._start - self._waited
        size = self.stream.size if self.stream else 0
        return {"bytes": size, "read": read, "decode": max(0.0, whole - read)}


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
        attempts: Any,
    ):
        import torch  # here, so that decoders do without its hundreds of megabytes

        from coreset_ray.models.encoders import Encoder

        torch.set_num_threads(1)
        self._attempts, remedy = attempts, f"{_MORE_MEMORY}compute.encoders"
        start = f"start {ray.get_runtime_context().get_actor_id()}"
        self._error = ""
        self._lost = given_up(attempts, start, "an encoder, as it started,", remedy)
        if self._lost:
            return
        try:
            specs = [at_hand(spec) for spec in specs]
            self._encoder = Encoder(specs, device=plan.device, precision=precision)
        except (ValueError, OSError) as error:  # raised here the user would see a dead actor
            self._error = str(error)
            return
        attempts.succeeded.remote(start)
        self._dtype = np.dtype(dtype)
        self._schema = embedding_schema(self._encoder.width, dtype)
        self._places, self._batch_size = places, plan.batch_size
        self._names, self._writers = names, writers
        self._sent: Any = None
        self._spent = Counter[str](encoders=1)
        self._since = time.perf_counter()

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._error:
            return {"rows": np.array([0]), "error": np.array([self._error])}
        self._lap("wait")
        number = int(block["shard"][0])
        assert (block["shard"] == number).all(), "a block holds rows of one shard"
        writer, start = self._writers[number % len(self._writers)], int(block["row"][0])
        remedy = f"{_MORE_MEMORY}compute.batch_size or compute.encoders"
        work = f"encode {self._names[number]} {start}"
        what = "an encoder at its images"
        if reason := self._lost or given_up(self._attempts, work, what, remedy):
            ray.wait([writer.unreadable.remote(self._names[number], reason)])
            return {"rows": np.array([0]), "error": np.array([""])}
        embedding = self._encode(block).astype(self._dtype)
        finite = np.isfinite(embedding).all(axis=1)
        faults = [(key, "its embedding holds NaN or infinity") for key in block["key"][~finite]]
        rows = self._table(self._names[number], block, embedding, np.flatnonzero(finite))
        self._lap("encode")
        if self._sent is not None:
            ray.wait([self._sent])  # at most one hand-over under way
        self._lap("hand_over")
        self._sent = writer.add.remote(
            *(self._names[number], start, rows, faults, self._encoder.precision_),
            *(dict(self._spent), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss),
        )
        self._spent.clear()
        return {"rows": np.array([rows.num_rows]), "error": np.array([""])}

    def _lap(self, phase: str) -> None:
        """Counts the time since the last lap to this phase."""
        now = time.perf_counter()
        self._spent[phase] += now - self._since  # type: ignore[assignment]
        self._since = now

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
