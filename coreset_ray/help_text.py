"""What `coreset-ray COMMAND --help` says below the list of options."""

_EXIT = """Exit status: 0 done; 1 the run failed (the message says at what); 2 the command or the
configuration is wrong; 130 interrupted; 143 terminated. However a run ends, what it committed is
kept, and the same command goes on from there."""

_STAGE = """
CONFIG is a YAML file; configs/ holds examples. Any key can be overridden:
  coreset-ray %(stage)s configs/demo.yaml select.budget=0.05 score.seed=1

A stage whose inputs have not changed is finished already and is not repeated. A run that was
killed goes on from where it was when the same command is given again.

One run at a time works in a workspace. A second one stops with a message that names the first, or
waits for it as long as --wait says; one that is dead is no obstacle.

Ray: uses compute.address, else RAY_ADDRESS, else a cluster running on this machine, else starts
a local Ray with what the machine has.

Ends with where the time went and what limited it, which WORKSPACE/runs/RUN/summary.json keeps.

%(exit)s
"""

_COMPARE = """
CONFIG is a YAML file with a section `compare` (methods, budgets, seeds); any key can be overridden.
Every method selects at every budget and seed, and each coreset is evaluated as `evaluate` says,
beside random; without `evaluate`, by measures that need no labels. Writes below the workspace, in
comparisons/: results.parquet, report.md with a recommendation, and drawings. Prints the report.

Selections, scores and signals are those of the other stages, and each evaluation is kept as soon as
it is done: a comparison that was killed, or one with another method or budget, does the rest alone.

Exit status: 0 done, even where some methods cannot run on this pool (the table says why); 1 the run
failed; 2 random or all other methods cannot run, or the command or the configuration is wrong;
130 interrupted; 143 terminated.
"""

_PLAN = """
CONFIG is a YAML file; any key can be overridden, as for the other stages.

Measures for some seconds on the cluster in hand, in temporary folders, and prints the pool (its
images counted where it is embedded, else estimated from some shards), memory a worker and a node,
bytes read and written and wall time of each stage, draws a second, and how the pool is spread.
Writes nothing into the workspace. Times are those of a cluster that does nothing else.

Exit status: 0 the plan fits; 2 it does not (the message has the arithmetic and what to change), or
the configuration is wrong; 1 measuring failed; 130 interrupted; 143 terminated.
"""

_RESELECT = """
CONFIG is a YAML file; any key can be overridden. Looks at the shards of the pool: those that are
new or changed since the last version (by name, size and time) are embedded, those that are gone
leave, and what is chosen next is published as WORKSPACE/selections/NAME/v000001, v000002 and so on,
each with manifest.parquet, difference.parquet and report.md; current.json names the last. Images
that were added are exported for labeling. The section `reselect` says what stays of the version
before, how the budget grows and how much may go.

With nothing new it says so within seconds. Fit for a schedule: one run at a time works in a
workspace, and one that was overtaken publishes nothing.

Exit status: 0 done, or nothing new; 1 the run failed, or another one works in the workspace; 2 the
command or the configuration is wrong; 130 interrupted; 143 terminated.
"""

_OWN = {"plan": _PLAN, "compare": _COMPARE, "reselect": _RESELECT}


def of_stage(name: str) -> str:
    """That of a command that runs stages."""
    return _OWN.get(name, _STAGE % {"stage": name, "exit": _EXIT})


SHARDS = """
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

Exit status: 0 done; 1 a file could not be read or written; 2 the command or the source is wrong;
130 interrupted; 143 terminated.
"""

METHODS = """
Exit status: 0 done; 2 the command is wrong.
"""

FORGET = """
For a takedown: delete the shard from the pool, or write it again without the image, run `reselect`,
then this. Everything in the workspace that holds rows of it goes: embedding parts, signals, scores,
exports, evaluations, each made again when it is asked for; published versions and snapshots stay,
without those rows. Then the whole workspace is searched for what was to go.

Without --yes it says what would go, and changes nothing.

Exit status: 0 nothing of them is left, or nothing was to be done; 1 something is left (the message
says where), or another run works in the workspace; 2 a shard that is still in the pool, or a wrong
configuration; 130 interrupted; 143 terminated.
"""

VERIFY = """
Replays chunks of the draws that were recorded, chosen at random, and compares their checksums;
adds up the checksums of all chunks and compares them with the sums that were kept; compares the
scores with the sums and the manifest with the scores.

Exit status: 0 all agree; 1 something differs (the message says what); 2 not a selection;
130 interrupted; 143 terminated.
"""
