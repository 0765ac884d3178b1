"""Sections on how choices are judged."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from coreset_ray import catalog
from coreset_ray.config.choice import FilterConfig
from coreset_ray.config.pool import PoolConfig
from coreset_ray.config.section import Budget, Positive, Section, Seed
from coreset_ray.models.mlp import MlpRecipe
from coreset_ray.models.recipe import Recipe


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
    coverage, duplicates, effective size, and of how many of signals.clusters.count clusters, here
    by default a hundred, an image is kept."""

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
