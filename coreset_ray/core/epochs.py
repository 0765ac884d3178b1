"""What was recorded of each image in each epoch of a training, as a score reads it."""

import numpy as np

from coreset_ray.core.pool import Pool


def recorded(block: Pool, name: str, *, least: int = 1, setting: str = "") -> np.ndarray:
    """A column of `dynamics`, (rows, t) float64, row after row in memory so that what is summed
    over a row does not depend on its block.

    least: epochs that the method's `setting` asks for; `ValueError` where the record has fewer.
    """
    column = np.array(block[f"dynamics.{name}"], np.float64, order="C")
    if column.ndim != 2 or column.shape[1] == 0:
        raise ValueError(
            f"dynamics.{name} has shape {column.shape}: expected (n, t), a number for each epoch"
        )
    if column.shape[1] < least:
        raise ValueError(
            f"{setting}={least}: the dynamics hold {column.shape[1]} epochs; set {setting} lower, "
            "or train the proxy for more epochs"
        )
    return column


def check_at_least(setting: str, value: int, least: int) -> None:
    """`ValueError` for a number of epochs below the least that makes sense."""
    if value < least:
        raise ValueError(f"{setting}={value}: expected at least {least}")
