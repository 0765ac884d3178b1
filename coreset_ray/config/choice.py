"""Sections on what is chosen, and where it goes."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from coreset_ray import catalog
from coreset_ray.config.pool import PoolConfig
from coreset_ray.config.section import Budget, Positive, Section, Seed, changed
from coreset_ray.core.filter import Filter
from coreset_ray.core.method import Sampled, Scorer


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
            for name in changed(self, ("until", "columns")):
                raise ValueError(f"{name}: method {self.method!r} sums no draws; leave it out")
        return self

    def build(self) -> Scorer:
        return catalog.build(self.method, self.params, "score.params")


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
