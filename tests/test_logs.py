"""The log of a run: lines for people and lines of JSON, each with its run and stage, and how the
command line ends."""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset_ray import cli
from coreset_ray.telemetry import logs
from coreset_ray.telemetry.run import (
    as_stage,
    count,
    current,
    finished_before,
    peak,
    recording,
    stage_now,
)

OURS = logging.getLogger("coreset_ray.tests")
FIELDS = {"time", "level", "run", "stage", "logger", "message"}
quick = settings(max_examples=100, deadline=None, database=None)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    """Nothing of whoever runs the tests decides how they log."""
    names = (logs.FORMAT_VARIABLE, "CORESET_RUN_ID", "RAY_JOB_CONFIG_JSON_ENV_VAR")
    for name in (*names, logs._WORKER_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def objects(capsys):
    return [json.loads(line) for line in lines(capsys)]


def a_record(message, **more):
    plain = {"name": "coreset_ray.x", "levelname": "INFO", "levelno": logging.INFO}
    return logging.makeLogRecord(plain | {"msg": message, "run": "r", "stage": "embed"} | more)


# --- the format ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "variable", "chosen"),
    [
        (None, None, "text"),
        (None, "", "text"),
        (None, "json", "json"),
        (None, "text", "text"),
        ("json", None, "json"),
        ("text", "json", "text"),
        ("json", "text", "json"),
    ],
)
def test_the_option_decides_the_format_and_else_the_environment(
    monkeypatch, option, variable, chosen
):
    if variable is not None:
        monkeypatch.setenv("CORESET_LOG", variable)
    assert logs.choose_format(option) == chosen


def test_a_format_that_there_is_not_is_named_with_those_that_there_are(monkeypatch):
    monkeypatch.setenv("CORESET_LOG", "xml")
    with pytest.raises(ValueError, match="CORESET_LOG='xml': expected one of text, json"):
        logs.choose_format(None)


# --- lines for people ------------------------------------------------------------------------


def test_a_line_for_people_has_time_stage_and_message(capsys):
    logs.set_up("text")
    with recording("run"), as_stage("embed"):
        OURS.info("embed: %d shards", 12)
        OURS.warning("embed: a process was lost")
        OURS.info("nothing to strip: embed: stays")
    plain, loud, inside = lines(capsys)
    assert re.fullmatch(r"\d\d:\d\d:\d\d embed  12 shards", plain), "the stage is said once"
    assert re.fullmatch(r"\d\d:\d\d:\d\d embed  warning: a process was lost", loud)
    assert inside.endswith("embed  nothing to strip: embed: stays")


def test_a_line_outside_of_a_stage_names_the_command(capsys):
    logs.set_up("text")
    with recording("select") as run:
        OURS.info("begins")
    (line,) = lines(capsys)
    assert line.endswith(" select  begins")
    assert run.id not in line, "one run, one terminal: its id would be the same on every line"


def test_an_error_for_people_has_its_traceback_below(capsys):
    logs.set_up("text")
    try:
        raise KeyError("gone")
    except KeyError:
        OURS.exception("it failed")
    first, *rest = lines(capsys)
    assert first.endswith("error: it failed")
    assert rest[0].startswith("Traceback") and rest[-1] == "KeyError: 'gone'"


# --- lines of JSON ---------------------------------------------------------------------------


def test_a_json_line_has_the_run_the_stage_and_what_else_was_given(capsys, monkeypatch):
    monkeypatch.setenv("CORESET_RUN_ID", "nightly-7")
    logs.set_up("json")
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    with recording("run"), as_stage("score"), as_stage("draw"):
        OURS.warning("draw: %d draws", 7, extra={"draws": 7, "place": {"uri": "s3://x"}})
    (line,) = objects(capsys)
    when = datetime.fromisoformat(line.pop("time"))
    assert when.utcoffset() == timedelta(0) and before <= when <= datetime.now(UTC)
    assert line == {
        "level": "warning",
        "run": "nightly-7",
        "stage": "draw",
        "logger": "coreset_ray.tests",
        "message": "7 draws",
        "draws": 7,
        "place": {"uri": "s3://x"},
    }


@quick
@given(message=st.text(), value=st.one_of(st.text(), st.integers(), st.lists(st.text())))
def test_whatever_is_said_is_one_line_that_reads_back(message, value):
    line = logs.Json().format(a_record(message, given=value))
    assert "\n" not in line and "\r" not in line
    told = json.loads(line)
    assert told["message"] == message.removeprefix("embed: ")
    assert told["given"] == value
    assert told.keys() == FIELDS | {"given"}


def test_a_field_that_json_does_not_know_is_written_as_its_text():
    told = json.loads(logs.Json().format(a_record("x", error=ValueError("bad"))))
    assert told["error"] == "bad"


def test_a_traceback_stays_within_its_line(capsys):
    logs.set_up("json")
    try:
        raise KeyError("gone")
    except KeyError:
        OURS.exception("it failed")
    (line,) = objects(capsys)
    assert line["level"] == "error" and line["message"] == "it failed"
    assert line["traceback"].splitlines()[-1] == "KeyError: 'gone'"


def test_the_log_tells_whether_it_is_json(capsys):
    logs.set_up("text")
    assert not logs.structured()
    logs.set_up("json")
    assert logs.structured()
    logs.set_up("text")
    assert not logs.structured(), "the last one set up counts alone"
    OURS.info("once")
    assert len(lines(capsys)) == 1


def test_others_are_heard_when_they_warn_and_we_always():
    script = (
        "import logging, warnings\n"
        "from coreset_ray.telemetry import logs\n"
        "logs.set_up('json')\n"
        "for name in ('urllib3', 'coreset_ray.io', 'pipelines.embed'):\n"
        "    logging.getLogger(name).debug('d')\n"
        "    logging.getLogger(name).info('i')\n"
        "    logging.getLogger(name).warning('w')\n"
        "warnings.warn('an old setting')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == ""
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(t["logger"], t["message"]) for t in told[:-1]] == [
        ("urllib3", "w"),
        ("coreset_ray.io", "i"),
        ("coreset_ray.io", "w"),
        ("pipelines.embed", "i"),
        ("pipelines.embed", "w"),
    ]
    assert told[-1]["logger"] == "py.warnings" and "an old setting" in told[-1]["message"]


# --- workers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_worker_logs_as_its_run_does_and_under_its_id(capsys, monkeypatch, form):
    logs.set_up(form)
    with recording("run") as run:
        told = logs.for_workers()
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    logs.set_up_worker()  # in another process, whose own run is another
    assert current().id != run.id
    assert logs.structured() == (form == "json")
    OURS.info("hello")
    (line,) = lines(capsys)
    if form == "json":
        told = json.loads(line)
        assert (told["run"], told["stage"], told["message"]) == (run.id, "worker", "hello")
    else:
        assert line.endswith(f" worker {run.id}  hello"), "lines of many runs meet in Ray's files"


def test_a_process_that_no_run_started_keeps_its_log():
    before = logging.root.handlers[:]
    logs.set_up_worker()
    assert logging.root.handlers == before


# --- the id of a run and its stages ------------------------------------------------------------


@pytest.mark.parametrize("given_id", ["a", "nightly-7", "2026.01.02_x", "a" * 128])
def test_a_run_has_the_id_that_it_is_given(monkeypatch, given_id):
    monkeypatch.setenv("CORESET_RUN_ID", given_id)
    with recording("embed") as run:
        assert run.id == given_id == current().id


@pytest.mark.parametrize("bad", ["", "..", "../up", "a/b", ".hidden", "a b", "é", "a" * 129, "a\n"])
def test_an_id_that_is_no_name_of_a_folder_is_refused(monkeypatch, bad):
    monkeypatch.setenv("CORESET_RUN_ID", bad)
    with pytest.raises(ValueError, match="CORESET_RUN_ID"), recording("embed"):
        pass


def test_a_job_of_ray_has_its_submission_id(monkeypatch):
    name = "RAY_JOB_CONFIG_JSON_ENV_VAR"
    monkeypatch.setenv(name, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    with recording("embed") as run:
        assert run.id == "raysubmit_1"
    monkeypatch.setenv("CORESET_RUN_ID", "mine")
    with recording("embed") as run:
        assert run.id == "mine"


@pytest.mark.parametrize(
    "told",
    ["", "no json", "{}", "[]", "null", '{"metadata": null}', '{"metadata": {}}']
    + [json.dumps({"metadata": {"job_submission_id": bad}}) for bad in (None, 7, "../up")],
)
def test_any_other_run_has_an_id_of_its_own(monkeypatch, told):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", told)
    ids = []
    for _ in range(3):
        with recording("embed") as run:
            ids.append(run.id)
    assert all(re.fullmatch("[0-9a-f]{12}", each) for each in ids) and len(set(ids)) == 3


def test_stages_nest_and_add_up():
    @as_stage("inner")
    def inner(images):
        count(images=images)
        peak(memory=images)
        return stage_now().path

    with recording("run") as run:
        with as_stage("outer"):
            assert inner(3) == ("outer", "inner") and inner(2) == ("outer", "inner")
            count(images=100)
        assert inner(1) == ("inner",)
        count(images=7)
        assert stage_now().name == "run"
    amounts = {path: dict(record.amounts) for path, record in run.stages.items()}
    assert amounts == {
        ("outer",): {"images": 100},
        ("outer", "inner"): {"images": 5},
        ("inner",): {"images": 1},
    }
    assert run.outside.amounts == {"images": 7}
    record = run.stages["outer", "inner"]
    assert (record.calls, record.peaks) == (2, {"memory": 3})
    assert run.stages[("outer",)].seconds >= record.seconds


def test_a_stage_that_failed_or_was_done_did_no_work():
    with recording("run") as run:
        with as_stage("done"):
            finished_before()
        assert not run.worked
        with pytest.raises(KeyError), as_stage("outer"), as_stage("inner"):
            raise KeyError("x")
        assert not run.worked and stage_now() is run.outside
        assert [r.failed for r in run.stages.values()] == [0, 1, 1]
        with as_stage("done"):
            pass
        assert run.worked and run.stages[("done",)].worked


def test_threads_start_outside_of_any_stage_and_count_there():
    with recording("run") as run, as_stage("embed"):
        threads = [
            threading.Thread(target=lambda: [count(n=1) for _ in range(500)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert run.outside.amounts == {"n": 2000} and not run.stages[("embed",)].amounts


def test_a_run_within_a_run_gives_the_first_one_back():
    with recording("a") as outer, as_stage("x"):
        with recording("b") as inner:
            assert current() is inner and stage_now().path == ("b",)
        assert current() is outer and stage_now().path == ("x",)


# --- how a command ends ------------------------------------------------------------------------


def status(monkeypatch, error, *words):
    """The exit status where the command ends so. error: raised, or called."""

    def command(options: argparse.Namespace, run) -> None:
        if isinstance(error, BaseException):
            raise error
        error()

    monkeypatch.setattr(cli, "_list_methods", command)
    try:
        cli.main(["methods", *words])
    except SystemExit as end:
        return end.code
    return 0


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    raise AssertionError("the signal was lost")


ENDS = [
    (lambda: None, 0, ""),
    (RuntimeError("the run broke"), 1, "the run broke"),
    (OSError("the disk broke"), 1, "the disk broke"),
    (ValueError("select.budget: wrong"), 2, "select.budget: wrong"),
    (KeyboardInterrupt(), 130, "interrupted; what was committed is kept"),
    (terminate, 143, "terminated; what was committed is kept"),
]


@pytest.mark.parametrize(("error", "code", "message"), ENDS)
def test_the_exit_status_tells_how_a_command_ended(monkeypatch, capsys, error, code, message):
    assert status(monkeypatch, error) == code
    said = lines(capsys)
    assert len(said) == bool(message), "one message, no traceback"
    assert not said or said[0].startswith(f"coreset-ray: {message}")


@pytest.mark.parametrize(("error", "code", "message"), ENDS)
@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_exit_status_is_a_field_of_the_last_json_line(
    monkeypatch, capsys, error, code, message, by
):
    if by == "environment":
        monkeypatch.setenv("CORESET_LOG", "json")
    words = ["--log-format", "json"] if by == "option" else []
    assert status(monkeypatch, error, *words) == code
    said = objects(capsys)
    assert [line["exit_status"] for line in said] == [code] * bool(message)
    assert all(line["message"].startswith(message) for line in said)
    assert all((line["stage"], line["level"]) == ("methods", "error") for line in said)


def test_a_defect_shows_its_traceback(monkeypatch, capsys):
    with pytest.raises(KeyError):  # python prints it and exits with 1
        status(monkeypatch, KeyError("defect"))
    assert status(monkeypatch, KeyError("defect"), "--log-format", "json") == 1
    (line,) = objects(capsys)
    assert line["level"] == "critical" and line["message"] == "KeyError: 'defect'"
    assert "Traceback" in line["traceback"]


def test_an_exit_that_is_not_ours_keeps_its_status(monkeypatch):
    assert status(monkeypatch, SystemExit(7)) == 7


def test_sigterm_means_again_what_it_meant_before(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    assert status(monkeypatch, terminate) == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_outside_of_the_main_thread_leaves_signals_alone(monkeypatch):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(status(monkeypatch, RuntimeError("broke")))
    )
    thread.start()
    thread.join()
    assert found == [1]


def test_a_format_that_is_wrong_is_refused_before_anything_runs(monkeypatch, capsys):
    def never():
        raise AssertionError("it ran")

    assert status(monkeypatch, never, "--log-format", "xml") == 2
    assert "invalid choice: 'xml'" in capsys.readouterr().err
    monkeypatch.setenv("CORESET_LOG", "xml")
    assert status(monkeypatch, never) == 2
    assert lines(capsys) == ["coreset-ray: CORESET_LOG='xml': expected one of text, json"]


def test_an_id_that_is_wrong_is_refused_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setenv("CORESET_RUN_ID", "../up")

    def never():
        raise AssertionError("it ran")

    assert status(monkeypatch, never) == 2
    assert "CORESET_RUN_ID='../up'" in capsys.readouterr().err


def test_a_configuration_that_is_not_there_is_a_wrong_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["embed", str(tmp_path / "gone.yaml"), "--log-format", "json"])
    (line,) = objects(capsys)
    assert end.value.code == 2 == line["exit_status"]
    assert "gone.yaml" in line["message"] and line["stage"] == "embed"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_is_sent_a_signal_ends_with_its_status(sent, code):
    script = (
        "import time\n"
        "from coreset_ray import cli\n"
        "def command(options, run):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "cli._list_methods = command\n"
        "cli.main(['methods'])\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command goes on from there" in said and "Traceback" not in said


def test_every_command_explains_its_exit_status_and_takes_a_format(capsys):
    (commands,) = cli._parser()._subparsers._group_actions
    assert {"run", "embed", "verify", "forget", "methods", "shards"} <= set(commands.choices)
    for name, command in commands.choices.items():
        text = command.format_help()
        assert "Exit status: 0 " in text and "--log-format {text,json}" in text, name
        if name != "methods":
            assert "143 terminated" in " ".join(text.split()), name
