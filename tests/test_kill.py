"""A driver killed in mid-run, and the same command again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pools import digits_pool, write_config

from coreset_ray.config import load
from pipelines.inputs import pool_table

SHARDS, EACH = 24, 25


def embed(config: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "coreset_ray.cli", "embed", str(config), *overrides]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def commits(parts: Path) -> dict[str, dict]:
    return {p.name: json.loads(p.read_text()) for p in parts.glob("*.done.json")}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The parts folder after a SIGKILL in mid-embed, and the configuration."""
    folder = tmp_path_factory.mktemp("killed")
    train, _ = digits_pool(folder, shards=SHARDS, each=EACH)
    config = write_config(folder, train)
    parts = Path(pool_table(load(config)).parts.folder.path) / "parts"
    driver = embed(config)
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.done.json"))) < 3:
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < deadline, "no shard was committed in two minutes"
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stderr.close()
    time.sleep(2)  # what Ray had under way dies with the driver
    return config, parts


@pytest.mark.slow
def test_what_was_committed_is_whole_and_the_rest_is_redone(killed, tmp_path):
    config, parts = killed
    before = commits(parts)
    assert 3 <= len(before) < SHARDS, "the kill came too late to test anything"
    for name, record in before.items():
        part = parts / name.replace(".done.json", ".parquet")
        assert pq.read_table(part).num_rows == record["rows"] == EACH
    times = {name: (parts / name).stat().st_mtime_ns for name in before}

    again = embed(config)
    _, log = again.communicate(timeout=180)
    assert again.returncode == 0, log
    assert f"{SHARDS} shards ({SHARDS - len(before)} new)" in log
    after = commits(parts)
    assert len(after) == SHARDS
    assert {name: (parts / name).stat().st_mtime_ns for name in before} == times

    whole = embed(config, f"workspace={tmp_path}")
    _, log = whole.communicate(timeout=180)
    assert whole.returncode == 0, log
    undisturbed = commits(tmp_path / parts.relative_to(load(config).workspace))
    assert {n: r["content"] for n, r in after.items()} == {
        n: r["content"] for n, r in undisturbed.items()
    }
