"""The command line. The only place that prints."""

import argparse
import importlib
import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from coreset_ray import help_text
from coreset_ray.telemetry import logs
from coreset_ray.telemetry.run import Run, recording
from coreset_ray.version import __version__

_log = logging.getLogger(__name__)

_STAGES = {
    "run": ("run", "the whole chain: embed, score, select, export, evaluate"),
    "pretrain": ("pretrain", "train an encoder on the pool itself, by self-supervision"),
    "plan": ("plan", "say what a run would need and take, before anything runs"),
    "embed": ("embed", "embed every shard of the pool that is not embedded yet"),
    "signals": ("signals", "write neighbours, clusters, pseudo-labels and training dynamics"),
    "score": ("score", "score every image of the embedded pool"),
    "select": ("select_coreset", "keep the best within the budget and write the manifest"),
    "export": ("export", "write the coreset as WebDataset shards, with an index and lists"),
    "evaluate": ("evaluate", "train on the coreset and on random, and compare"),
    "reselect": ("reselect", "take in new shards and publish the next version of the selection"),
    "continual": (
        "continual",
        "learn classes in tasks and replay what methods chose, beside random",
    ),
    "compare": ("compare", "say which of many methods is worth using on this pool, beside random"),
}

_READ_ONLY = ("plan",)
_OWN_LEASE = ("reselect",)  # it needs no lease to see that nothing is new

_STOPPED = "%s; what was committed is kept, and the same command goes on from there"
_TERMINATED = 128 + signal.SIGTERM


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its status. arguments: its words, by default sys.argv's."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if wrong := [word for word in rest if not _overrides(options, word)]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:  # after an option, where argparse no longer looks for them
        options.overrides += rest
    try:
        logs.set_up(logs.choose_format(options.log_format))
        with _terminable(), recording(options.name) as run:
            status = _run(options, run)
    except ValueError as error:  # of the run's own settings
        status = _fail(error, 2)
    if status:
        sys.exit(status)


def _run(options: argparse.Namespace, run: Run) -> int:
    """Runs the command; the exit status."""
    try:
        options.command(options, run)
    except KeyboardInterrupt:
        return _fail(_STOPPED % "interrupted", 130)
    except SystemExit as end:
        if end.code != _TERMINATED:
            raise
        return _fail(_STOPPED % "terminated", _TERMINATED)
    except ValueError as error:
        return _fail(error, 2)
    except Exception as error:
        if not _is_expected(error):
            if not logs.structured():
                raise
            _log.critical("%s: %s", type(error).__name__, error, exc_info=error)
            return 1
        return _fail(error, 1)
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which a scheduler sends before it kills, ends a run as an interrupt does: in order,
    with what was committed kept."""

    def end(*_: object) -> None:
        sys.exit(_TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread: signals are not ours to take
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _overrides(options: argparse.Namespace, word: str) -> bool:
    """Whether a word may be key=value of a stage."""
    return hasattr(options, "overrides") and "=" in word and not word.startswith("-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coreset-ray", description="Pick the images worth labeling, without labels, on Ray."
    )
    parser.add_argument("--version", action="version", version=f"coreset-ray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary) in _STAGES.items():
        stage = _command(commands, name, summary, help_text.of_stage(name))
        _configured(stage, waits=name not in _READ_ONLY)
        if name == "signals":
            stage.add_argument(
                "--only",
                metavar="NAME",
                action="append",
                default=[],
                help="knn, clusters, pseudo_labels, dynamics, proxy or patterns, and what it is "
                "made of; may be given several times (default: all but patterns, which take the "
                "images once more through a vision transformer)",
            )
        stage.set_defaults(command=_run_stage, module=module)
    forget = _command(commands, "forget", "remove all trace of shards that left", help_text.FORGET)
    _configured(forget, waits=True)
    forget.add_argument(
        "--shard", metavar="NAME", action="append", default=[], help="one that left (default: all)"
    )
    forget.add_argument("--yes", action="store_true", help="do it, and prove it")
    forget.set_defaults(command=_forget)
    shards = _command(commands, "shards", "make WebDataset shards", _shards_help())
    shards.add_argument("source", metavar="SOURCE")
    shards.add_argument("out", metavar="OUT", help="an empty or new folder")
    shards.add_argument("--per-shard", type=int, default=1000, help="samples a shard (1000)")
    shards.add_argument("--seed", type=int, default=0, help="of the shuffle and the split (0)")
    shards.add_argument("--no-shuffle", action="store_true", help="keep the order of the source")
    shards.add_argument("--root", help="where a torchvision data set lies")
    shards.add_argument("--download", action="store_true", help="let torchvision download it")
    shards.add_argument(
        "--degrade",
        metavar="key=value,…",
        action="append",
        nargs="?",
        const="",
        help="make a pool that looks like the web; settings and defaults below",
    )
    shards.add_argument("--off-topic", metavar="SOURCE", help="where off-topic images come from")
    shards.set_defaults(command=_make_shards)
    verify = _command(commands, "verify", "check a selection against its record", help_text.VERIFY)
    verify.add_argument("selection", metavar="SELECTION", help="WORKSPACE/selections/NAME")
    verify.add_argument("--chunks", type=int, default=3, help="chunks of draws to replay (3)")
    verify.add_argument("--seed", type=int, help="which chunks (default: others each time)")
    verify.set_defaults(command=_verify)
    listing = _command(
        commands, "methods", "list the methods and what they need", help_text.METHODS
    )
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(command=_list_methods)
    return parser


def _command(commands: Any, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(name=name)
    parser.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        help=f"lines for people, or one JSON object a line ({logs.FORMAT_VARIABLE}, else text)",
    )
    return parser


def _configured(command: argparse.ArgumentParser, waits: bool) -> None:
    """Gives it a configuration; waits: for another run in its workspace."""
    command.add_argument("config", metavar="CONFIG", help="YAML file")
    command.add_argument("overrides", metavar="key=value", nargs="*", help="override a key")
    if waits:
        told = "wait as long for another run in the same workspace (0)"
        command.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help=told)


def _run_stage(options: argparse.Namespace, run: Run) -> None:
    from coreset_ray.config import load

    config = load(options.config, options.overrides)
    more = {"only": options.only} if options.module == "signals" else {}
    if options.module in _OWN_LEASE:
        more["wait"] = options.wait
    stage = importlib.import_module(f"pipelines.{options.module}")
    with _alone(options, config), _summarized(options, config, run) as end:
        outcome = stage.run(config, **more)
    if outcome.get("report"):
        print(outcome["report"])
    if end:
        print(f"{end[0]}\n")
    if options.module == "run":
        print(
            f"Kept {outcome['kept']} of {outcome['images']} images "
            f"({outcome['quarantined']} quarantined).\n"
            f"Manifest: {outcome['manifest']}\nCoreset shards and lists: {outcome['shards']}"
        )


@contextmanager
def _alone(options: argparse.Namespace, config: Any) -> Iterator[None]:
    """Keeps other runs out of the workspace, where this one writes there."""
    from coreset_ray.io.lease import hold
    from pipelines.inputs import workspace_of

    if options.module in (*_READ_ONLY, *_OWN_LEASE):
        yield
        return
    with hold(workspace_of(config).lease, wait=options.wait, command=options.module):
        yield


@contextmanager
def _summarized(options: argparse.Namespace, config: Any, run: Run) -> Iterator[list[str]]:
    """Keeps in the workspace where the time of the run went, however it ends; yields a list that
    then holds the same in words, unless the log is JSON and tells it, or nothing is to be said."""
    from pipelines.summary import write_summary

    words: list[str] = []
    if options.module in _READ_ONLY:
        yield words
        return
    try:
        yield words
    except BaseException as error:
        begun = run.stages and not isinstance(error, ValueError)
        if begun or run.worked:
            ended = isinstance(error, (KeyboardInterrupt, SystemExit))
            write_summary(config, run, "interrupted" if ended else "failed")
        raise
    told = write_summary(config, run, "finished")
    if not logs.structured():
        words.append(told)


def _verify(options: argparse.Namespace, _: Run) -> None:
    from pipelines.verify import run

    found = run(options.selection, options.chunks, options.seed)
    print("The selection is what its record says:")
    for name, count in found.items():
        print(f"  {name}: {count:,}")


def _forget(options: argparse.Namespace, _: Run) -> None:
    from coreset_ray.config import load
    from pipelines.forget import run

    config = load(options.config, options.overrides)
    print(run(config, options.shard, yes=options.yes, wait=options.wait)["report"])


def _make_shards(options: argparse.Namespace, _: Run) -> None:
    from coreset_ray.io.sources import make_shards

    made = make_shards(
        options.source,
        options.out,
        per_shard=options.per_shard,
        seed=options.seed,
        shuffle=not options.no_shuffle,
        root=options.root,
        download=options.download,
        degrade=_degrade(options.degrade),
        off_topic=options.off_topic,
    )
    for split, counts in made["splits"].items():
        print(f"{options.out}/{split}: {counts['samples']} samples in {counts['shards']} shards")
    if made["classes"]:
        print(f"{len(made['classes'])} classes, named in {options.out}/classes.txt")
    if made["ignored"]:
        print(f"{made['ignored']} files belong to no image and were left out")
    if made.get("degraded"):
        told = ", ".join(f"{count} {kind}" for kind, count in made["degraded"].items())
        print(f"{told}; the truth of each image in {options.out}/truth.parquet")


def _shards_help() -> str:
    from dataclasses import fields
    from inspect import cleandoc

    from coreset_ray.io.degrade import Degrade

    meaning = cleandoc(Degrade.__doc__ or "\n\n").split("\n\n")[1]
    defaults = ", ".join(f"{f.name}={f.default}" for f in fields(Degrade))
    return help_text.SHARDS % {"settings": f"{meaning}\nDefaults: {defaults}."}


def _degrade(texts: list[str] | None) -> Any:
    """The settings in the values of --degrade; None where it was not given."""
    from coreset_ray.io.degrade import Degrade
    from coreset_ray.strict import validate

    if texts is None:
        return None
    given: dict[str, Any] = {}
    for text in filter(None, ",".join(texts).split(",")):
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(
                f"--degrade {text!r}: expected key=value; SOURCE and OUT come before --degrade"
            )
        if key in given:
            raise ValueError(f"--degrade {text!r}: {key} is given twice")
        try:
            given[key] = json.loads(value)
        except ValueError:
            given[key] = value  # refused below, with what was expected
    return validate(Degrade, given, "--degrade")


def _list_methods(options: argparse.Namespace, _: Run) -> None:
    from dataclasses import fields

    from coreset_ray.catalog import filters, methods, selector_classes, shape_of

    rows = [
        {
            "name": name,
            "family": method.family,
            "shape": shape_of(method),
            "needs": list(method.needs),
            "params": {f.name: f.default for f in fields(method)},  # type: ignore[arg-type]
            "cost": method.cost,
            "source": method.source,
        }
        for name, method in [*methods().items(), *selector_classes().items(), *filters().items()]
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"{row['name']}\n  family  {row['family']}\n  shape   {row['shape']}\n"
            f"  needs   {', '.join(row['needs']) or '-'}"
        )
        print(f"  params  {', '.join(f'{k}={v}' for k, v in row['params'].items()) or '-'}")
        print(f"  cost    {row['cost']}\n  source  {row['source']}")


def _is_expected(error: Exception) -> bool:
    """Failures that a message explains; anything else is a defect and shows its traceback."""
    return isinstance(error, (RuntimeError, OSError))


def _fail(error: Exception | str, status: int) -> int:
    if logs.structured():
        _log.error("%s", error, extra={"exit_status": status})
    else:
        print(f"coreset-ray: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
