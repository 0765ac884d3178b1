"""The command line. The only place that prints."""

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from coreset_ray.version import __version__

_STAGES = {
    "run": ("run", "the whole chain: embed, score, select, export, evaluate"),
    "plan": ("plan", "say what a run would need and take, before anything runs"),
    "embed": ("embed", "embed every shard of the pool that is not embedded yet"),
    "signals": ("signals", "write neighbours, clusters, pseudo-labels and training dynamics"),
    "score": ("score", "score every image of the embedded pool"),
    "select": ("select_coreset", "keep the best within the budget and write the manifest"),
    "export": ("export", "write the coreset as WebDataset shards, with an index and lists"),
    "evaluate": ("evaluate", "train on the coreset and on random, and compare"),
    "compare": ("compare", "say which of many methods is worth using on this pool, beside random"),
}

_STAGE_HELP = """
CONFIG is a YAML file; configs/ holds examples. Any key can be overridden:
  coreset-ray %(stage)s configs/demo.yaml select.budget=0.05 score.seed=1

A stage whose inputs have not changed is finished already and is not repeated. A run that was
killed goes on from where it was when the same command is given again.

Ray: uses compute.address, else RAY_ADDRESS, else a cluster running on this machine, else starts
a local Ray with what the machine has.

Exit status: 0 done; 1 the run failed (the message says at what); 2 the command or the
configuration is wrong; 130 interrupted.
"""

_COMPARE_HELP = """
CONFIG is a YAML file with a section `compare` (methods, budgets, seeds); any key can be overridden.
Every method selects at every budget and seed, and each coreset is evaluated as `evaluate` says,
beside random; without `evaluate`, by measures that need no labels. Writes below the workspace, in
comparisons/: results.parquet, report.md with a recommendation, and drawings. Prints the report.

Selections, scores and signals are those of the other stages, and each evaluation is kept as soon as
it is done: a comparison that was killed, or one with another method or budget, does the rest alone.

Exit status: 0 done, even where some methods cannot run on this pool (the table says why); 1 the run
failed; 2 random or all other methods cannot run, or the command or the configuration is wrong;
130 interrupted.
"""

_PLAN_HELP = """
CONFIG is a YAML file; any key can be overridden, as for the other stages.

Measures for some seconds on the cluster in hand, in temporary folders, and prints the pool (its
images counted where it is embedded, else estimated from some shards), memory a worker and a node,
bytes read and written and wall time of each stage, draws a second, and how the pool is spread.
Writes nothing into the workspace. Times are those of a cluster that does nothing else.

Exit status: 0 the plan fits; 2 it does not (the message has the arithmetic and what to change), or
the configuration is wrong; 1 measuring failed; 130 interrupted.
"""

_HELP = {"plan": _PLAN_HELP, "compare": _COMPARE_HELP}

_SHARDS_HELP = """
SOURCE is one of
  digits                 scikit-learn's bundled handwriting: 1,797 images, a fifth held out
  torchvision:CIFAR10    any torchvision classification data set; --root says where it lies
  FOLDER                 an image folder: class folders become .cls; train/ and test/ become splits
  SHARDS                 WebDataset shards: a folder of *.tar, a file, glob, brace range or @LIST

Shards are written to OUT/train/00000.tar … and, where the source has a test split, OUT/test/….
Original image bytes and sidecar files are kept as they are.

--degrade makes a pool of the train split that looks like the web, and leaves the other splits:
  coreset-ray shards data/clean data/web --degrade
  coreset-ray shards data/clean data/web --degrade long_tail=50,off_topic=0.1 --off-topic digits
%(settings)s

OUT/truth.parquet says what each image is: shard, key, origin, kind, change, label. It is for
scoring a selection only; nothing that selects reads it. Blank, noise and off-topic images have no
.cls: evaluate.unlabeled=drop lets a coreset be judged that bought some.
"""

_VERIFY_HELP = """
Replays chunks of the draws that were recorded, chosen at random, and compares their checksums;
adds up the checksums of all chunks and compares them with the sums that were kept; compares the
scores with the sums and the manifest with the scores.

Exit status: 0 all agree; 1 something differs (the message says what); 2 not a selection.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its status. arguments: its words, by default sys.argv's."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if wrong := [word for word in rest if not _overrides(options, word)]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:  # after an option, where argparse no longer looks for them
        options.overrides += rest
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    logging.getLogger("coreset_ray").setLevel(logging.INFO)
    logging.getLogger("pipelines").setLevel(logging.INFO)
    try:
        options.command(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except ValueError as error:
        sys.exit(_fail(error, 2))
    except Exception as error:
        if not _is_expected(error):
            raise
        sys.exit(_fail(error, 1))


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
        text = _HELP.get(name, _STAGE_HELP % {"stage": name})
        stage = _command(commands, name, summary, text)
        stage.add_argument("config", metavar="CONFIG", help="YAML file")
        stage.add_argument("overrides", metavar="key=value", nargs="*", help="override a key")
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
    verify = _command(commands, "verify", "check a selection against its record", _VERIFY_HELP)
    verify.add_argument("selection", metavar="SELECTION", help="WORKSPACE/selections/NAME")
    verify.add_argument("--chunks", type=int, default=3, help="chunks of draws to replay (3)")
    verify.add_argument("--seed", type=int, help="which chunks (default: others each time)")
    verify.set_defaults(command=_verify)
    listing = _command(commands, "methods", "list the methods and what they need", "")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(command=_list_methods)
    return parser


def _command(commands: Any, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _run_stage(options: argparse.Namespace) -> None:
    from coreset_ray.config import load

    config = load(options.config, options.overrides)
    only = {"only": options.only} if options.module == "signals" else {}
    outcome = importlib.import_module(f"pipelines.{options.module}").run(config, **only)
    if outcome.get("report"):
        print(outcome["report"])
    if options.module == "run":
        print(
            f"Kept {outcome['kept']} of {outcome['images']} images "
            f"({outcome['quarantined']} quarantined).\n"
            f"Manifest: {outcome['manifest']}\nCoreset shards and lists: {outcome['shards']}"
        )


def _verify(options: argparse.Namespace) -> None:
    from pipelines.verify import run

    found = run(options.selection, options.chunks, options.seed)
    print("The selection is what its record says:")
    for name, count in found.items():
        print(f"  {name}: {count:,}")


def _make_shards(options: argparse.Namespace) -> None:
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
    return _SHARDS_HELP % {"settings": f"{meaning}\nDefaults: {defaults}."}


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


def _list_methods(options: argparse.Namespace) -> None:
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


def _fail(error: Exception, status: int) -> int:
    print(f"coreset-ray: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
