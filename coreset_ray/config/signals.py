"""Sections on what is computed of embeddings before anything is chosen."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from coreset_ray.clustering.deep import HeadSettings
from coreset_ray.config.section import Positive, Section, Seed
from coreset_ray.models.mlp import MlpRecipe, ProxyRecipe
from coreset_ray.models.recipe import Recipe
from coreset_ray.models.spec import EncoderSpec
from coreset_ray.strict import validate


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
    true ones of the whole pool. corrupt: the share of labels that are given which another class
    replaces, by signals.seed, for trials of what errors do; the same labels, and where the test set
    has the pool's classes by the same ones, that evaluate.corrupt replaces at that seed, where both
    shares are alike. classes: c, or `auto` to have it proposed,
    or counted in labels that are given."""

    labels: Annotated[str, Field(min_length=1)] = "pseudo"
    corrupt: Annotated[float, Field(ge=0, le=1)] = 0.0
    classes: Annotated[int, Field(ge=2)] | Literal["auto"] = "auto"
    seed: Seed = 0
    knn: KnnConfig = KnnConfig()
    clusters: ClustersConfig = ClustersConfig()
    pseudo_labels: PseudoLabelsConfig = PseudoLabelsConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    proxy: ProxyConfig = ProxyConfig()
    patterns: PatternsConfig = PatternsConfig()

    @model_validator(mode="after")
    def _wrong_labels_are_given(self) -> "SignalsConfig":
        if self.corrupt and self.labels == "pseudo":
            raise ValueError(
                f"corrupt={self.corrupt}: pseudo-labels err by themselves; leave it out, or name "
                "labels that are given by signals.labels"
            )
        return self
