"""A training by Ray Train, from its name to what its first worker returns."""

import os
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer


class Hopeless(Exception):
    """What no retry would mend; raised by all workers at the same point."""


def fit(
    work: Callable[[dict[str, Any]], dict[str, Any]],
    job: Any,
    *,
    name: str,
    storage_path: str,
    workers: int,
    use_gpu: bool,
    resources_per_worker: dict[str, float] | None,
    max_failures: int,
) -> dict[str, Any]:
    """What `work` returns where rank is 0, called with {"job": job} on every worker.

    Where it catches `Hopeless` it returns {"hopeless": what was said}: Ray Train would retry what
    is raised. Raises `RuntimeError` for that, and after max_failures.
    """
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources_per_worker
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_path if "://" in storage_path else os.path.abspath(storage_path),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        outcome = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(f"training {name!r} failed: {error}") from error
    if outcome is None or "hopeless" in outcome:
        raise RuntimeError(f"training {name!r}: {(outcome or {}).get('hopeless', 'was aborted')}")
    return outcome
