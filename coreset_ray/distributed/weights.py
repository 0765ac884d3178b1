"""Weights of encoders that lie in a store, on the machine that loads them."""

from dataclasses import replace

from coreset_ray.core.address import is_remote
from coreset_ray.io.local_copy import local_copy
from coreset_ray.models.spec import EncoderSpec


def at_hand(spec: EncoderSpec) -> EncoderSpec:
    """The spec with a copy of its weights on this machine; as it was where they are local.

    Raises `ValueError` that names the encoder where there is no such file.
    """
    if spec.weights is None or not is_remote(spec.weights):
        return spec
    try:
        return replace(spec, weights=str(local_copy(spec.weights)))
    except ValueError as error:
        raise ValueError(f"encoder {spec.name!r}: its weights {error}") from None
