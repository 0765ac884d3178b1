"""Sections on what is embedded: the pool, the encoders, an encoder that learns from the pool."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from coreset_ray.config.section import Positive, Section, Seed
from coreset_ray.models.pretrain import RECIPES, PretrainRecipe
from coreset_ray.models.spec import PRETRAINED, EncoderSpec
from coreset_ray.strict import validate

_DEFAULT_ENCODERS = ("torchvision:resnet18", "open_clip:ViT-L-14/openai")


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
