"""What the README shows, done."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from coreset_ray.cli import _parser
from coreset_ray.config import load

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_python_blocks_run():
    assert blocks("python")
    for text in blocks("python"):
        exec(compile(text, "README.md", "exec"), {})


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_are_valid_configurations(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    load(path)


def commands() -> list[list[str]]:
    lines = [line for text in blocks("bash") for line in text.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def test_every_command_is_one_that_exists(monkeypatch):
    monkeypatch.chdir(ROOT)
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    checked = 0
    for words in commands():
        if words[0] == "make":
            assert words[1] in targets
        elif words[0].endswith("coreset-ray"):
            options = _parser().parse_args(words[1:])
            if words[1] != "shards":
                load(options.config, options.overrides)
        elif words[:3] == ["ray", "job", "submit"]:
            module, config, *_ = words[words.index("-m") + 1 :]
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
            load(config)
        else:  # of Kubernetes or of Ray: what it names is there
            named = [word for word in words if word.startswith(("deploy/", "configs/"))]
            assert all((ROOT / place).exists() for place in named), named
        checked += 1
    assert checked >= 5


def test_the_table_of_commands_is_the_command_line():
    listed = set(re.findall(r"^\| `coreset-ray (\w+)", (ROOT / "README.md").read_text(), re.M))
    (actions,) = (a for a in _parser()._actions if a.choices)
    assert listed == set(actions.choices)


def test_the_demo_ends_as_shown(tmp_path):
    """`make demo`, with fewer draws, in a folder of its own."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    steps = [
        ["shards", "digits", "runs/demo/shards", "--per-shard", "200"],
        [
            *("run", "configs/demo.yaml", "score.params.draws=500"),
            *("evaluate.seeds=[0, 1]", "evaluate.reselect=false"),
        ],
    ]
    for words in steps:
        outcome = subprocess.run(
            [sys.executable, "-m", "coreset_ray.cli", *words],
            **{"cwd": tmp_path, "capture_output": True, "text": True},
            env={**os.environ, "RAY_ADDRESS": "local"},
        )
        assert outcome.returncode == 0, outcome.stderr
    shown = next(text for text in blocks("text") if text.startswith("| evaluator"))
    without_numbers = re.compile(
        r"[-+]?\d+(\.\d+)?|\[.*?\]|(better|worse) than random|not told apart"
    )
    head, end = shown.splitlines()[:2], shown.splitlines()[-3]
    printed = outcome.stdout.splitlines()
    assert printed[:2] == head
    methods = [line.split("|")[3].strip() for line in shown.splitlines()[2:6]]
    assert [line.split("|")[3].strip() for line in printed[2:6]] == methods
    assert without_numbers.sub("", printed[-3]) == without_numbers.sub("", end)
    for line in printed[-2:]:
        assert Path(line.partition(": ")[2]).exists()
