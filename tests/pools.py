"""Small real pools for tests: digits in shards, a tiny encoder with weights on disk, a config."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import timm
import torch
import webdataset
import yaml
from PIL import Image
from signal_columns import CLASSES, pool_with_signals

from coreset_ray.config import Config
from coreset_ray.core.pool import Pool
from coreset_ray.distributed.trial import write_rows
from coreset_ray.io.filesystem import locate
from coreset_ray.io.sources import digits_samples, write_shards
from coreset_ray.io.tables import (
    QUARANTINE,
    Commit,
    PartedTable,
    content_hash,
    embedding_schema,
    matrix,
    part_name,
    read_table,
    uid_of,
    uid_words,
    write_table,
)
from pipelines.inputs import Table, filled, pool_table
from pipelines.signals import SIGNALS

ENCODER = "timm:test_vit"


def digits_pool(folder: Path, *, shards: int, each: int) -> tuple[Path, Path]:
    """The folders of training shards and of test shards."""
    train, test = folder / "train", folder / "test"
    samples = iter(digits_samples("train"))
    write_shards((next(samples) for _ in range(shards * each)), train, per_shard=each)
    held_out = iter(digits_samples("test"))
    write_shards((next(held_out) for _ in range(60)), test, per_shard=30)
    return train, test


def read_shard(*path: Any) -> list[dict[str, Any]]:
    """The samples of a shard."""
    pipe = webdataset.tariterators
    with open(os.path.join(*map(str, path)), "rb") as stream:
        files = pipe.tar_file_expander([{"url": "x", "stream": stream}])
        return list(pipe.group_by_keys(files))


def without_labels(pool: Path, out: Path) -> Path:
    """The same shards with the image as each sample's only member."""
    out.mkdir()
    for shard in pool.glob("*.tar"):
        with webdataset.TarWriter(str(out / shard.name), encoder=False) as writer:
            for sample in read_shard(shard):
                assert "cls" in sample
                writer.write({"__key__": sample["__key__"], "png": sample["png"]})
    return out


def tiny_encoder(folder: Path) -> dict[str, Any]:
    """An encoder entry whose random weights lie in the folder."""
    path = folder / "test_vit.pth"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_vit").state_dict(), path)
    return {"name": ENCODER, "weights": str(path), "input_size": 160}


def write_config(
    folder: Path, pool: Path | str, test: Path | str | None = None, **sections: Any
) -> Path:
    """A configuration file; `sections` replace the defaults below."""
    data: dict[str, Any] = {
        "workspace": str(folder / "work"),
        "pool": {"shards": str(pool)},
        "embed": {"encoders": [tiny_encoder(folder)]},
        "score": {"params": {"draws": 3000, "neighbors": 20}},
        "select": {"budget": 0.2},
        **({"evaluate": {"test": {"shards": str(test)}, "seeds": [0, 1]}} if test else {}),
        **sections,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def embed_pixels(table: Table) -> None:
    """Parts for shards of digits that have none, with pixels and some noise as the embedding:
    quicker than an encoder's, where what follows is in question."""
    done = table.parts.committed(table.shards)
    if not done:
        (table.stage.folder / "table.json").write_json(table.record())
    for shard in table.shards:
        if shard.name in done:
            continue
        samples = read_shard(shard.uri)
        keys = [sample["__key__"] for sample in samples]
        images = [Image.open(io.BytesIO(sample["png"])).convert("L") for sample in samples]
        unit = np.stack([np.asarray(image, np.float32).ravel() for image in images])
        noise = np.random.default_rng(list(shard.name.encode()))
        unit += noise.normal(0, 8, unit.shape).astype(np.float32)
        n = len(samples)
        rows = pa.table(
            [
                pa.array([uid_of(shard.name, key) for key in keys]),
                pa.array([shard.name] * n),
                pa.array(keys),
                pa.array([hashlib.sha256(sample["png"]).hexdigest() for sample in samples]),
                *([pa.array([8] * n, pa.int32())] * 2),
                pa.FixedSizeListArray.from_arrays(pa.array(unit.ravel()), unit.shape[1]),
            ],
            schema=embedding_schema(unit.shape[1], "float32"),
        )
        told = Commit(shard.name, part_name(shard), n, 0, 0, "", content_hash(rows), "float32")
        table.parts.commit(told, rows, QUARANTINE.empty_table())


def table_of(folder: Path, embedding: np.ndarray, parts: int) -> tuple[PartedTable, dict[str, int]]:
    """An embedding table of these rows in so many parts, and the rows of each part."""
    table, rows = PartedTable(locate(str(folder))), {}
    for i, block in enumerate(np.array_split(embedding.astype(np.float32), parts)):
        write_rows(table, f"p{i}", block)
        rows[f"p{i}"] = len(block)
    return table, rows


def write_signals(config: Config) -> Pool:
    """Made-up signals of an embedded pool where a run would write its own, quicker than by
    training; the pool with all columns."""
    table = pool_table(config)
    parts = filled(table.snapshot())
    rows = pa.concat_tables([read_table(table.parts.part(p), ["uid", "embedding"]) for p in parts])
    pool = pool_with_signals(matrix(rows["embedding"]), uid_words(rows["uid"]))
    facts = {"parts": parts, "classes": CLASSES, "count": 3}
    for signal, module in SIGNALS.items():
        stage, first = module.stage_of(config)[0], 0
        for part, n in parts.items():
            columns = {"uid": rows["uid"].slice(first, n)}
            for name, column in pool.columns.items():
                if name.startswith(f"{signal}."):
                    columns[name.partition(".")[2]] = _column(column[first : first + n])
            write_table(stage.folder / f"part-{part}.parquet", pa.table(columns))
            first += n
        stage.finish(facts)
    return pool


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
