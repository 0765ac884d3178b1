"""The end of a run: what limited each stage, judged on made-up numbers; its words and its file."""

import json
import re
import signal
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coreset_ray import cli
from coreset_ray.io.filesystem import Location
from coreset_ray.telemetry.limits import judge
from coreset_ray.telemetry.run import as_stage, count, finished_before, peak, recording
from coreset_ray.telemetry.summary import in_words, peak_memory, summary
from coreset_ray.version import __version__
from pipelines import embed
from pipelines.summary import write_summary

quick = settings(max_examples=200, deadline=None, database=None)
seconds = st.floats(0.01, 1e5)
LIMITS = {"encoder", "store", "decode", "draws", "layout", "start"}


def embedding(encode, wait=0.0, hand_over=0.0, read=0.0, decode=0.0, encoders=1, flow=None):
    """Amounts of an embedding whose encoders were up all the time, unless `flow` says more."""
    up = (encode + wait + hand_over) / encoders
    return {
        **{"encode": encode, "wait": wait, "hand_over": hand_over, "read": read},
        **{"decode": decode, "encoders": encoders, "flow": up if flow is None else flow},
    }


def share_of(text, before):
    return int(re.search(rf"{before} (\d+)%", text)[1]) / 100


# --- what limited an embedding -----------------------------------------------------------------


@quick
@given(life=seconds, busy=st.floats(0.801, 1.0), encoders=st.integers(1, 64), up=st.floats(0.11, 1))
def test_encoders_that_encode_most_of_the_time_are_the_limit(life, busy, encoders, up):
    rest = life * (1 - busy)
    amounts = embedding(life * busy, rest / 2, rest / 2, 5 * life, 5 * life, encoders)
    amounts["flow"] /= up
    verdict = judge(amounts)
    assert verdict.limit == "encoder"
    assert share_of(verdict.because, "encoded") == pytest.approx(busy, abs=0.006)


@quick
@given(
    busy=st.floats(0.01, 0.79),
    least=st.floats(0.51, 1.0),
    life=seconds,
    readers=seconds,
    encoders=st.integers(1, 64),
)
def test_encoders_that_wait_for_the_writer_are_held_up_by_the_store(
    busy, least, life, readers, encoders
):
    rest = life * (1 - busy)
    amounts = embedding(life * busy, rest * (1 - least), rest * least, readers, readers, encoders)
    verdict = judge(amounts)
    assert verdict.limit == "store"
    assert verdict.because.endswith("for parts to be written")
    assert share_of(verdict.because, "waited") == pytest.approx(rest * least / life, abs=0.006)


@quick
@given(
    busy=st.floats(0.01, 0.79),
    life=seconds,
    reading=st.floats(0.01, 0.99),
    worked=st.floats(0.26, 10.0),
    encoders=st.integers(1, 64),
)
def test_encoders_that_wait_for_images_are_held_up_by_what_readers_do_most(
    busy, life, reading, worked, encoders
):
    assume(abs(reading - 0.5) > 0.001)
    wait = life * (1 - busy)
    worked *= wait / encoders
    amounts = embedding(life * busy, wait, 0.0, worked * reading, worked * (1 - reading), encoders)
    verdict = judge(amounts)
    assert verdict.limit == ("store" if reading > 0.5 else "decode")
    assert share_of(verdict.because, "reading took") == pytest.approx(reading, abs=0.006)


@quick
@given(
    busy=st.floats(0.01, 0.79), life=seconds, worked=st.floats(0, 0.24), encoders=st.integers(1, 64)
)
def test_readers_that_hardly_worked_while_encoders_waited_were_starting(
    busy, life, worked, encoders
):
    wait = life * (1 - busy)
    worked *= wait / encoders
    verdict = judge(embedding(life * busy, wait, 0.0, worked, 0.0, encoders))
    assert verdict.limit == "start" and "while readers were starting" in verdict.because


@quick
@given(
    parts=st.tuples(seconds, seconds, seconds, seconds, seconds),
    up=st.floats(0.001, 0.099),
    encoders=st.integers(1, 64),
)
def test_encoders_that_were_hardly_up_were_starting_whatever_they_did_then(parts, up, encoders):
    amounts = embedding(*parts, encoders)
    amounts["flow"] /= up
    verdict = judge(amounts)
    assert verdict.limit == "start"
    assert verdict.because.startswith("once started, encoders encoded")


@quick
@given(parts=st.tuples(seconds, seconds, seconds, seconds, seconds), up=st.floats(0.11, 1.5))
def test_that_encoders_were_up_less_than_half_the_time_is_said(parts, up):
    assume(abs(up - 0.5) > 0.001)
    amounts = embedding(*parts)
    amounts["flow"] /= up
    verdict = judge(amounts)
    assert ("once started" in verdict.because) == (up < 0.5)
    if up < 0.5:
        life = sum(parts[:3])
        assert f"they were up for {life:.1f} of {amounts['flow']:.1f} s" in verdict.because


@quick
@given(
    parts=st.tuples(seconds, seconds, seconds, seconds, seconds, seconds),
    encoders=st.integers(1, 64),
    power=st.integers(-6, 6),
)
def test_a_run_that_is_slower_in_all_it_does_has_the_same_limit(parts, encoders, power):
    amounts = embedding(*parts[:5], encoders, flow=parts[5])
    slower = {k: v if k == "encoders" else v * 2.0**power for k, v in amounts.items()}
    first = judge(amounts)
    assert first.limit == judge(slower).limit in LIMITS - {"draws", "layout"}


@quick
@given(encode=seconds)
def test_amounts_that_were_not_told_are_none(encode):
    assert judge({"encode": encode}).limit == "encoder"
    assert judge({"encode": encode, "wait": 100 * encode}).limit == "start"
    assert judge({"encode": encode, "wait": 9 * encode, "decode": 9 * encode}).limit == "decode"


# --- what limited the draws --------------------------------------------------------------------


@quick
@given(draw=seconds, layout=seconds, write=seconds, finish=seconds, replicas=st.integers(1, 64))
def test_scoring_is_limited_by_the_longest_of_its_parts(draw, layout, write, finish, replicas):
    amounts = {"draw": draw * replicas, "layout": layout, "write": write, "finish": finish}
    parts = {"draws": draw, "layout": layout, "store": write + finish}
    largest, second = sorted(parts.values())[:0:-1]
    assume(largest > 1.001 * second)
    verdict = judge(amounts | {"replicas": replicas})
    assert parts[verdict.limit] == largest
    told = [float(x) for x in re.findall(r"([\d.]+) s", verdict.because)]
    assert told == pytest.approx([*parts.values()], abs=0.06)


@pytest.mark.parametrize(
    "amounts", [{}, {"images": 5, "bytes": 7}, {"encode": 0.0, "draw": 0.0}, {"layout": 3.0}]
)
def test_where_nothing_tells_no_limit_is_named(amounts):
    assert judge(amounts) is None


# --- the record of a run -----------------------------------------------------------------------


def a_run(seconds=(10.0, 40.0)):
    """A run of an embedding and a scoring that took so long, and of a stage with nothing to do."""
    with recording("run") as run:
        with as_stage("embed"):
            count(images=1000, bytes=2_000_000, start=1.5, encoders=2, flow=10.0)
            count(encode=18.0, wait=1.0, hand_over=1.0, read=2.0, decode=4.0, write=1.0)
            peak(encoder_memory=1_500_000_000)
        with as_stage("score"):
            count(draws=4000, scanned=8_000_000, draw=80.0, replicas=2, layout=3.0)
            with as_stage("layout"):
                pass
        with as_stage("select"):
            finished_before()
    for record, took in zip(run.stages.values(), (*seconds, 2.5, 0.0), strict=False):
        record.seconds = took
    run.stages["score",].seconds, run.stages["score", "layout"].seconds = seconds[1], 2.5
    return run


def test_the_record_holds_what_was_counted_in_the_order_of_the_stages():
    run = a_run()
    told = summary(run)
    assert json.loads(json.dumps(told)) == told
    assert (told["run"], told["command"], told["status"]) == (run.id, "run", "finished")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["started"])
    paths = [["embed"], ["score"], ["score", "layout"], ["select"]]
    assert [s["path"] for s in told["stages"]] == paths
    first, second, inner, last = told["stages"]
    assert first["amounts"]["images"] == 1000 and first["amounts"]["encode"] == 18.0
    assert first["peaks"] == {"encoder_memory": 1_500_000_000}
    assert (first["limited_by"], second["limited_by"]) == ("encoder", "draws")
    assert (inner["limited_by"], last["limited_by"], last["because"]) == (None, None, None)
    assert [s["worked"] for s in told["stages"]] == [True, True, True, False]


def test_a_stage_that_is_entered_again_later_stands_behind_the_one_it_lies_in():
    with recording("run") as run:
        for name in ("a", "b", "a"):
            with as_stage(name), as_stage(f"in {name}"):
                pass
    names = [s["stage"] for s in summary(run)["stages"]]
    assert names == ["a", "in a", "b", "in b"]
    assert [s["calls"] for s in summary(run)["stages"]] == [2, 2, 1, 1]


def test_the_memory_of_the_driver_is_in_bytes():
    held = bytearray(64 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    assert len(held) < peak_memory() < 1 << 40


# --- its words ---------------------------------------------------------------------------------


def test_the_words_say_where_the_time_went_and_what_limited_each_stage():
    told = summary(a_run()) | {"seconds": 60.0, "run": "5c1f"}
    text = in_words(told)
    assert max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    assert lines[0].startswith("Run 5c1f finished in 60.0 s; the driver held ")
    plain = " ".join(text.split())
    assert "embed 10.0 s 1,000 images, 100/s; 2.0 MB read, 200 kB/s. The first after 1.5 s" in plain
    assert "reading 8%, decoding 16%, encoding 72%, writing 4%" in plain  # of 25 seconds
    assert "Limited by the encoder: encoders encoded 90% of their time" in plain
    assert "An encoder held 1.5 GB at most" in plain
    assert "score 40.0 s 4,000 draws, 100/s, 200 kB/s of columns. Limited by the draws" in plain
    assert "Of which layout 2.5 s" in plain
    assert re.search(r"^  select +0\.0 s  Finished before$", text, re.M)
    assert re.search(r"^  rest +10\.0 s  starting, and between the stages$", lines[-1])


@quick
@given(
    parts=st.lists(st.tuples(seconds, seconds, seconds, seconds, seconds), min_size=1, max_size=4)
)
def test_the_stages_and_the_rest_add_up_to_the_run(parts):
    with recording("run") as run:
        for i, part in enumerate(parts):
            with as_stage(f"stage-{i}"):
                count(**embedding(*part), images=3)
    for record, part in zip(run.stages.values(), parts, strict=True):
        record.seconds = part[0]
    told = summary(run)
    whole = sum(s["seconds"] for s in told["stages"]) + 3.0
    text = in_words(told | {"seconds": whole})
    found = re.findall(r"^  \S+ +([\d.]+) s", text, re.M)
    assert len(found) == len(parts) + 1
    assert sum(map(float, found)) == pytest.approx(whole, abs=0.051 * (len(found) + 1))
    assert max(map(len, text.splitlines())) <= 100


def test_a_run_that_found_everything_done_says_so():
    with recording("run") as run:
        for name in ("embed", "score"):
            with as_stage(name):
                finished_before()
    assert in_words(summary(run)).endswith("Every stage was finished before.")
    with recording("run") as run:
        pass
    assert in_words(summary(run)).endswith("No stage was begun.")


def test_a_run_that_failed_names_the_stage_and_never_says_that_nothing_is_new():
    with recording("run") as run, pytest.raises(KeyError), as_stage("embed"):
        raise KeyError("x")
    text = in_words(summary(run, "failed"))
    assert " failed in " in text and "No stage" not in text
    assert re.search(r"^  embed +0\.0 s  Failed$", text, re.M)


# --- its file ----------------------------------------------------------------------------------


def placed(folder):
    """As much of a configuration as says where the workspace lies."""
    storage = SimpleNamespace(options=lambda: {})
    return SimpleNamespace(workspace=str(folder), storage=storage)


def test_the_file_holds_the_record_and_the_words_are_of_it(tmp_path, caplog):
    run = a_run()
    with caplog.at_level("INFO", "pipelines.summary"):
        words = write_summary(placed(tmp_path), run, "finished")
    place = tmp_path / "runs" / run.id / "summary.json"
    told = json.loads(place.read_text())
    assert told["version"] == __version__ and told["run"] == run.id
    assert told == json.loads(json.dumps(caplog.records[-1].summary))
    assert str(place) in caplog.records[-1].getMessage()
    assert words == in_words(told)


@pytest.mark.parametrize("error", [OSError("the store is gone"), ValueError("no such store")])
def test_a_store_that_fails_takes_nothing_from_a_run(tmp_path, monkeypatch, caplog, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(Location, "write_json", refuse)
    run = a_run()
    words = write_summary(placed(tmp_path), run, "finished")
    assert "Limited by the encoder" in " ".join(words.split())
    assert caplog.messages == [f"the summary of run {run.id} was not kept: {error}"]
    assert caplog.records[0].levelname == "WARNING"


def embed_command(tmp_path, monkeypatch, act, *words):
    """`coreset-ray embed` with this in the place of the stage: exit status, and its summary."""
    settings_ = {
        "workspace": str(tmp_path / "work"),
        "pool": {"shards": str(tmp_path)},
        "embed": {"encoders": [{"name": "timm:test_vit"}]},
        "select": {"budget": 5},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings_))
    monkeypatch.setattr(embed, "run", act)
    monkeypatch.setenv("CORESET_RUN_ID", "the-run")
    code = 0
    try:
        cli.main(["embed", str(tmp_path / "run.yaml"), *words])
    except SystemExit as end:
        code = end.code
    place = tmp_path / "work/runs/the-run/summary.json"
    return code, json.loads(place.read_text()) if place.exists() else None


def within(error=None):
    """A stage that counts and then ends so."""

    def act(config):
        with as_stage("embed"):
            count(images=7)
            if callable(error):
                error()
            elif error is not None:
                raise error
        return {}

    return act


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (None, 0, "finished"),
        (RuntimeError("broke"), 1, "failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (lambda: signal.raise_signal(signal.SIGTERM), 143, "interrupted"),
    ],
)
def test_a_command_keeps_its_summary_however_it_ends(
    tmp_path, monkeypatch, capsys, error, code, status
):
    found, told = embed_command(tmp_path, monkeypatch, within(error))
    assert found == code
    assert (told["run"], told["command"], told["status"]) == ("the-run", "embed", status)
    (stage,) = told["stages"]
    assert (stage["stage"], stage["amounts"], stage["worked"]) == ("embed", {"images": 7}, not code)
    assert ("Run the-run finished in" in capsys.readouterr().out) == (not code)


def test_a_wrong_setting_that_shows_before_any_stage_leaves_no_summary(tmp_path, monkeypatch):
    def refuse(config):
        raise ValueError("pool: no such folder")

    assert embed_command(tmp_path, monkeypatch, refuse) == (2, None)
    assert embed_command(tmp_path, monkeypatch, within(ValueError("wrong"))) == (2, None)


def test_with_json_the_summary_is_a_line_of_the_log_and_nothing_is_printed(
    tmp_path, monkeypatch, capsys
):
    code, told = embed_command(tmp_path, monkeypatch, within(), "--log-format", "json")
    out, err = capsys.readouterr()
    assert (code, out) == (0, "")
    (line,) = [x for x in map(json.loads, err.splitlines()) if "summary" in x]
    assert line["summary"] == told and line["run"] == "the-run"
