"""What a run counts, in its record and at Ray's endpoint: each thing once, and never at the cost of
the run."""

import logging
import time
import urllib.request
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import digits_pool, write_config

from coreset_ray.config import load
from coreset_ray.distributed import metrics, progress
from coreset_ray.distributed.metrics import COUNTERS, PROGRESS, ProgressGauge, Totals, add, timed
from coreset_ray.telemetry.run import as_stage, recording
from pipelines import embed

NAMES = ("images", "bytes", "read", "encode", "other")
amounts_ = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 1000))


class Endpoint:
    """Stands for Ray's: what each series was raised by, or set to."""

    def __init__(self):
        self.raised, self.set_to, self.made, self.broken = Counter(), {}, [], False
        self.tags, self.tries = [], 0

    def _series(self, kind, name, meaning, keys):
        self.tries += 1
        if self.broken:
            raise OSError("the agent is gone")
        self.made.append((name, kind))
        endpoint = self

        def check(tags):
            assert tags.keys() == set(keys), "Ray refuses tags that were not declared"
            endpoint.tags.append(tags)

        def inc(amount, tags):
            assert amount > 0, "Ray refuses to count nothing"
            check(tags)
            endpoint.raised[name, tags.get("phase", "")] += amount

        def put(value, tags):
            check(tags)
            endpoint.set_to.setdefault(name, []).append((value, tags))

        return SimpleNamespace(inc=inc, set=put)


@pytest.fixture
def endpoint(monkeypatch):
    """In the place of Ray's own metrics, with Ray at hand as it seems."""
    made = Endpoint()
    kinds = {
        kind: lambda *given, kind=kind: made._series(kind, *given) for kind in ("Counter", "Gauge")
    }
    monkeypatch.setattr(metrics, "metrics", SimpleNamespace(**kinds))
    monkeypatch.setattr(metrics.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(metrics, "_made", {})
    monkeypatch.setattr(metrics, "_failed", False)
    return made


# --- add and timed -----------------------------------------------------------------------------


def test_amounts_are_counted_in_the_stage_and_at_the_endpoint(endpoint):
    with recording("run") as run, as_stage("embed"):
        add(images=3, decode=0.5, layout=2.0)
        add(images=4, decode=0.25, quarantined=0)
    counted = run.stages[("embed",)].amounts
    assert counted == {"images": 7, "decode": 0.75, "layout": 2.0, "quarantined": 0}
    assert endpoint.raised == {
        ("coreset_images_embedded", ""): 7,
        ("coreset_stage_seconds", "decode"): 0.75,
    }
    assert all((t["stage"], t["run"]) == ("embed", run.id) for t in endpoint.tags)


def test_each_metric_is_made_once_and_counts_an_amount_of_its_own(endpoint):
    for _ in range(2):
        with recording("run"), as_stage("embed"):
            add(**{metric.amount: 2.0 for metric in COUNTERS})
    assert endpoint.raised == {(m.name, m.phase): 4.0 for m in COUNTERS}
    names = [name for name, _ in endpoint.made]
    assert len(names) == len(set(names)) == len({m.name for m in COUNTERS})
    assert {kind for _, kind in endpoint.made} == {"Counter"}


def test_without_ray_amounts_are_counted_all_the_same(endpoint, monkeypatch):
    monkeypatch.setattr(metrics.ray, "is_initialized", lambda: False)
    with recording("run") as run, as_stage("embed"):
        add(images=3)
    assert run.stages[("embed",)].amounts == {"images": 3}
    assert not endpoint.made and not endpoint.raised


def test_a_block_is_timed_even_if_it_fails(endpoint, monkeypatch):
    clock = iter([100.0, 103.0, 200.0, 204.5])
    with recording("run") as run, as_stage("score"):
        before = run.stages.setdefault(("score",), None)
        monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        with timed("write"):
            pass
        with pytest.raises(KeyError), timed("write"):
            raise KeyError("x")
    assert before.amounts == {"write": 7.5}
    assert endpoint.raised == {("coreset_stage_seconds", "write"): 7.5}


def test_a_metric_that_fails_is_told_once_and_fails_nothing(endpoint, caplog):
    endpoint.broken = True
    with recording("run") as run, as_stage("embed"):
        for _ in range(3):
            add(images=5, bytes=10)
    assert run.stages[("embed",)].amounts == {"images": 15, "bytes": 30}
    assert caplog.messages == ["metrics are not reported: OSError: the agent is gone"]
    assert endpoint.tries > 1, "it may come back"
    endpoint.broken = False
    add(images=2)
    assert endpoint.raised == {("coreset_images_embedded", ""): 2}


# --- totals ------------------------------------------------------------------------------------


@given(
    told=st.lists(st.tuples(st.sampled_from("abc"), amounts_), max_size=12),
    repeat=st.integers(1, 3),
)
@settings(max_examples=100, deadline=None, database=None)
def test_totals_are_counted_once_however_often_they_are_told(told, repeat):
    """Each source's totals grow; what was counted is the sum of the last of each."""
    last = {name: Counter() for name in "abc"}
    totals = Totals()
    with recording("run") as run, as_stage("embed"):
        for source, more in told:
            last[source] = last[source] + Counter(more)
            for _ in range(repeat):
                totals.tell(source, dict(last[source]))
            whole = sum(last.values(), Counter())
            assert +run.stages[("embed",)].amounts == whole


@given(st.lists(amounts_, max_size=12))
@settings(max_examples=100, deadline=None, database=None)
def test_what_is_reached_is_the_most_that_was_told(told):
    """A total may fall where a process was lost; what it counted is not taken back."""
    totals, most = Totals(), Counter()
    with recording("run") as run, as_stage("embed"):
        for each in told:
            totals.reach(each)
            most |= Counter(each)
    counted = run.stages[("embed",)].amounts if told else Counter()
    assert +counted == most


def test_a_source_that_is_lost_stays_counted_and_its_work_done_again_counts_again():
    totals = Totals()
    with recording("run") as run, as_stage("embed"):
        totals.tell("first", {"bytes": 10, "images": 4})
        totals.tell("second", {"bytes": 3})  # the same writer, after it was lost
        totals.tell("second", {"bytes": 5, "images": 1})
    assert run.stages[("embed",)].amounts == {"bytes": 15, "images": 5}


def test_what_is_committed_counts_where_its_writer_could_not_say_so():
    totals = Totals()
    with recording("run") as run, as_stage("embed"):
        totals.tell("writer", {"images": 4})
        totals.reach({"images": 6, "quarantined": 1})
        totals.reach({"images": 6, "quarantined": 1})
    assert run.stages[("embed",)].amounts == {"images": 6, "quarantined": 1}


# --- the gauge ---------------------------------------------------------------------------------


def test_a_line_of_progress_foretells_nothing_before_anything_is_done(monkeypatch, caplog) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO, logger="coreset_ray.progress")
    with recording("run"), progress.Progress("embed", 4, "shards") as told:
        told.update(0, "0 images")
        told.update(2)
    first, second = caplog.messages
    assert first == "embed: 0 of 4 shards, 0 images, 0 s spent"
    assert second == "embed: 2 of 4 shards, 0 s spent, 0 s left"


def test_the_gauge_shows_how_far_a_stage_is_again_and_again_and_at_its_end(endpoint, monkeypatch):
    monkeypatch.setattr(metrics, "_REFRESH", 0.001)
    with recording("run") as run, ProgressGauge("embed") as gauge:
        gauge.share = 0.25
        deadline = time.monotonic() + 30
        while len(endpoint.set_to.get(PROGRESS.name, ())) < 3:
            assert time.monotonic() < deadline, "it is not shown again"
            time.sleep(0.001)
        gauge.share = 1.0
    shown = endpoint.set_to[PROGRESS.name]
    assert shown[-1][0] == 1.0 and {0.25} <= {value for value, _ in shown} <= {0.0, 0.25, 1.0}
    assert all(tags == {"stage": "embed", "run": run.id} for _, tags in shown)
    assert not gauge._thread.is_alive()


def test_a_gauge_that_fails_fails_nothing(endpoint, caplog):
    endpoint.broken = True
    with recording("run"), ProgressGauge("embed"):
        pass
    assert caplog.messages == ["metrics are not reported: OSError: the agent is gone"]


# --- an embedding ------------------------------------------------------------------------------

SHARDS, EACH = 2, 6


def small(folder):
    """A pool with one image that is none, which was not embedded yet."""
    train, _ = digits_pool(folder, shards=SHARDS, each=EACH)
    first = sorted(train.glob("*.tar"))[0]
    whole = bytearray(first.read_bytes())
    at = whole.index(b"\x89PNG")
    whole[at : at + 4] = b"none"
    first.write_bytes(whole)
    overrides = ["compute.encoders=1", "compute.batch_size=3", "embed.max_bad=0.5"]
    return train, load(write_config(folder, train), overrides)


def test_an_embedding_counts_what_it_committed(ray_local, tmp_path, endpoint):
    train, config = small(tmp_path)
    with recording("embed") as run:
        snapshot = embed.run(config)
    counted, peaks = run.stages[("embed",)].amounts, run.stages[("embed",)].peaks
    assert (snapshot["rows"], snapshot["quarantined"]) == (SHARDS * EACH - 1, 1)
    assert (counted["images"], counted["quarantined"]) == (snapshot["rows"], 1)
    size = sum(path.stat().st_size for path in train.glob("*.tar"))
    assert 0.5 * size < counted["bytes"] <= size, "a tar file may be read up to its end mark"
    assert counted["encoders"] == 1
    assert all(counted[name] > 0 for name in ("read", "decode", "encode", "write", "flow"))
    assert peaks["encoder_memory"] > 50 << 20
    for metric in COUNTERS:
        assert endpoint.raised[metric.name, metric.phase] == pytest.approx(
            counted.get(metric.amount, 0)
        ), metric
    assert endpoint.set_to[PROGRESS.name][-1][0] == 1.0

    before = endpoint.raised.copy()
    with recording("embed") as run:
        assert embed.run(config) == snapshot
    assert endpoint.raised == before, "what was done before is not counted again"
    assert not run.worked and not run.stages[("embed",)].amounts


@pytest.mark.slow
def test_an_embedding_whose_metrics_fail_is_an_embedding(ray_local, tmp_path, endpoint, caplog):
    _, config = small(tmp_path)
    endpoint.broken = True
    with recording("embed") as run:
        snapshot = embed.run(config)
    assert run.stages[("embed",)].amounts["images"] == snapshot["rows"] == SHARDS * EACH - 1
    assert sum("metrics are not reported" in message for message in caplog.messages) == 1


@pytest.mark.slow
def test_the_endpoint_of_a_node_shows_what_was_counted(ray_local):
    """Ray sends metrics on at an interval, by default of ten seconds."""
    with recording("embed") as run, as_stage("embed"):
        add(images=41, decode=1.5)
        add(images=1)
        run_id = run.id
    wanted = {
        "ray_coreset_images_embedded_total": 42.0,
        "ray_coreset_stage_seconds_total": 1.5,
    }
    (node,) = [n for n in metrics.ray.nodes() if n["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found, deadline = {}, time.monotonic() + 60
    while found != wanted and time.monotonic() < deadline:
        time.sleep(1.0)
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
        ours = [x for x in text.splitlines() if f'run="{run_id}"' in x or f'"{run_id}"' in x]
        found = {x.partition("{")[0]: float(x.rpartition(" ")[2]) for x in ours}
    assert found == wanted
    assert all('stage="embed"' in line.lower() for line in ours)
