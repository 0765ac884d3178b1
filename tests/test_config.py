"""Configuration: what is read, what is refused and in which words, and fingerprints."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from coreset_ray import catalog
from coreset_ray.config import ComputeConfig, Config, WaitConfig, fingerprint, load, plain
from coreset_ray.models.recipe import Recipe
from coreset_ray.models.spec import EncoderSpec
from coreset_ray.selectors.double_end import DoubleEnd
from pipelines.inputs import pool_table

ROOT = Path(__file__).parent.parent

BASE: dict[str, Any] = {
    "workspace": "runs/x",
    "pool": {"shards": ["a.tar"]},
    "select": {"budget": 0.1},
}
EVALUATE = {"evaluate": {"test": {"shards": ["b.tar"]}}}
ENCODER = "timm:tf_efficientnet_lite0"


def merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def at(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for the path a.b"""
    for step in reversed(path.split(".")):
        value = {step: value}
    return value


@pytest.fixture
def read(tmp_path: Path):
    """Loads the base configuration with changes merged in."""

    def do(change: dict[str, Any] | None = None, overrides: list[str] | None = None) -> Config:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(merged(BASE, change or {}), allow_unicode=True))
        return load(file, overrides)

    return do


@pytest.fixture
def read_text(tmp_path: Path):
    """Loads YAML given as text."""

    def do(text: str, overrides: list[str] | None = None) -> Config:
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return load(str(file), overrides)

    return do


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_there_are_configurations() -> None:
    assert CONFIGS


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_every_configuration_in_the_repository_loads(file: Path) -> None:
    config = load(file)
    assert config.score.build()
    assert Config.model_validate_json(json.dumps(plain(config)), strict=True) == config


def test_defaults_are_the_papers(read) -> None:
    config = read()
    method = config.score.build()
    found = (method.draws, method.dims, method.neighbors, method.exponent)
    assert found == (1_000_000, 2, 1000, 4.0)
    names = [encoder.name for encoder in config.embed.encoders]
    assert names == ["torchvision:resnet18", "open_clip:ViT-L-14/openai"]


# Unknown keys

NEAR = {
    "": [("worksapce", "workspace"), ("polo", "pool"), ("computes", "compute")],
    "pool": [("shard", "shards")],
    "embed": [("encoder", "encoders"), ("max-bad", "max_bad")],
    "embed.encoders.0": [("wieghts", "weights"), ("input-size", "input_size")],
    "score": [("methods", "method"), ("sed", "seed")],
    "select": [("budgte", "budget")],
    "export": [("ordre", "order")],
    "evaluate": [("seed", "seeds"), ("prob", "probe")],
    "evaluate.test": [("shads", "shards")],
    "evaluate.probe": [("l22", "l2")],
    "evaluate.knn": [("ks", "k")],
    "evaluate.resnet": [("epoch", "epochs")],
    "compute": [("batchsize", "batch_size")],
}


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [(section, *pair) for section, pairs in NEAR.items() for pair in pairs],
)
def test_unknown_key_is_refused_with_its_neighbour(
    read, section: str, wrong: str, right: str
) -> None:
    change = at(f"{section}.{wrong}" if section else wrong, 1)
    if section == "embed.encoders.0":
        change = {"embed": {"encoders": [{"name": ENCODER, wrong: 1}]}}
    if section.startswith("evaluate"):
        change = merged(EVALUATE, change)
    path = f"{section}.{wrong}" if section else wrong
    with pytest.raises(ValueError) as caught:
        read(change)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("config.yaml:")
    expected = f"{path}: unknown key; did you mean {right!r}? valid keys here: "
    assert len(lines) == 2 and lines[1].startswith(expected)
    assert right in lines[1].removeprefix(expected).split(", ")


@pytest.mark.parametrize("key", ["my-key", "int", "float", "str", "bool", "EncoderSpec", "", "0"])
@pytest.mark.parametrize("section", ["", "score", "embed.encoders.0"])
def test_unknown_key_of_any_spelling_is_named(read, key: str, section: str) -> None:
    path = f"{section}.{key}" if section else key
    change = at(path, 1) if section != "embed.encoders.0" else None
    if change is None:
        change = {"embed": {"encoders": [{"name": ENCODER, key: 1}]}}
    with pytest.raises(ValueError, match="unknown key") as caught:
        read(change)
    assert f"{path}: " in str(caught.value) or key == ""


# Types and ranges

INT = ["1", True, 1.0, 1.5, None, [1], {}]
TEXT = [1, True, 1.5, None, [], ["a", "b"], {}]
LIST = [3, True, 1.5, None, {}]
FLOAT = ["0.5", True, None, [0.5]]
WRONG: dict[str, list[Any]] = {
    "workspace": TEXT,
    "name": [*TEXT, "", "a b", "../up", "-x", "é", "x" * 65, "a/b", "a\n"],
    "pool": [*LIST[:-1], "a.tar", []],
    "pool.shards": [3, True, None, [], [1], [["a"]], [None]],
    "pool.root": [1, True, ["a"]],
    "embed.encoders": [3, True, None, [], [3], ["nolibrary:x"], ["resnet18"], [{}]],
    "embed.dtype": ["float64", 32, None],
    "embed.max_bad": [*FLOAT, -0.01, 1.01, float("nan"), float("inf")],
    "embed.max_pixels": [*INT, 0, -1],
    "score.method": [1, None, "nope", ["random"]],
    "score.seed": [*INT, -1, 2**64],
    "score.params": [1, None, [], "draws"],
    "select.budget": ["0.1", True, None, 0, -1, 0.0, 1.5, float("nan"), [0.1]],
    "export.order": ["random", None, 1],
    "export.samples_per_shard": [*INT, 0],
    "signals.labels": [*TEXT, ""],
    "signals.corrupt": [*FLOAT, -0.1, 1.1, float("nan"), 0.1],
    "signals.patterns.block": INT,
    "signals.patterns.count": [*INT, 0],
    "signals.patterns.encoder": [3, True, None, [], {}, "timm:test_vit"],
    "signals.proxy.runs": [*INT, 0],
    "signals.proxy.params": [1, None, [], "epochs"],
    "evaluate.labels": TEXT,
    "evaluate.unlabeled": ["ignore", True, None],
    "evaluate.corrupt": [*FLOAT, -0.1, 1.1, float("nan")],
    "evaluate.seeds": [*LIST, [], [-1], ["0"], [True], [0, 0], 0],
    "evaluate.reselect": ["yes", 1, None],
    "evaluate.knn": [3, "5", True, []],
    "evaluate.knn.k": [*INT, 0, -1],
    "evaluate.probe.l2": [*FLOAT, 0, -1.0, float("inf")],
    "evaluate.resnet.epochs": [*INT, 0],
    "evaluate.resnet.lr": [*FLOAT, -0.1, 0, float("nan")],
    "evaluate.resnet.model": [1, "resnet1"],
    "compute.device": ["gpu", 0, None],
    "compute.batch_size": [*INT, 0],
    "compute.encoder_gpus": [*FLOAT, 0, 1.1],
    "compute.loader_workers": [*INT, -1],
}


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in WRONG.items() for value in values]
)
def test_wrong_values_are_refused_by_path(read, path: str, value: Any) -> None:
    change = at(path, value)
    if path.startswith("evaluate"):
        change = merged(EVALUATE, change)
    with pytest.raises(ValueError) as caught:
        read(change)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("config.yaml:") and lines
    head, _, leaf = path.rpartition(".")
    for line in lines:  # nothing else is blamed; some name the key beside its section
        assert line.startswith((path, f"{head}: ")) or (not head and line.startswith(leaf))


@pytest.mark.parametrize("path", ["workspace", "pool", "pool.shards", "select", "select.budget"])
def test_what_has_no_default_is_asked_for(tmp_path: Path, path: str) -> None:
    data = json.loads(json.dumps(BASE))
    *above, last = path.split(".")
    del (data[above[0]] if above else data)[last]
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=rf"\n{path}: missing, and has no default$"):
        load(file)


def test_every_wrong_key_is_reported_at_once(read) -> None:
    with pytest.raises(ValueError) as caught:
        read({"nope": 1, "score": {"seed": "x"}, "compute": {"batch_size": 0}})
    lines = [line.partition(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert sorted(lines) == ["compute.batch_size", "nope", "score.seed"]


def test_numbers_keep_their_kind(read) -> None:
    assert read({"select": {"budget": 1}}).select.budget == 1
    whole = read({"select": {"budget": 1.0}}).select.budget
    assert whole == 1.0 and isinstance(whole, float)
    assert read({"score": {"seed": 2**64 - 1}}).score.seed == 2**64 - 1
    assert isinstance(read({"embed": {"max_bad": 0}}).embed.max_bad, float)


# Method parameters


@pytest.mark.parametrize("name", catalog.methods())
def test_method_parameters_are_refused_with_their_path(read, name: str) -> None:
    def score(params: dict[str, Any]) -> dict[str, Any]:
        return {"score": {"method": name, "params": params}}

    with pytest.raises(ValueError, match=r"\nscore\.params\.no_such: unknown key"):
        read(score({"no_such": 1}))
    for field in vars(catalog.build(name, {})):
        with pytest.raises(ValueError, match=rf"\nscore\.params\.{field}: expected"):
            read(score({field: [[]]}))


def test_method_parameters_out_of_range(read) -> None:
    with pytest.raises(ValueError, match=r"\nscore\.params: draws=0: expected 1 to"):
        read({"score": {"params": {"draws": 0}}})
    with pytest.raises(ValueError, match=r"\nscore\.params: exponent=nan: expected"):
        read({"score": {"params": {"exponent": float("nan")}}})
    assert read({"score": {"params": {"draws": 5}}}).score.build().draws == 5


def test_unknown_method_names_its_neighbour(read) -> None:
    for name in catalog.methods():
        with pytest.raises(ValueError, match=rf"\nscore: method '{name}x'.*mean '{name}'"):
            read({"score": {"method": name + "x"}})


# YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping of sections, got NoneType"),
        ("- 1", "expected a mapping of sections, got list"),
        ("word", "expected a mapping of sections, got str"),
        ("a: [1", "not readable as YAML"),
        ("a: b: c", "not readable as YAML"),
        ("\x01", "not readable as YAML"),
        ("workspace: a\nworkspace: b", "'workspace' is given twice"),
        ("pool: {shards: a, shards: b}", "'shards' is given twice"),
        ("score: {params: {draws: 1, draws: 1}}", "'draws' is given twice"),
        ("1: a", "key 1 is not text"),
        ("yes: a", "key True is not text"),
        ("? [a]\n: 1", "is not text"),
        ("a: &a [*a]", "Circular"),
        ("a: " + "[" * 1200, "not readable as YAML"),
        ("a: 1" + "0" * 5000, "not readable as YAML"),
        ("a: !!python/object/apply:os.system ['true']", "tag .*python/object"),
        ("a: !!python/name:os.system", "tag .*python/name"),
        ("a: !!int x", "tag"),
        ("a: !!timestamp x", "tag"),
        ("workspace: !!binary aGVsbG8=", "tag"),
        ("workspace: !!set {a}", "tag"),
        ("workspace: !mine a", "tag"),
    ],
)
def test_yaml_that_is_refused(read_text, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"config\.yaml:(\n|.)*{message}"):
        read_text(text)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ValueError, match=f"'{path}' is not a file"):
            load(path)
    binary = tmp_path / "latin.yaml"
    binary.write_bytes(b"workspace: caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.yaml: not readable"):
        load(binary)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E4", 1e4), ("2.5e-3", 2.5e-3), ("1.e2", 100.0), ("0.5", 0.5), ("3", 3.0)],
)
def test_numbers_with_an_exponent_are_numbers(read_text, text: str, value: float) -> None:
    base = "workspace: w\npool: {shards: a}\nselect: {budget: 1}\n"
    config = read_text(base + f"evaluate: {{test: {{shards: b}}, probe: {{l2: {text}}}}}")
    assert config.evaluate.probe.l2 == value
    config = read_text(base, [f"score.params.exponent={text}"])
    assert config.score.build().exponent == value


def test_a_date_and_a_commit_are_text(read_text) -> None:
    base = "pool: {shards: a}\nselect: {budget: 1}\n"
    for name in ("2026-01-01", "1e5f", "e10"):
        assert read_text(base + f"workspace: w\nname: {name}").name == name


# Overrides


def test_overrides_apply_in_order(read) -> None:
    config = read(
        {"embed": {"encoders": [{"name": ENCODER}, {"name": "timm:resnet18"}]}},
        [
            "workspace=s3://bucket/a=b",
            "score.seed=3",
            "score.seed=4",
            "score.params.draws=10",
            "score.params={draws: 7, dims: 3}",
            "score.params.dims=5",
            "embed.encoders.1.input_size=32",
            "pool.shards.0=c.tar",
            "compute.address=null",
            "evaluate.test.shards=[x.tar, y.tar]",
            "evaluate.resnet.epochs=2",
        ],
    )
    assert config.workspace == "s3://bucket/a=b"
    assert config.score.seed == 4 and config.score.params == {"draws": 7, "dims": 5}
    assert config.embed.encoders[1] == EncoderSpec("timm:resnet18", input_size=32)
    assert config.embed.encoders[0] == EncoderSpec(ENCODER)
    assert config.pool.shards == ("c.tar",)
    assert config.compute.address is None
    assert config.evaluate.test.shards == ("x.tar", "y.tar")
    assert config.evaluate.resnet == Recipe(epochs=2)


def test_an_override_equals_the_same_in_the_file(read) -> None:
    assert read(at("score.params.draws", 9)) == read(overrides=["score.params.draws=9"])
    assert read() == read(overrides=["select.budget=0.1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score.seed", "expected section.key=value"),
        ("=1", "expected section.key=value"),
        ("score.seed=[1", "is not a YAML value"),
        ("score.seed=!!int x", "is not a YAML value"),
        ("score.seed=1" + "0" * 5000, "is not a YAML value"),
        ("score.params={a: 1, a: 2}", "is not a YAML value"),
        ("workspace.deeper=1", "workspace is 'runs/x', which has no keys"),
        ("pool.shards.1=b", "'1' is no position in a list of 1"),
        ("pool.shards.-1=b", "'-1' is no position"),
        ("pool.shards.first=b", "'first' is no position"),
        ("pool.shards.0.x=b", "pool.shards.0 is 'a.tar', which has no keys"),
        ("score.sed=1", "score.sed: unknown key; did you mean 'seed'"),
        ("a..b=1", "a: unknown key"),
        ("score.seed=", "score.seed: expected a valid integer, got None"),
    ],
)
def test_overrides_that_are_refused(read, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(overrides=[text])
    assert message in str(caught.value)


def test_an_override_fills_an_empty_place_in_a_list(read) -> None:
    config = read({"embed": {"encoders": [None]}}, [f"embed.encoders.0.name={ENCODER}"])
    assert config.embed.encoders == (EncoderSpec(ENCODER),)


# Shorthands, and what cannot be changed


def test_a_single_thing_may_stand_for_a_list_of_one(read) -> None:
    short = read(
        {
            "pool": {"shards": "a.tar"},
            "embed": {"encoders": ENCODER},
            "evaluate": {"test": {"shards": "b.tar"}},
        }
    )
    assert short == read({**EVALUATE, "embed": {"encoders": [{"name": ENCODER}]}})
    assert short == read({**EVALUATE, "embed": {"encoders": [ENCODER]}})
    assert short == read({**EVALUATE, "embed": {"encoders": {"name": ENCODER}}})


def test_nothing_can_be_assigned(read) -> None:
    config = read({**EVALUATE, "embed": {"encoders": ENCODER}})
    sections = [config, *(v for v in vars(config).values() if hasattr(v, "model_fields_set"))]
    assert {type(s).__name__ for s in sections} > {"Config", "SelectConfig", "EvaluateConfig"}
    for section in sections:
        for key in type(section).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, key, getattr(section, key))
    changed = config.replace("score", seed=9)
    assert (changed.score.seed, config.score.seed) == (9, 0)
    assert changed.replace("score", seed=0) == config


# What is compared

COMPARED = [
    ("top", r"methods\.0: method 'top' is a selector that reads scores: there are .*blindcs.*d2"),
    ("blind", r"methods\.0: method 'blind' does not exist: there are .*blindcs"),
    ({"method": "blindcs", "params": {"drws": 1}}, r"methods\.0: .*did you mean 'draws'"),
    ({"method": "d2", "params": {"neighbor": 1}}, r"methods\.0: .*did you mean 'neighbors'"),
    ({"method": "d2", "selector": "top"}, "'d2' selects by itself: give its settings as params"),
    ({"method": "aum", "label": "random"}, "a method before it is called 'random': set its label"),
    ({"method": "aum", "selector": "moderate", "settings": {"x": 1}}, r"methods\.0: .*unknown key"),
]


def compare(*methods: Any, **more: Any) -> dict[str, Any]:
    return {"compare": {"methods": [*methods], "budgets": [0.1, 20], **more}}


@pytest.mark.parametrize(("method", "message"), COMPARED)
def test_what_cannot_be_compared_names_its_place(read, method: Any, message: str) -> None:
    with pytest.raises(
        ValueError, match=f"compare\\.{message}" if "methods" in message else message
    ):
        read(compare(method))


def test_what_is_compared_may_leave_images_out_first(read) -> None:
    entry = {"method": "random", "filters": ["near_duplicates", {"method": "hypersphere"}]}
    found = read(compare(entry)).candidates()
    assert list(found) == ["random", "near_duplicates + hypersphere + random"]
    assert [len(config.select.filters) for config in found.values()] == [0, 2]
    with pytest.raises(ValueError, match=r"compare\.methods\.0.*near_duplicate' does not exist"):
        read(compare({"method": "random", "filters": ["near_duplicate"]}))


def test_nothing_is_compared_twice(read) -> None:
    for more in ({"seeds": [1, 1]}, {"budgets": [5, 5]}):
        with pytest.raises(ValueError, match="names one twice"):
            read(compare("aum", **more))
    with pytest.raises(ValueError, match=r"methods\.1: a method before it is called 'aum'"):
        read(compare("aum", "aum"))
    assert len(read(compare("aum", {"method": "aum", "label": "other"})).candidates()) == 3


def test_candidates_are_configurations_of_their_own(read) -> None:
    """Each as a run of its own would have it, with random, whatever `score` and `select` say."""
    other = {"score": {"method": "elfs"}, "select": {"budget": 0.2, "search": {"stop": "grid"}}}
    config = read({**compare("aum", "elfs", "d2"), **other})
    found = config.candidates()
    assert list(found) == ["random", "aum", "elfs", "d2"]
    for name, selector in (("random", "top"), ("aum", "top"), ("elfs", "double_end"), ("d2", "d2")):
        assert found[name].selector()[0] == selector and found[name].compare is None
        assert Config.model_validate_json(json.dumps(plain(found[name])), strict=True)
    assert found["elfs"].select.search.budgets == (0.1, 20)
    assert found["elfs"].select.search.stop == "grid"
    named = read({**compare("random", "aum", "elfs", "d2"), **other})
    assert named.candidates() == found


# Fingerprints


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(v) for v in value] if isinstance(value, list) else value


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3),
    max_leaves=12,
)


@given(PLAIN, PLAIN)
def test_fingerprints_tell_contents_apart_and_not_their_order(a: Any, b: Any) -> None:
    def text(v: Any) -> str:
        return json.dumps(v, sort_keys=True)

    assert fingerprint(a) == fingerprint(reordered(a))
    assert (fingerprint(a) == fingerprint(b)) == (text(a) == text(b))
    assert len(fingerprint(a)) == 12 and int(fingerprint(a), 16) >= 0


def test_fingerprints_of_records_and_of_strangers() -> None:
    spec = EncoderSpec(ENCODER)
    assert fingerprint([spec]) == fingerprint([vars(spec)]) != fingerprint([ENCODER])
    for stranger in ({1, 2}, b"x", Path("x"), EncoderSpec):
        with pytest.raises(TypeError, match="cannot be fingerprinted"):
            fingerprint([stranger])


def test_fingerprints_are_the_same_in_every_process(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(merged(BASE, EVALUATE)))
    code = (
        "import sys; from coreset_ray.config import fingerprint, load, plain; "
        "c = load(sys.argv[1]); print(fingerprint([plain(c), c.score.build(), c.embed.encoders]))"
    )
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    config = load(file)
    ours = fingerprint([plain(config), config.score.build(), config.embed.encoders])
    assert done.stdout.strip() == ours


def test_compute_changes_no_embedding_fingerprint() -> None:
    """The table's name holds what determines its content; speed is not part of it."""
    config = load(ROOT / "configs" / "demo.yaml")
    name = pool_table(config).stage.name
    other = {"device": "cuda", "batch_size": 7, "encoders": 3, "encoder_gpus": 0.5}
    other |= {"score_workers": 5, "train_workers": 2, "loader_workers": 1, "address": "auto"}
    other |= {"row_shards": 3, "scratch": "/elsewhere", "wait_for": WaitConfig(cpus=9)}
    assert set(other) == set(ComputeConfig.model_fields)
    changed = config.replace("compute", **other)
    assert changed != config and pool_table(changed).stage.name == name
    for section, changes in (("embed", {"dtype": "float16"}), ("embed", {"max_pixels": 9})):
        assert pool_table(config.replace(section, **changes)).stage.name != name


# Anything at all

KEYS = st.sampled_from([*Config.model_fields, "shards", "encoders", "name", "params", "budget"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), v, max_size=3),
    max_leaves=15,
)
HARSH = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@HARSH
@given(st.dictionaries(KEYS | st.text(max_size=5), ANYTHING, max_size=4))
def test_any_mapping_is_a_configuration_or_a_value_error(read, change: dict[str, Any]) -> None:
    try:
        config = read(change)
    except ValueError as error:
        assert not isinstance(error, ValidationError) and "config.yaml" in str(error)
    else:
        assert isinstance(config, Config)


@HARSH
@given(st.text(max_size=40) | st.text("{}[]&*!|>-?:,#'\"% \nab01.", max_size=40))
def test_any_text_is_refused_politely(read_text, text: str) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_text(text)


@HARSH
@given(st.text("abpoolshardscore.=0[]{}!&*:- ", max_size=25))
def test_any_override_is_taken_or_refused(read, text: str) -> None:
    try:
        assert isinstance(read(overrides=[text]), Config)
    except ValueError as error:
        assert str(error)


def test_what_goes_with_a_method(read) -> None:
    """The selector of a method, unless another is chosen; and what a table calls the two."""
    data = {**BASE, "score": {"method": "elfs"}}
    config = read(data)
    assert config.selector() == ("double_end", {}, "beta") and config.label == "elfs"
    assert config.scores and config.rule(0.3) == DoubleEnd(0.3)
    config = read({**data, "select": {"budget": 0.1, "params": {"beta": 0.2}}})
    assert config.selector() == ("double_end", {"beta": 0.2}, None)
    config = read({**data, "select": {"budget": 0.1, "method": "top", "balance": "clusters"}})
    assert config.selector() == ("top", {}, None) and config.label == "elfs + top + balanced"
    assert config.baseline(4).label == "random" and config.baseline(4).score.seed == 4
    assert config.seeded(4).signals.seed == config.seeded(4).score.seed == 4
    config = read({**BASE, "select": {"budget": 0.1, "method": "d2"}})
    assert config.label == "d2" and not config.scores


def test_recipes_of_signals(read) -> None:
    told = {"dynamics": {"proxy": "resnet34", "params": {"epochs": 3}}}
    assert read({**BASE, "signals": told}).signals.dynamics.recipe() == Recipe("resnet34", 3)
    scan = read({**BASE, "signals": {"pseudo_labels": {"clustering": "scan"}}})
    heads = scan.signals.pseudo_labels.heads(7, 3)
    assert (heads.hidden, heads.temperature, heads.classes, heads.seed) == ((), 1.0, 7, 3)


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ({"classes": 1}, "signals.classes"),
        ({"classes": "many"}, "signals.classes"),
        ({"pseudo_labels": {"params": {"head": 3}}}, "head: unknown key; did you mean 'heads'"),
        ({"pseudo_labels": {"params": {"classes": 3}}}, "set .* signals.classes"),
        ({"pseudo_labels": {"params": {"lr": 0}}}, "lr=0"),
        ({"pseudo_labels": {"clustering": "kmeans", "params": {"lr": 1}}}, "kmeans has none here"),
        ({"dynamics": {"params": {"widt": 3}}}, "widt: unknown key"),
        ({"dynamics": {"params": {"epochs": 0}}}, "epochs=0"),
        ({"dynamics": {"proxy": "resnet18", "params": {"model": "resnet18"}}}, "params.model"),
        ({"clusters": {"count": 1}}, "signals.clusters.count"),
    ],
)
def test_wrong_signals_are_refused(read, signals: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read({**BASE, "signals": signals})
