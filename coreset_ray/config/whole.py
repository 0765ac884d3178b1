"""All sections of a run together, and what one says of another."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from coreset_ray import catalog
from coreset_ray.config.choice import (
    ExportConfig,
    ReselectConfig,
    ScoreConfig,
    SearchConfig,
    SelectConfig,
)
from coreset_ray.config.judging import (
    CandidateConfig,
    CompareConfig,
    ContinualConfig,
    EvaluateConfig,
)
from coreset_ray.config.pool import EmbedConfig, PoolConfig, PretrainConfig
from coreset_ray.config.record import plain
from coreset_ray.config.running import ComputeConfig, StorageConfig
from coreset_ray.config.section import Section, changed
from coreset_ray.config.signals import SignalsConfig
from coreset_ray.core.address import is_remote, kind_of, options_of, split
from coreset_ray.core.rule import Rule
from coreset_ray.core.whole_set import NO_PARTITIONS, WholeSet
from coreset_ray.models.spec import PRETRAINED
from coreset_ray.strict import validate


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
        for key in changed(self.select, ("target", "partitions")):
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
        if _targeted(select["method"]) and self.select.target is not None:
            select["target"] = plain(self.select.target)
        given = {"score": score, "select": select, "compare": None, "continual": None}
        config = validate(Config, plain(self) | given)
        if self.evaluate is not None:
            own = config.weighting() == "each" if candidate.weighted is None else candidate.weighted
            config = config.replace("evaluate", weighted=own)
        if config.selector()[2] is None:
            return config
        search = self.select.search.model_copy(update={"budgets": self.compare.budgets})
        return config.replace("select", search=search)

    def not_compared(self) -> list[str]:
        """Settings of this configuration that none of its candidates reads."""
        told = {"score": ("until", "columns"), "select": ("filters", "keep", "partitions")}
        return [f"{s}.{k}" for s, keys in told.items() for k in changed(getattr(self, s), keys)]

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

    def pools(self) -> dict[str, PoolConfig]:
        """Every set of shards that it names, by its key."""
        found = {"pool": self.pool, "select.target": self.select.target}
        if self.pretrain is not None:
            found["pretrain.pool"] = self.pretrain.pool
        if self.evaluate is not None:
            found["evaluate.test"] = self.evaluate.test
        return {key: pool for key, pool in found.items() if pool is not None}

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
    if config.evaluate is not None:
        found["evaluate.labels"] = config.evaluate.labels
    for name, pool in config.pools().items():
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


def _targeted(name: str | None) -> bool:
    kind = catalog.selector_classes().get(name or "")
    return kind is not None and issubclass(kind, WholeSet) and kind.targeted


def _check_alone(config: Config, name: str, method: catalog.Selector) -> None:
    """`ValueError` for a setting that a method which selects by itself would not read."""
    for key in changed(config.score, ("method", "params", "until", "columns")):
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
