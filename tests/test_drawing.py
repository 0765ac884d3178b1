"""Draws on real Ray processes that are killed: the same bits, and nothing drawn twice."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
from pools import table_of

from coreset_ray.core import pace
from coreset_ray.core.columns import columns_of
from coreset_ray.core.pool import Pool
from coreset_ray.core.run import empty_total
from coreset_ray.distributed import draw
from coreset_ray.distributed.score import Layout, score_draws
from coreset_ray.io.filesystem import locate
from coreset_ray.io.ledger import Ledger
from coreset_ray.io.tables import matrix, read_table, uid_words
from coreset_ray.scores.blindcs import BlindCS

ROWS, PARTS = 3000, 5
SLOW = 12_000  # draws of six dimensions, which take seconds


def pool_table(folder: Path):
    rng = np.random.default_rng(0)
    return table_of(folder, rng.normal(size=(ROWS, 20)) * rng.exponential(size=20), PARTS)


def run(
    folder: Path, method: BlindCS, workers: int, shards: int, cpus: float = 0.0, **options
) -> dict:
    table, parts = pool_table(folder / "table")
    layout = Layout(workers, shards, cpus, str(folder / f"layout-{shards}"))
    out = locate(str(folder / f"scores-{method.draws}-{workers}-{shards}"))
    ledger = Ledger(locate(str(folder / "sums")))
    outcome = score_draws(method, 3, table, parts, out, ledger, layout, **options)
    outcome["scores"] = np.concatenate(
        [pq.read_table((out / f"part-{p}.parquet").path)["score"].to_numpy() for p in parts]
    )
    return outcome


def expected(folder: Path, method: BlindCS) -> np.ndarray:
    """Scores by this process, in the order of the parts."""
    table, parts = pool_table(folder / "expected")
    rows = [read_table(table.part(p), ["uid", "embedding"]) for p in parts]
    uid = np.concatenate([uid_words(r["uid"]) for r in rows])
    z = np.concatenate([matrix(r["embedding"]) for r in rows])
    columns = columns_of(Pool(uid, {"embedding": z}))
    total = empty_total(method, columns)
    method.tally(columns, 3, 0, method.draws, total)
    return method.columns(total.sum(axis=0))["score"]


def processes(name: str, of: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in of.children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found


def chunks(outcome: dict) -> list[tuple[int, int]]:
    return [(a, b) for a, b, _ in outcome["chunks"]]


def covered(spans: list[tuple[int, int]]) -> list[int]:
    return sorted(t for a, b in spans for t in range(a, b))


@pytest.mark.slow
def test_raising_draws_goes_on_from_what_is_there(tmp_path, ray_local) -> None:
    few = run(tmp_path, BlindCS(draws=700, neighbors=30), 1, 1)
    assert covered(chunks(few)) == list(range(700))
    more = run(tmp_path, BlindCS(draws=2000, neighbors=30), 2, 2)
    assert set(chunks(few)) <= set(chunks(more)), "draws made before were made again"
    assert covered(chunks(more)) == list(range(2000))
    np.testing.assert_array_equal(
        more["scores"], expected(tmp_path, BlindCS(draws=2000, neighbors=30))
    )
    again = run(tmp_path, BlindCS(draws=2000, neighbors=30), 1, 1)
    assert again["chunks"] == more["chunks"]
    fewer = run(tmp_path, BlindCS(draws=500, neighbors=30), 1, 1)
    np.testing.assert_array_equal(
        fewer["scores"], expected(tmp_path, BlindCS(draws=500, neighbors=30))
    )
    left = os.listdir(tmp_path / "sums")
    assert len([n for n in left if n.endswith(".json")]) == 2, left
    assert not [n for n in left if n.startswith(".")], left


@pytest.mark.parametrize(
    ("workers", "shards"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)]
)
def test_a_worker_killed_in_mid_run_changes_nothing(
    tmp_path, ray_local, monkeypatch, workers, shards
) -> None:
    monkeypatch.setattr(pace, "COMMIT_SECONDS", 0.5)
    monkeypatch.setattr(draw, "_CHUNK_SECONDS", 0.3)
    method = BlindCS(draws=SLOW, dims=6, neighbors=30)
    outcome = {}
    work = threading.Thread(target=lambda: outcome.update(run(tmp_path, method, workers, shards)))
    work.start()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "sums").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    victims = processes("ray::Shard", psutil.Process())
    assert victims and work.is_alive(), "nothing was under way to be killed"
    victims[0].kill()
    work.join(120)
    assert covered(chunks(outcome)) == list(range(SLOW))
    np.testing.assert_array_equal(outcome["scores"], expected(tmp_path, method))


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import ray
from test_drawing import SLOW, run
from coreset_ray.core import pace
from coreset_ray.distributed import draw
from coreset_ray.scores.blindcs import BlindCS
pace.COMMIT_SECONDS, draw._CHUNK_SECONDS = 0.5, 0.3
ray.init({address!r}, log_to_driver=False)
run(Path({folder!r}), BlindCS(draws=SLOW, dims=6, neighbors=30), 2, 1)
"""


def test_a_driver_killed_in_mid_run_goes_on_from_its_sums(tmp_path, ray_local) -> None:
    """A driver of its own; what goes on from it is this process."""
    script, address = tmp_path / "driver.py", ray.get_runtime_context().gcs_address
    told = {"tests": str(Path(__file__).parent), "folder": str(tmp_path), "address": address}
    script.write_text(textwrap.dedent(DRIVER.format(**told)))
    killed = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 90
    while not list((tmp_path / "sums").glob("*.json")):
        assert killed.poll() is None and time.monotonic() < deadline, "nothing was committed"
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    while processes("ray::Shard", psutil.Process()):  # they die with their driver
        assert time.monotonic() < deadline, "a worker outlives its driver"
        time.sleep(0.05)
    kept = Ledger(locate(str(tmp_path / "sums"))).usable(SLOW)
    before = {(c.first, c.last, f"{c.checksum:016x}") for r in kept for c in r.chunks}
    assert before and sum(r.draws for r in kept) < SLOW, "the kill came too late to test anything"

    method = BlindCS(draws=SLOW, dims=6, neighbors=30)
    outcome = run(tmp_path, method, 2, 1)
    assert before <= {tuple(c) for c in outcome["chunks"]}, "committed draws were made again"
    assert covered(chunks(outcome)) == list(range(SLOW))
    np.testing.assert_array_equal(outcome["scores"], expected(tmp_path, method))


@pytest.fixture
def pairs(monkeypatch) -> None:
    """Rows in pairs that coincide: the signal is strong, and few draws show it."""
    rng = np.random.default_rng(1)
    pairs = np.repeat(rng.normal(size=(60, 8)), rng.integers(1, 9, 60), axis=0)
    monkeypatch.setattr("test_drawing.pool_table", lambda folder: table_of(folder, pairs, PARTS))
    monkeypatch.setattr("coreset_ray.distributed.score._FIRST_CHECK", 200)


ENDLESS = BlindCS(draws=1_000_000, neighbors=5)


def test_it_stops_once_stable(tmp_path, ray_local, pairs) -> None:
    outcome = run(tmp_path, ENDLESS, 2, 1, stability=0.5)
    assert outcome["draws"] in [200 * 2**i for i in range(8)]
    assert outcome["stability"]["repeat"]["score"] >= 0.5
    np.testing.assert_array_equal(
        outcome["scores"], expected(tmp_path, BlindCS(draws=outcome["draws"], neighbors=5))
    )


@pytest.mark.slow
def test_row_shards_are_stable_at_the_same_draw(tmp_path, ray_local, pairs) -> None:
    whole, sharded = (
        run(tmp_path / str(shards), ENDLESS, workers, shards, stability=0.5)
        for workers, shards in ((2, 1), (1, 3))
    )
    assert sharded["draws"] == whole["draws"] and sharded["stability"] == whole["stability"]


NODES = """
import json, sys, threading, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import ray
from ray.cluster_utils import Cluster
from test_drawing import SLOW, run
from coreset_ray.core import pace
from coreset_ray.distributed import draw
from coreset_ray.scores.blindcs import BlindCS
pace.COMMIT_SECONDS, draw._CHUNK_SECONDS = 0.5, 0.3
head = {{"num_cpus": 1, "include_dashboard": False}}
cluster = Cluster(initialize_head=True, head_node_args=head)
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
held = set()
def kill():
    while not list(Path({folder!r}, "sums").glob("*.json")):
        time.sleep(0.05)
    held.update(node["NodeID"] for node in ray.nodes() if node["Alive"])
    cluster.remove_node(second, allow_graceful=False)
killer = threading.Thread(target=kill)
killer.start()
outcome = run(Path({folder!r}), BlindCS(draws=SLOW, dims=6, neighbors=30), 2, 1, cpus=1.0)
killer.join()
deadline = time.monotonic() + 60  # Ray may hear late that a node is gone
while len(alive := [node for node in ray.nodes() if node["Alive"]]) > 1:
    assert time.monotonic() < deadline
    time.sleep(0.2)
told = json.dumps([outcome["chunks"], len(held), len(alive)])
Path({folder!r}, "told.json").write_text(told)  # Ray may print at any time
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_killed_in_mid_run_changes_nothing(tmp_path) -> None:
    """Two real raylets; the driver's stays."""
    script = tmp_path / "nodes.py"
    script.write_text(NODES.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-2000:]
    spans, before, after = json.loads((tmp_path / "told.json").read_text())
    assert (before, after) == (2, 1)
    assert covered([(a, b) for a, b, _ in spans]) == list(range(SLOW))
    method = BlindCS(draws=SLOW, dims=6, neighbors=30)
    files = [tmp_path / f"scores-{SLOW}-2-1" / f"part-p{i}.parquet" for i in range(PARTS)]
    scores = np.concatenate([pq.read_table(f)["score"].to_numpy() for f in files])
    np.testing.assert_array_equal(scores, expected(tmp_path, method))
