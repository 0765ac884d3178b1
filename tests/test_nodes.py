"""Clusters of several real nodes: how many there are, and which of them die, changes nothing but
the time."""

import json
import time
import urllib.request

import pytest
from chains import (
    CHAIN,
    SHARDS,
    committed,
    configuration,
    draws_kept,
    pool_of,
    results,
    soak,
    undisturbed,
)
from prometheus_client.parser import text_string_to_metric_families
from ray_head import free_port
from raylets import nodes

from coreset_ray.config import load
from coreset_ray.distributed.metrics import COUNTERS
from pipelines import run

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of killed nodes
DRAWS = 2_000_000  # enough to be killed in


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return pool_of(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def short(tmp_path_factory, pool):
    return undisturbed(tmp_path_factory.mktemp("short"), pool, 3000)


@pytest.fixture(scope="module")
def long(tmp_path_factory, pool):
    return undisturbed(tmp_path_factory.mktemp("long"), pool, DRAWS)


def test_a_small_chain_is_the_same_on_two_nodes_one_of_which_dies(ray_local, tmp_path):
    """The short form of all below."""
    few = pool_of(tmp_path, shards=4, each=15)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    run.run(load(configuration(tmp_path / "here", few, 3000)))
    config, work = configuration(tmp_path / "there", few, 3000), tmp_path / "there" / "work"
    soon = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000}  # a death is noticed
    with nodes(2, _system_config=soon) as two:
        driver = two.drive("run", config)
        driver.until(lambda: committed(work) >= 1)
        assert committed(work) < 4, "the kill comes too late to test anything"
        two.kill(two.others[0])
        driver.ends()
    assert results(tmp_path / "there") == (found := results(tmp_path / "here"))
    assert len(found) == 4 + 4 + 1 and any("manifest" in name for name in found)


@pytest.mark.slow
def test_three_nodes_give_the_bits_of_one(pool, short, tmp_path):
    assert any("manifest" in name for name in short) and len(short) > 5 * SHARDS
    with nodes(3) as three:
        for command in CHAIN:
            three.drive(command, configuration(tmp_path, pool, 3000)).ends()
    assert results(tmp_path) == short


MID = {
    "embed": (lambda work: committed(work) >= 3, lambda work: committed(work) == SHARDS),
    "cluster": (
        lambda work: any(work.glob("signals/knn*/done.json")),
        lambda work: any(work.glob("signals/clusters*/done.json")),
    ),
    "score": (
        lambda work: draws_kept(work) >= 1,
        lambda work: any(work.glob("scores/*/done.json")),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", MID)
def test_a_node_that_dies_in_mid_stage_changes_nothing(stage, pool, long, tmp_path):
    begun, over = MID[stage]
    config, work = configuration(tmp_path, pool, DRAWS), tmp_path / "work"
    with nodes(3) as three:
        for of, command in zip(MID, CHAIN, strict=True):
            driver = three.drive(command, config)
            if of == stage:
                driver.until(lambda: begun(work))
                assert not over(work), "the kill comes too late to test anything"
                three.kill(three.others[0])
            driver.ends()
    assert results(tmp_path) == long


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_up_its_draws_where_it_was(pool, long, tmp_path):
    """On a cluster that stays: what was kept is not drawn again."""
    config, work = configuration(tmp_path, pool, DRAWS), tmp_path / "work"
    with nodes(3) as three:
        for command in CHAIN[:2]:
            three.drive(command, config).ends()
        driver = three.drive("run", config)
        driver.until(lambda: draws_kept(work) >= 1)
        driver.kill()
        time.sleep(1)
        kept = {p: p.stat().st_mtime_ns for p in work.glob("sums/*/*.json")}
        parts = {p: p.stat().st_mtime_ns for p in work.glob("embeddings/*/parts/*")}
        assert kept and not any(work.glob("scores/*/done.json"))
        again = three.drive("run", config)
        again.until(lambda: any(work.glob("scores/*/done.json")))
        for path, at in parts.items():
            assert path.stat().st_mtime_ns == at, "nothing is embedded twice"
        again.ends()
    assert results(tmp_path) == long


@pytest.mark.slow
def test_a_soak_ends_with_the_bits_of_an_undisturbed_run(pool, short, tmp_path):
    """The short form of benchmarks/soak.py."""
    told = soak(tmp_path, pool, short, draws=3000, seconds=60, every=10, seed=1)
    assert sum(told.kills.values()) >= 3 and told.chains >= 1


@pytest.mark.slow
def test_the_last_figures_are_out_when_a_driver_has_ended(pool, tmp_path):
    """At the endpoint of its node: exactly what its summary says."""
    port = free_port()
    with nodes(1, metrics_export_port=port) as one:
        one.drive(CHAIN[0], configuration(tmp_path, pool, 3000)).ends()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_coreset_") and family.type == "counter":
                found[sample.name, sample.labels.get("phase", "")] = sample.value
    (summary,) = (tmp_path / "work").glob("runs/*/summary.json")
    (stage,) = json.loads(summary.read_text())["stages"]
    expected = {
        (f"ray_{metric.name}_total", metric.phase): stage["amounts"][metric.amount]
        for metric in COUNTERS
        if metric.amount in stage["amounts"]
    }
    assert len(expected) >= 6 and found == pytest.approx(expected, abs=0.001)
