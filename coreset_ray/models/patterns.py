"""Images to local patterns: the patch tokens of a vision transformer's block, of which each image
keeps a few directions.

b images, t patch tokens of each, d numbers of a token, p patterns.
"""

from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize, one_hot

from coreset_ray.models.networks import load_model
from coreset_ray.models.preprocess import preprocess_of
from coreset_ray.models.spec import EncoderSpec, published

_ITERATIONS = 50  # at most; a few are enough for most images


class Patterns:
    """The `count` directions around which an image's patch tokens lie.

    spec: a transformer of timm's. block: whose tokens, 0 is the first and -1 the last; they pass
    the network's last normalisation, as DINO's intermediate layers do. device: "cpu", "cuda". The
    arithmetic is float32 on every device.

    width: d. prepare: images to what is called with.
    Source: Xie et al., 2023 (FreeSel), semantic patterns. Differs: every patch takes part, where
    the paper leaves out those that the class token attends to little; k-means is by direction.
    Raises ValueError: a network without blocks of tokens, no such block, fewer tokens than
    patterns, and whatever `load_model` raises.
    """

    def __init__(self, spec: EncoderSpec, *, block: int, count: int, device: str = "cpu") -> None:
        self.prepare, self.count = preprocess_of(spec), count
        self._model: Any = load_model(spec)
        depth = len(getattr(self._model, "blocks", ()))
        if not depth or not hasattr(self._model, "forward_intermediates"):
            raise ValueError(
                f"encoder {spec.name!r}: it has no blocks of patch tokens; name a vision "
                "transformer, such as timm:vit_small_patch16_224.dino"
            )
        if not -depth <= block < depth:
            raise ValueError(
                f"block={block}: encoder {spec.name!r} has {depth} blocks; choose 0 to {depth - 1} "
                "or, from the end, -1 and below"
            )
        self._block = block % depth
        size = self.prepare.size
        tokens, self.width = self._probe(spec, torch.zeros(1, 3, size, size))
        if tokens < count:
            raise ValueError(
                f"count={count}: encoder {spec.name!r} cuts an image of {size}x{size} pixels into "
                f"{tokens} patches; set count lower or input_size higher"
            )
        self._device = torch.device(device)
        self._model.to(self._device)

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(b, S, S, 3) uint8 of `prepare` → (b, p, d) float32, each of length 1."""
        images = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(self._device)
        tokens = self._tokens(self.prepare.normalise(images))
        return directions(normalize(tokens, dim=2), self.count).cpu().numpy()

    def _tokens(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, S, S) → (b, t, d)."""
        return self._model.forward_intermediates(
            images,
            indices=[self._block],
            norm=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )[0]

    def _probe(self, spec: EncoderSpec, blank: torch.Tensor) -> tuple[int, int]:
        """t and d."""
        try:
            with torch.inference_mode():
                _, tokens, width = self._tokens(blank).shape
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise ValueError(
                f"encoder {spec.name!r}: its blocks yield no patch tokens ({error}); name a vision "
                "transformer, such as timm:vit_small_patch16_224.dino"
            ) from error
        return tokens, width


def width_of_tokens(spec: EncoderSpec) -> int:
    """d, without weights."""
    import timm

    entry = published(spec)
    with torch.device("meta"):
        model: Any = timm.create_model(entry.model, pretrained=False)
    return model.num_features


def directions(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Spherical k-means of each image by itself, (b, t, d) of length 1 → (b, count, d) of length 1.

    Starts from the token nearest their mean, then each time the one that is least like those so
    far; ties to the first. A centre with no tokens, or with none left on balance, stays where it
    is. Nothing is drawn.
    """
    centers = _first(tokens, count)
    which = _nearest(tokens, centers)
    for _ in range(_ITERATIONS):
        member = one_hot(which, count).to(tokens.dtype)
        sums = member.transpose(1, 2) @ tokens
        moved = sums.norm(dim=2, keepdim=True) > 1e-6
        centers = torch.where(moved, normalize(sums, dim=2), centers)
        before, which = which, _nearest(tokens, centers)
        if torch.equal(which, before):
            break
    return centers


def _nearest(tokens: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Which centre each token is most like, (b, t); the first of equals."""
    return (tokens @ centers.transpose(1, 2)).argmax(dim=2)


def _first(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """(b, count, d): tokens as far apart as they are found in one turn each."""
    mean = tokens.mean(dim=1, keepdim=True)
    chosen = [_at(tokens, (tokens @ mean.transpose(1, 2))[..., 0].argmax(dim=1))]
    likeness = torch.full(tokens.shape[:2], -torch.inf, device=tokens.device)
    for _ in range(count - 1):
        last = (tokens @ chosen[-1].transpose(1, 2))[..., 0]
        likeness = torch.maximum(likeness, last)
        chosen.append(_at(tokens, likeness.argmin(dim=1)))
    return torch.cat(chosen, dim=1)


def _at(tokens: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """One token of each image, (b, 1, d)."""
    return tokens[torch.arange(len(tokens), device=tokens.device), place][:, None]
