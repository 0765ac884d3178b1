"""A training by Ray Train, from its name to what its first worker returns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Running:
    """How a training is run; what comes of it depends on `workers` and the kind of device alone.

    name, storage_path: where checkpoints go (a local path shared by all nodes, or a URI); a call
    with a name that has been there resumes it. workers: processes that share each batch, with a
    GPU each where use_gpu. loader_workers: processes that decode images, per worker; 0 decodes in
    the worker itself. checkpoint_every: epochs. max_failures: restarts before it fails.

    Raises `ValueError` for a number out of range, or a name that is no folder's.
    """

    name: str
    storage_path: str
    workers: int = 1
    use_gpu: bool = False
    loader_workers: int = 0
    checkpoint_every: int = 10
    max_failures: int = 3

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"name={self.name!r}: expected a folder name without a slash")
        least = {"workers": 1, "loader_workers": 0, "checkpoint_every": 1, "max_failures": -1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {bound}")


def fit(
    work: Callable[[dict[str, Any]], dict[str, Any]], job: Any, running: Running
) -> dict[str, Any]:
    """What `work` returns where rank is 0, called with {"job": job} on every worker.

    Where it catches `Hopeless` it returns {"hopeless": what was said}: Ray Train would retry what
    is raised. Raises `RuntimeError` for that, and after max_failures.
    """
    name, workers, use_gpu = running.name, running.workers, running.use_gpu
    place = locate(running.storage_path)
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=place.path,
            storage_filesystem=None if place.local else place.fs,
            failure_config=ray.train.FailureConfig(max_failures=running.max_failures),
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
