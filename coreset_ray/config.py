"""Typed, frozen configuration of a run, read strictly from YAML.

Keys are grouped by what they change: `compute` changes only speed, but for the number of training
workers, and `storage` only how files are reached; both stay out of every fingerprint, but for that
number in those of trainings. Everything else may change an answer.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from coreset_ray import catalog
from coreset_ray.clustering.deep import HeadSettings
from coreset_ray.core.address import endpoint_of, is_remote, kind_of, options_of, split
from coreset_ray.core.filter import Filter
from coreset_ray.core.method import Sampled, Scorer
from coreset_ray.core.rule import Rule
from coreset_ray.core.whole_set import NO_PARTITIONS, WholeSet
from coreset_ray.models.mlp import MlpRecipe, ProxyRecipe
from coreset_ray.models.pretrain import RECIPES, PretrainRecipe
from coreset_ray.models.recipe import Recipe
from coreset_ray.models.spec import PRETRAINED, EncoderSpec
from coreset_ray.strict import validate

_DEFAULT_ENCODERS = ("torchvision:resnet18", "open_clip:ViT-L-14/openai")


_MOST = 4 << 20  # characters of a configuration, its aliases written out

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _changed(section: Section, keys: tuple[str, ...]) -> list[str]:
    """Those of the keys that do not hold their default."""
    fields = type(section).model_fields
    return [key for key in keys if getattr(section, key) != fields[key].default]


class PoolConfig(Section):
    """Where the images are.

    shards: tar files, globs, brace ranges ({00000..00049}), folders, or @FILE, a text file with
    one of these a line. root: shard names (and so identities) are paths relative to it; by
    default relative to the folder that each entry names.
    """

    shards: Annotated[tuple[str, ...], Field(min_length=1)]
    root: str | None = None


class EmbedConfig(Section):
    """encoders: concatenated in order. max_bad: the share of images (and of shards) that may be
    unusable before the run fails. max_pixels: larger images are quarantined undecoded."""

    encoders: Annotated[tuple[EncoderSpec, ...], Field(min_length=1)] = tuple(
        EncoderSpec(name) for name in _DEFAULT_ENCODERS
    )
    dtype: Literal["float32", "float16"] = "float32"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_pixels: Positive = 50_000_000

    def own(self) -> EncoderSpec | None:
        """The encoder that is trained on the pool itself, if there is one."""
        found = [spec for spec in self.encoders if spec.weights == PRETRAINED]
        if len(found) > 1:
            raise ValueError(
                f"encoders: {len(found)} have weights {PRETRAINED!r}; give one at most"
            )
        return found[0] if found else None


class PretrainConfig(Section):
    """How the encoder with `weights: pretrained` is trained, by self-supervision: no label is read.
    method, params: SimCLR or SwAV and its recipe (coreset_ray/models/pretrain.py). pool: what it
    is trained on, by default the whole pool, which as it grows makes for another encoder and so for
    other embeddings: name shards here to keep it, or to train on some of them."""

    method: Literal["simclr", "swav"] = "simclr"
    params: dict[str, Any] = {}
    pool: PoolConfig | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _params_exist(self) -> "PretrainConfig":
        self.recipe()
        return self

    def recipe(self) -> PretrainRecipe:
        return validate(RECIPES[self.method], self.params, "params")


class UntilConfig(Section):
    """Stop drawing early. stability: once two runs with different seeds would correlate as much;
    judged after 65,536 draws and at each doubling. The method's `draws` is the most."""

    stability: Annotated[float, Field(gt=0, lt=1)]


class ScoreConfig(Section):
    """params: the method's own hyper-parameters, see `coreset-ray methods`. For methods that sum
    random draws: until; columns: what embeddings are held as while they draw. float16 halves
    most of that memory; it rounds embeddings unless embed.dtype has."""

    method: str = "blindcs"
    seed: Seed = 0
    params: dict[str, Any] = {}
    until: UntilConfig | None = None
    columns: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _method_exists(self) -> "ScoreConfig":
        if not isinstance(self.build(), Sampled):
            for name in _changed(self, ("until", "columns")):
                raise ValueError(f"{name}: method {self.method!r} sums no draws; leave it out")
        return self

    def build(self) -> Scorer:
        return catalog.build(self.method, self.params, "score.params")


class KnnConfig(Section):
    """Nearest neighbours by cosine. index: `flat` compares every pair, `ivf` and `ivfpq` (of
    compressed rows) only within the `probes` nearest of `lists` clusters of a block of about a
    million rows; auto is by the size of the pool."""

    k: Positive = 50
    index: Literal["auto", "flat", "ivf", "ivfpq"] = "auto"
    lists: Positive = 1024
    probes: Positive = 32


class ClustersConfig(Section):
    """k-means. count: clusters, by default as many as `signals.classes`. spherical: by direction,
    else Euclidean; standardize: by the pool's mean and deviation first; tolerance: the share of
    the inertia that an iteration has to save for another."""

    count: Annotated[int, Field(ge=2)] | None = None
    spherical: bool = True
    standardize: bool = True
    iterations: Positive = 100
    tolerance: Annotated[float, Field(ge=0)] = 1e-4


class PseudoLabelsConfig(Section):
    """clustering: `temi` and `scan` train heads on pairs of nearest neighbours, `kmeans` takes the
    clusters of k-means, as many as `signals.classes`. params: settings of the heads (HeadSettings
    in coreset_ray/clustering/deep.py). truth: `cls` or a CSV file of true labels as in
    evaluate.labels, for a report of how far they agree; nothing else reads it."""

    clustering: Literal["temi", "scan", "kmeans"] = "temi"
    params: dict[str, Any] = {}
    truth: str | None = None

    @model_validator(mode="after")
    def _params_exist(self) -> "PseudoLabelsConfig":
        if self.clustering == "kmeans" and self.params:
            raise ValueError("params: kmeans has none here; set signals.clusters")
        if self.clustering != "kmeans":
            self.heads(2, 0)
        return self

    def heads(self, classes: int, seed: int) -> HeadSettings:
        """Of TEMI or SCAN, with that method's own defaults."""
        own = _SCAN if self.clustering == "scan" else {}
        for name in {"clustering", "classes", "seed"} & set(self.params):
            raise ValueError(
                f"params.{name}: set signals.pseudo_labels.clustering, signals.classes "
                "and signals.seed instead"
            )
        told = {"clustering": self.clustering, "classes": classes, "seed": seed}
        return validate(HeadSettings, own | self.params | told, "params")


_SCAN = {"hidden": [], "temperature": 1.0}  # as in its paper


class DynamicsConfig(Section):
    """A classifier is trained on the pseudo-labels and recorded. proxy: `mlp` on the embeddings, or
    a ResNet on the images. params: its recipe (MlpRecipe in coreset_ray/models/mlp.py, Recipe in
    coreset_ray/models/recipe.py)."""

    proxy: Literal["mlp", "resnet18", "resnet34", "resnet50"] = "mlp"
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _params_exist(self) -> "DynamicsConfig":
        self.recipe()
        return self

    def recipe(self) -> MlpRecipe | Recipe:
        if self.proxy == "mlp":
            return self.mlp()
        for name in {"model", "weighted"} & set(self.params):
            raise ValueError(f"params.{name}: not for a proxy; its model is named by `proxy`")
        return validate(Recipe, self.params | {"model": self.proxy}, "params")

    def mlp(self) -> MlpRecipe:
        """The MLP of this recipe, else that of the defaults."""
        return validate(MlpRecipe, self.params if self.proxy == "mlp" else {}, "params")


class ProxyConfig(Section):
    """MLPs on the embeddings are trained on the labels for a few epochs and asked what they make of
    each image. runs: trainings that differ in their seed; all but gradient norms are of the first.
    params: its recipe (ProxyRecipe in coreset_ray/models/mlp.py); epochs may be 0."""

    runs: Positive = 5
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _params_exist(self) -> "ProxyConfig":
        self.recipe()
        return self

    def recipe(self) -> ProxyRecipe:
        return validate(ProxyRecipe, self.params, "params")


class PatternsConfig(Section):
    """Local patterns: each image's patch tokens are clustered into `count`. encoder: a vision
    transformer of timm's, written as in embed.encoders; the images go through it once more. block:
    whose tokens, 0 is the first and -1 the last."""

    encoder: EncoderSpec = EncoderSpec("timm:vit_small_patch16_224.dino")
    block: int = -2
    count: Positive = 5

    @model_validator(mode="after")
    def _encoder_has_blocks(self) -> "PatternsConfig":
        if not self.encoder.name.startswith("timm:"):
            raise ValueError(
                f"encoder: {self.encoder.name!r} is none of timm's; name a vision transformer, "
                "such as timm:vit_small_patch16_224.dino"
            )
        return self


class SignalsConfig(Section):
    """What further methods read beside embeddings. labels: what a classifier learns and what
    `pseudo_labels` holds: `pseudo` finds them, `cls` or a CSV file as in evaluate.labels names
    true ones of the whole pool. classes: c, or `auto` to have it proposed, or counted in labels
    that are given."""

    labels: Annotated[str, Field(min_length=1)] = "pseudo"
    classes: Annotated[int, Field(ge=2)] | Literal["auto"] = "auto"
    seed: Seed = 0
    knn: KnnConfig = KnnConfig()
    clusters: ClustersConfig = ClustersConfig()
    pseudo_labels: PseudoLabelsConfig = PseudoLabelsConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    proxy: ProxyConfig = ProxyConfig()
    patterns: PatternsConfig = PatternsConfig()


Budget = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]


class SearchConfig(Section):
    """How a setting that is `auto` is found: coresets of the values in question are tried on
    pseudo-labels, with `held_out` of the pool to validate on. stop: `early` once the curve has
    fallen twice, `grid` tries every value. budgets: searched together, by default the one that is
    selected. rows: of the pool that take part, at most. seeds: trainings of each value."""

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    stop: Literal["early", "grid"] = "early"
    budgets: tuple[Budget, ...] | None = None
    rows: Positive = 200_000
    seeds: Positive = 1


class FilterConfig(Section):
    """What leaves images out before anything is selected: a filter and its settings, see
    `coreset-ray methods`."""

    method: str
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _filter_exists(self) -> "FilterConfig":
        self.build()
        return self

    def build(self) -> Filter:
        return catalog.build_filter(self.method, self.params, "params")


class SelectConfig(Section):
    """budget: an integer is a count, a fraction (0.01) a share of the pool. method, params: the
    selector and its settings, see `coreset-ray methods`; by default what goes with the scores.
    Where a selector says so, a setting may be `auto`. balance: as many of each cluster, or of each
    pseudo-label. filters: leave images out first, each by the whole pool, by name or with params;
    the budget stays a share of the whole pool. keep: the manifest (manifest.parquet) of images that
    are chosen already and are not chosen again; a method that selects by itself starts from them,
    where scores are kept they count like any other image. For methods that select by themselves:
    target, shards of images that the choice should resemble; partitions: first
    chosen from each of so many parts of the pool, then among those, where all rows do not fit in
    one process."""

    budget: Budget
    method: str | None = None
    params: dict[str, Any] = {}
    balance: Literal["clusters", "pseudo_labels"] | None = None
    search: SearchConfig = SearchConfig()
    filters: tuple[FilterConfig, ...] = ()
    keep: str | None = None
    target: PoolConfig | None = None
    partitions: Positive = 1

    def build(self, name: str, params: dict[str, Any]) -> catalog.Selector:
        return catalog.build_selector(name, params, "select.params")


class ReselectConfig(Section):
    """The standing coreset, version by version. keep: what stays, `previous` all of the version
    before, `labeled` the images that the file `labeled` lists (a manifest, or a CSV file with
    columns shard,key), `none` only what is chosen anew. add: images a version is to grow by;
    without it select.budget of the pool as it is then is the total. churn: share of the version
    before that may go at most, where not all of it stays. sample: rows of the old and of the new
    data, each, that drift is judged by."""

    keep: Literal["previous", "labeled", "none"] = "previous"
    labeled: str | None = None
    add: Positive | None = None
    churn: Annotated[float, Field(ge=0, le=1)] = 1.0
    sample: Positive = 10_000

    @model_validator(mode="after")
    def _settings_agree(self) -> "ReselectConfig":
        if (self.labeled is not None) != (self.keep == "labeled"):
            raise ValueError("keep: labeled goes with `labeled`, the file that lists the images")
        if self.keep == "previous" and self.churn != 1:
            raise ValueError("churn: keep: previous lets nothing go; leave it out")
        return self


class ExportConfig(Section):
    """order: `pool` follows the shards, `manifest` the ranking. out: default in the workspace."""

    order: Literal["pool", "manifest"] = "pool"
    samples_per_shard: Positive = 1000
    out: str | None = None


class ProbeConfig(Section):
    """Multinomial logistic regression on standardised embeddings. l2: weight of ½‖W‖² beside the
    mean loss over the coreset; the default is the best of 0.001 … 1 for random choices of 500 and
    of 5,000 CIFAR-10 images (benchmarks/README.md)."""

    l2: Annotated[float, Field(gt=0)] = 0.1
    max_iterations: Positive = 500


class KnnProbeConfig(Section):
    """The majority of the k nearest coreset images by cosine; it has no use for weights."""

    k: Positive = 5


class EvaluateConfig(Section):
    """test: labeled test shards. labels: `cls` for the .cls member, or a CSV file with columns
    key,label (shard,key,label where keys repeat). unlabeled: what becomes of a chosen image
    without a label, `drop` pays for it and leaves it out of training; a test image needs one
    always. corrupt: the share of a coreset's labels, never the test's, that another class drawn
    uniformly replaces, by the seed. seeds: of random choices and of training.
    reselect: also score and select anew with each seed, so that the spread covers the method.
    weighted: add rows that train with the loss weights of Eq. 10, and their control."""

    test: PoolConfig
    labels: str = "cls"
    unlabeled: Literal["refuse", "drop"] = "refuse"
    corrupt: Annotated[float, Field(ge=0, le=1)] = 0.0
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    reselect: bool = False
    weighted: bool = True
    probe: ProbeConfig | None = ProbeConfig()
    knn: KnnProbeConfig | None = None
    resnet: Recipe | None = None

    @model_validator(mode="after")
    def _seeds_differ(self) -> "EvaluateConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} names a seed twice")
        return self

    @model_validator(mode="after")
    def _something_evaluates(self) -> "EvaluateConfig":
        if self.probe is None and self.knn is None and self.resnet is None:
            raise ValueError("none of probe, knn, resnet is set: set one, or evaluate: null")
        if self.resnet is not None and self.resnet.weighted:
            raise ValueError("resnet.weighted is set for each row: use evaluate.weighted instead")
        return self


class CandidateConfig(Section):
    """One way of selecting, for a comparison. method: what scores, or a selector that reads no
    scores; params: its settings, by default its own. selector, settings, balance: as
    select.method, params, balance; filters: as select.filters. weighted: the loss of what learns
    from it takes the manifest's weights, by default where these count the images that each stands
    for (`craig`, `gradmatch`). label: what tables call it. A name alone is a method."""

    method: str
    params: dict[str, Any] = {}
    selector: str | None = None
    settings: dict[str, Any] = {}
    balance: Literal["clusters", "pseudo_labels"] | None = None
    filters: tuple[FilterConfig, ...] = ()
    weighted: bool | None = None
    label: Annotated[str, Field(pattern=r"^[^|\n]{1,64}$")] | None = None

    def sections(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keys of `score` and of `select` that this stands for."""
        both = {"balance": self.balance, "filters": [f.model_dump() for f in self.filters]}
        if self.method in catalog.methods():
            score = {"method": self.method, "params": self.params}
            return score, {"method": self.selector, "params": self.settings, **both}
        known = catalog.selector_classes()
        if self.method not in known or catalog.reads_scores(self.method):
            alone = [*catalog.methods(), *(n for n in known if not catalog.reads_scores(n))]
            why = "is a selector that reads scores" if self.method in known else "does not exist"
            raise ValueError(f"method {self.method!r} {why}: there are {', '.join(alone)}")
        if self.selector is not None or self.settings:
            raise ValueError(
                f"method {self.method!r} selects by itself: give its settings as params, and no "
                "selector"
            )
        return {}, {"method": self.method, "params": self.params, **both}


class CompareConfig(Section):
    """methods × budgets × seeds on one embedding table, random always among the methods.
    signals: `anew` has every seed cluster and train anew, so that the spread covers them; `shared`
    takes those of signals.seed for all. measures: report what needs no labels of every coreset:
    coverage, duplicates, effective size."""

    methods: Annotated[tuple[CandidateConfig, ...], Field(min_length=1)]
    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    signals: Literal["anew", "shared"] = "anew"
    measures: bool = True

    @model_validator(mode="after")
    def _nothing_is_named_twice(self) -> "CompareConfig":
        for name in ("budgets", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} names one twice")
        return self


class WaitConfig(Section):
    """What the cluster has before a stage starts: an autoscaling one is asked for it, and stages
    that use no GPU wait for CPUs alone. minutes: after which the stage fails."""

    cpus: Positive = 1
    gpus: Annotated[int, Field(ge=0)] = 0
    minutes: Annotated[float, Field(gt=0)] = 30.0

    @property
    def cpus_alone(self) -> "WaitConfig":
        return self.model_copy(update={"gpus": 0})


class ContinualConfig(Section):
    """Classes arrive in tasks, and one classifier learns them in turn with a memory that replays
    what each of compare.methods chose of each task; compare.budgets are images that the memory
    holds, at compare.seeds. Labels split the pool into tasks; methods see none. tasks: the classes,
    by name, are split evenly. learns: of a new task `all` its images, or the `coreset` that goes
    into the memory alone, as where every label is paid for. mlp: a classifier on the embeddings;
    network: one on the images, trained in one process; epochs are of each task."""

    tasks: Annotated[int, Field(ge=2)] = 5
    learns: Literal["all", "coreset"] = "all"
    mlp: MlpRecipe | None = MlpRecipe()
    network: Recipe | None = None

    @model_validator(mode="after")
    def _something_learns(self) -> "ContinualConfig":
        if self.mlp is None and self.network is None:
            raise ValueError("none of mlp, network is set: set one")
        if self.network is not None and self.network.weighted:
            raise ValueError("network.weighted: a memory has no weights; leave it out")
        return self


class ComputeConfig(Section):
    """Speed only, but for train_workers: processes that share a training, each of which draws
    batches of its own, so that another number is another result. address: a Ray cluster (default:
    RAY_ADDRESS, else a running one, else a local Ray). encoders: encoder actors (default: as the
    GPUs, else the CPUs, allow).
    encoder_gpus: GPUs of one actor, a fraction puts several on a GPU. score_workers: processes
    that share the draws (default: one a CPU). row_shards: parts
    in which each of them holds the pool's rows, each in a process of its own. scratch: a folder
    of each machine for the pool's columns, $NAME/… where it lies elsewhere on each (default: in
    the workspace where that is a local folder). wait_for: nodes of a cluster that starts them on
    demand."""

    address: str | None = None
    wait_for: WaitConfig = WaitConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: Positive = 64
    encoders: Positive | None = None
    encoder_gpus: Annotated[float, Field(gt=0, le=1)] = 1.0
    score_workers: Positive | None = None
    row_shards: Positive | None = None
    scratch: str | None = None
    train_workers: Positive = 1
    loader_workers: Annotated[int, Field(ge=0)] = 0


class StorageConfig(Section):
    """Object stores: for every path of this configuration that lies in one and does not say
    otherwise in its own query (s3://bucket/prefix?region=eu-west-1). endpoint: a server other than
    the provider's, such as http://minio:9000. region: of the buckets, by default found out.
    anonymous: without credentials; else they come from the environment or the platform, never
    from here. attempts: of a request that fails in a way that may pass, by default 8, with growing
    pauses. connect_timeout: seconds to a connection (10); request_timeout: seconds without a
    byte (30). None of it is part of what identifies a result."""

    endpoint: str | None = None
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    anonymous: bool = False
    attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    connect_timeout: Annotated[float, Field(gt=0, le=3600)] | None = None
    request_timeout: Annotated[float, Field(gt=0, le=3600)] | None = None

    @model_validator(mode="after")
    def _endpoint_is_one(self) -> "StorageConfig":
        if self.endpoint is not None:
            endpoint_of(self.endpoint)
        return self

    def options(self) -> dict[str, str]:
        """What is set, as the query of a URI says it."""
        told = {k: getattr(self, k) for k in _changed(self, tuple(type(self).model_fields))}
        return {
            k: "true" if v is True else f"{v:g}" if isinstance(v, float) else str(v)
            for k, v in told.items()
        }


class Config(Section):
    """One run: from shards to an evaluated coreset, everything under `workspace`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "coreset"
    workspace: str
    pool: PoolConfig
    embed: EmbedConfig = EmbedConfig()
    pretrain: PretrainConfig | None = None
    score: ScoreConfig = ScoreConfig()
    signals: SignalsConfig = SignalsConfig()
    select: SelectConfig
    reselect: ReselectConfig = ReselectConfig()
    export: ExportConfig = ExportConfig()
    evaluate: EvaluateConfig | None = None
    compare: CompareConfig | None = None
    continual: ContinualConfig | None = None
    compute: ComputeConfig = ComputeConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _paths_are_readable(self) -> "Config":
        _check_paths(self)
        return self

    @model_validator(mode="after")
    def _pretraining_is_used(self) -> "Config":
        own = self.embed.own()
        if own is None and self.pretrain is not None:
            raise ValueError(
                f"pretrain: no encoder under embed.encoders has weights: {PRETRAINED}; set them, "
                "or leave this section out"
            )
        if own is not None and self.pretrain is None:
            raise ValueError(
                f"embed.encoders: {own.name!r} has weights {PRETRAINED!r}: say how it is trained "
                "in a section `pretrain`, which may be empty: pretrain: {}"
            )
        if self.signals.patterns.encoder.weights == PRETRAINED:
            raise ValueError(
                f"signals.patterns.encoder: weights {PRETRAINED!r} are for embed.encoders alone"
            )
        return self

    @model_validator(mode="after")
    def _selector_exists(self) -> "Config":
        name, params, searched = self.selector()
        rule = self.select.build(name, params)
        if not isinstance(rule, Rule):
            _check_alone(self, name, rule)
            return self
        for key in _changed(self.select, ("target", "partitions")):
            raise ValueError(f"select.{key}: method {name!r} keeps what scores say; leave it out")
        if searched is not None and searched != rule.searched:
            raise ValueError(f"select.params.{searched}: expected a value, got 'auto'")
        elif searched is None and self.select.search != SearchConfig():
            raise ValueError("select.search: no setting of select.params is auto; leave it out")
        return self

    @model_validator(mode="after")
    def _candidates_exist(self) -> "Config":
        if self.compare is not None:
            self.candidates()
        return self

    def candidates(self) -> dict[str, "Config"]:
        """A configuration for each method that is compared, by its label; random is the first."""
        assert self.compare is not None, "the caller checked"
        found = {"random": self._candidate(CandidateConfig(method="random"))}
        for place, candidate in enumerate(self.compare.methods):
            where = f"compare.methods.{place}"
            try:
                config = self._candidate(candidate)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            label = candidate.label or config.label + (" + weights" if config.weighted else "")
            if label in found and (label != "random" or config != found[label]):
                raise ValueError(f"{where}: a method before it is called {label!r}: set its label")
            found[label] = config
        return found

    def _candidate(self, candidate: CandidateConfig) -> "Config":
        assert self.compare is not None, "the caller checked"
        score, select = candidate.sections()
        score |= {"seed": self.score.seed}
        select |= {"budget": self.select.budget}
        given = {"score": score, "select": select, "compare": None, "continual": None}
        config = validate(Config, plain(self) | given)
        if self.evaluate is not None:
            own = config.weighting() == "each" if candidate.weighted is None else candidate.weighted
            config = config.replace("evaluate", weighted=own)
        if config.selector()[2] is None:
            return config
        search = self.select.search.model_copy(update={"budgets": self.compare.budgets})
        return config.replace("select", search=search)

    def selector(self) -> tuple[str, dict[str, Any], str | None]:
        """The name of the selector, its settings but the one that is `auto`, and that one."""
        name, params = self.select.method, self.select.params
        if name is None:
            name, own = type(self.score.build()).selector
            params = {**own, **params}
        searched = next((k for k, v in params.items() if v == "auto"), None)
        return name, {k: v for k, v in params.items() if k != searched}, searched

    @property
    def scores(self) -> bool:
        """Whether the selector reads scores."""
        return catalog.reads_scores(self.selector()[0])

    def rule(self, found: Any = None) -> catalog.Selector:
        """The selector; found: the value of the setting that was searched."""
        name, params, searched = self.selector()
        return self.select.build(name, params | ({searched: found} if searched else {}))

    def seeded(self, seed: int) -> "Config":
        """A copy whose scores, and the signals under them, come of another seed."""
        return self.replace("score", seed=seed).replace("signals", seed=seed)

    def baseline(self, seed: int) -> "Config":
        """A copy that chooses as many images at random."""
        select = SelectConfig(budget=self.select.budget, search=self.select.search)
        score = self.score.model_copy(update={"method": "random", "params": {}, "seed": seed})
        return self.model_copy(update={"score": score, "select": select})

    @property
    def weighted(self) -> bool:
        """Whether what learns from the selection takes its weights too."""
        return self.evaluate is not None and self.evaluate.weighted

    def weighting(self) -> Literal[True, "each"]:
        """How a training takes the selection's weights (`Recipe.weighted`): of each image where
        they count what it stands for, else as BlindCS does."""
        kind = catalog.selector_classes()[self.selector()[0]]
        return "each" if issubclass(kind, WholeSet) and kind.weighs else True

    @property
    def label(self) -> str:
        """What a table calls this way of selecting."""
        name = self.selector()[0]
        chain = [name]
        if self.scores:
            own = type(self.score.build()).selector[0]
            chain = [self.score.method, *([name] if name != own else [])]
        before = [wanted.method for wanted in self.select.filters]
        return " + ".join([*before, *chain, *(["balanced"] if self.select.balance else [])])

    def replace(self, section: str, **changes: Any) -> "Config":
        """A copy with keys of one section changed."""
        part = getattr(self, section).model_copy(update=changes)
        return self.model_copy(update={section: part})


def _paths(config: Config) -> dict[str, str]:
    """Every path of a configuration that may lie in a store, by its key."""
    found = {
        "workspace": config.workspace,
        "select.keep": config.select.keep,
        "export.out": config.export.out,
        "signals.labels": config.signals.labels,
        "signals.pseudo_labels.truth": config.signals.pseudo_labels.truth,
        "signals.patterns.encoder.weights": config.signals.patterns.encoder.weights,
    }
    for i, encoder in enumerate(config.embed.encoders):
        found[f"embed.encoders.{i}.weights"] = encoder.weights
    pools = {"pool": config.pool, "select.target": config.select.target}
    if config.evaluate is not None:
        found["evaluate.labels"] = config.evaluate.labels
        pools["evaluate.test"] = config.evaluate.test
    for name, pool in pools.items():
        if pool is not None:
            found[f"{name}.root"] = pool.root
            found |= {f"{name}.shards.{i}": entry for i, entry in enumerate(pool.shards)}
    return {key: path for key, path in found.items() if path is not None}


def _check_paths(config: Config) -> None:
    """`ValueError`, which repeats no path, for one that no store understands or that holds a key,
    and for an option of `storage` that none takes, or that would go to two kinds of store."""
    kinds, lists = set(), False
    for key, path in _paths(config).items():
        lists |= path.startswith("@")
        uri = path.removeprefix("@")
        if is_remote(uri):
            try:
                split(uri)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
            kinds.add(kind_of(uri))
    if config.compute.scratch is not None and is_remote(config.compute.scratch):
        raise ValueError("compute.scratch: expected a folder of each machine, not a store")
    for name in () if lists else config.storage.options():
        taking = sorted(kind for kind in kinds if name in options_of(kind))
        if not taking:
            raise ValueError(
                f"storage.{name}: no path of this configuration takes it; leave it out"
            )
        if name == "endpoint" and len(taking) > 1:
            raise ValueError(
                f"storage.endpoint would be that of {' and '.join(taking)} alike: leave it out and "
                "write it into the paths that it is for, as ?endpoint=http://HOST:PORT"
            )


def _check_alone(config: Config, name: str, method: catalog.Selector) -> None:
    """`ValueError` for a setting that a method which selects by itself would not read."""
    for key in _changed(config.score, ("method", "params", "until", "columns")):
        raise ValueError(f"score.{key}: select.method {name!r} reads no scores; leave it out")
    if (searched := config.selector()[2]) is not None:
        raise ValueError(f"select.params.{searched}: expected a value, got 'auto'")
    if config.select.search != SearchConfig():
        raise ValueError(f"select.search: method {name!r} has nothing to search; leave it out")
    whole = isinstance(method, WholeSet)
    if config.select.partitions != 1 and not whole:
        raise ValueError(f"select.partitions: method {name!r} lies in blocks anyway; leave it out")
    if config.select.partitions != 1 and whole and method.weighs:
        raise ValueError(f"select.{NO_PARTITIONS.format(config.select.partitions)}")
    if (config.select.target is not None) != (whole and method.targeted):
        raise ValueError(
            f"select.target: method {name!r} "
            + ("takes none; leave it out" if config.select.target else "asks for one; name shards")
        )


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The configuration in a YAML file, with `section.key=value` overrides applied in order.

    Raises `ValueError` that names the file, the path of each wrong key, its value and what was
    expected.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"configuration {str(path)!r} is not a file: give the path of a YAML file")
    if (size := file.stat().st_size) > _MOST:
        raise ValueError(
            f"configuration {str(path)!r} has {size} bytes, more than {_MOST}: is it the right "
            "file? A long list of shards goes into one of its own, named by pool.shards: '@FILE'"
        )
    try:
        data = yaml.load(file.read_text("utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of sections, got {type(data).__name__}")
    for text in overrides or []:
        _override(data, text)
    try:
        return validate(Config, _spelled_out(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:\n{error}") from None


def fingerprint(data: Any) -> str:
    """12 hex digits of the SHA-256 of the data as canonical JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain(config: Config) -> dict[str, Any]:
    """The whole configuration as JSON-able values, for the record."""
    return json.loads(config.model_dump_json())


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be fingerprinted")


def _spelled_out(data: dict[str, Any]) -> dict[str, Any]:
    """A single shard entry, encoder or filter written for a list of one, the name of an encoder,
    filter or compared method for it all."""
    for *sections, key in (
        ["pool", "shards"],
        ["pretrain", "pool", "shards"],
        ["evaluate", "test", "shards"],
        ["select", "target", "shards"],
        ["select", "filters"],
        ["embed", "encoders"],
    ):
        node: Any = data
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(key), (str, dict)):
            node[key] = [node[key]]
        name = {"encoders": "name", "filters": "method"}.get(key)
        if name and isinstance(node, dict) and isinstance(node.get(key), list):
            node[key] = [{name: e} if isinstance(e, str) else e for e in node[key]]
    compare = data.get("compare")
    if isinstance(compare, dict) and isinstance(compare.get("methods"), list):
        compare["methods"] = named = _named(compare["methods"])
        for entry in named:
            if isinstance(entry, dict) and isinstance(entry.get("filters"), list):
                entry["filters"] = _named(entry["filters"])
    return data


def _named(entries: list[Any]) -> list[Any]:
    return [{"method": entry} if isinstance(entry, str) else entry for entry in entries]


def _override(data: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ValueError(f"override {text!r}: expected section.key=value")
    *parents, last = path.split(".")
    node: Any = data
    for depth, step in enumerate(parents):
        child = _child(node, step, text)
        if not isinstance(child, (dict, list)):
            if child is not None:
                place = ".".join(parents[: depth + 1])
                raise ValueError(f"override {text!r}: {place} is {child!r}, which has no keys")
            child = node[int(step) if isinstance(node, list) else step] = {}
        node = child
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"override {text!r}: {value!r} is not a YAML value") from error
    if isinstance(node, list):
        _child(node, last, text)
        node[int(last)] = parsed
    else:
        node[last] = parsed


def _child(node: Any, step: str, text: str) -> Any:
    if isinstance(node, dict):
        return node.get(step)
    if not step.isdigit() or int(step) >= len(node):
        raise ValueError(f"override {text!r}: {step!r} is no position in a list of {len(node)}")
    return node[int(step)]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses tags and a key given twice, and reads 1e-4 as the number it is."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and (size := _written_out(node, {})) > _MOST:
            raise yaml.composer.ComposerError(  # type: ignore[attr-defined]
                None, None, f"its aliases written out would be {size} characters, more than {_MOST}"
            )
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"tag {event.tag!r}: a configuration has none", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """About as many characters as the node has once every alias in it is replaced by what it
    stands for; `known` holds what was counted. A node within itself counts once, and is refused
    later."""
    if id(node) not in known:
        known[id(node)] = 1
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in below for part in pair] if pairs else below
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        known[id(node)] += own + sum(_written_out(part, known) for part in parts)
    return known[id(node)]


_REPLACED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int")  # 1:30 is not 90, 010 not 8
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
