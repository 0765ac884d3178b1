"""Chosen samples as WebDataset shards again: original bytes, every sidecar, identity kept."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from contextlib import closing

import pyarrow as pa
from pyarrow import csv

from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.open_files import OpenFiles
from coreset_ray.io.shards import Shard, ShardError, read_samples
from coreset_ray.io.tables import uid_of

MEMBERS = pa.schema(
    [
        ("uid", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("path", pa.string()),
        ("extension", pa.string()),
        ("image", pa.bool_()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("text", pa.string()),
    ]
)

_UNSAFE = re.compile(r"(^|/)\.{0,2}(/|$)|[\\:\x00-\x1f\x7f]")


def find_members(shard: Shard, keys: Iterable[str], label: str = "cls") -> pa.Table:
    """Where every member of the samples with these keys lies in a shard (`MEMBERS`).

    One pass over the shard. text: the content of `label` members, null for all others; a key
    that comes twice means its first sample.
    """
    wanted = set(keys)
    rows = []
    with locate(shard.uri).open_stream() as stream:
        try:
            for sample in read_samples(stream, shard.size, lambda extension: extension == label):
                if sample.key not in wanted or sample.repeated:
                    continue
                image = sample.image()
                for extension, member in sample.members.items():
                    text = None if member.data is None else member.data.decode(errors="replace")
                    rows.append(
                        {
                            "uid": uid_of(shard.name, sample.key),
                            **{"shard": shard.name, "key": sample.key, "path": shard.uri},
                            **{"extension": extension, "image": member is image, "text": text},
                            **{"offset": member.offset, "size": member.size},
                        }
                    )
        except ShardError:
            pass  # what a broken shard holds was counted when it was embedded
    return pa.Table.from_pylist(rows, schema=MEMBERS)


def export_key(shard: str, key: str, uid: str) -> str:
    """The key of a sample in an exported shard: its shard's name and its own key, so that both
    survive and keys repeated across shards stay apart; the uid where that would be an unsafe
    path for whoever unpacks the shard. The shard's name keeps its .tar before a key with folders:
    key b/c of a.tar is not key c of a/b.tar."""
    name = f"{shard if '/' in key else shard.removesuffix('.tar')}/{key}"
    return uid if _UNSAFE.search(name) or len(name.encode()) > 240 else name


def write_shard(out: Location, samples: Iterable[tuple[str, pa.Table, str]]) -> None:
    """One shard, whole or absent.

    samples: (exported key, rows of `MEMBERS`, SHA-256 of the image), in order. Bytes are copied
    as they are. Raises `RuntimeError` when an image's bytes are not those that were embedded.
    """
    with (
        closing(OpenFiles()) as opened,
        out.replacing() as sink,
        tarfile.open(fileobj=sink, mode="w|") as tar,
    ):
        for key, members, sha256 in samples:
            for member in members.to_pylist():
                data = opened.read(member["path"], member["offset"], member["size"])
                if member["image"] and hashlib.sha256(data).hexdigest() != sha256:
                    raise RuntimeError(
                        f"the image of key {member['key']!r} in {member['path']!r} is not the one "
                        "that was embedded: run embed, score and select again"
                    )
                info = tarfile.TarInfo(f"{key}.{member['extension']}")
                info.size, info.mode = member["size"], 0o644
                tar.addfile(info, io.BytesIO(data))


def write_lists(folder: Location, index: pa.Table) -> None:
    """The coreset as plain lists: manifest.csv and manifest.jsonl, one line an image."""
    with (folder / "manifest.csv").replacing() as sink:
        csv.write_csv(index, sink)
    with (folder / "manifest.jsonl").replacing() as sink:
        for batch in index.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                sink.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def grouped(members: pa.Table, by: str) -> Mapping[str, pa.Table]:
    """Rows of `MEMBERS` by the value of a column; rows of one value lie together."""
    values = members[by].to_pylist()
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    stops = [*starts[1:], len(values)]
    return {values[a]: members.slice(a, b - a) for a, b in zip(starts, stops, strict=True)}
