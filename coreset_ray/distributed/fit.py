"""A training by Ray Train, from its name to what its first worker returns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from coreset_ray.distributed.watch import needing
from coreset_ray.io.filesystem import locate


class Hopeless(Exception):
    """What no retry would mend; raised by all workers at the same point."""


@contextmanager
def hopeless_where_refused() -> Iterator[None]:
    """A `ValueError` about what is read, the same on every machine, is raised as `Hopeless`."""
    try:
        yield
    except ValueError as error:
        raise Hopeless(str(error)) from error


def fit(
    work: Callable[[dict[str, Any]], dict[str, Any]],
    job: Any,
    *,
    name: str,
    storage_path: str,
    workers: int,
    use_gpu: bool,
    max_failures: int,
) -> dict[str, Any]:
    """What `work` returns where rank is 0, called with {"job": job} on every worker.

    Where it catches `Hopeless` it returns {"hopeless": what was said}: Ray Train would retry what
    is raised. Raises `RuntimeError` for that, and after max_failures.
    """
    place = locate(storage_path)
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=place.path,
            storage_filesystem=None if place.local else place.fs,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        with needing("training", cpus=1.0, gpus=float(use_gpu), count=workers):
            outcome = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(f"training {name!r} failed: {error}") from error
    if outcome is None or "hopeless" in outcome:
        raise RuntimeError(f"training {name!r}: {(outcome or {}).get('hopeless', 'was aborted')}")
    return outcome
