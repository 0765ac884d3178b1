"""embedding table → how many classes there seem to be, where the configuration does not say."""

from typing import Any

from coreset_ray.config import Config


def count(config: Config) -> int:
    """Classes: as configured, else as proposed; `NotReady` where that is to do."""
    if config.signals.classes == "auto":
        raise NotImplementedError
    return config.signals.classes


def run(config: Config) -> dict[str, Any]:
    return {}
