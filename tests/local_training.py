"""Ray Train's local mode in the place of its processes: the same training in this process, with
checkpoints in their folder and failures tried again as on a cluster. Seconds instead of half a
minute; each kind of training is run by the real one too."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch
from ray.train.v2._internal.execution.train_fn_utils import LocalTrainFnUtils, set_train_fn_utils

from coreset_ray.distributed import fit


def split(how: dict[str, Any]) -> tuple[fit.Running, dict[str, Any]]:
    """A test's settings of a training in two: how it is run, and all others."""
    names = {field.name for field in fields(fit.Running)} & how.keys()
    running = fit.Running(**{name: how[name] for name in names})
    return running, {name: value for name, value in how.items() if name not in names}


class _Kept(LocalTrainFnUtils):
    """Ray's own, which forgets checkpoints with the process; these lie in a folder."""

    def __init__(self, folder: Path):
        super().__init__(folder.name)
        self.folder = folder
        if kept := sorted(folder.glob("checkpoint_[0-9]*")):
            self._last_checkpoint = ray.train.Checkpoint.from_directory(kept[-1])

    def report(
        self, metrics: dict[str, Any], checkpoint: ray.train.Checkpoint | None = None, **_: Any
    ) -> None:
        if checkpoint is not None:
            count = len(list(self.folder.glob("checkpoint_[0-9]*")))
            half = checkpoint.to_directory(self.folder / uuid.uuid4().hex)
            kept = Path(half).rename(self.folder / f"checkpoint_{count:06d}")
            checkpoint = ray.train.Checkpoint.from_directory(kept)
        super().report(metrics, checkpoint or self._last_checkpoint)


class InProcess:
    """Stands for `TorchTrainer`, of one worker without a GPU."""

    def __init__(
        self,
        work: Callable[[dict[str, Any]], Any],
        *,
        train_loop_config: dict[str, Any],
        scaling_config: ray.train.ScalingConfig,
        run_config: ray.train.RunConfig,
    ):
        assert scaling_config.num_workers == 1 and not scaling_config.use_gpu
        self.work, self.given = work, train_loop_config
        self.folder = Path(str(run_config.storage_path), str(run_config.name))
        self.failures = run_config.failure_config.max_failures  # type: ignore[union-attr]

    def fit(self) -> SimpleNamespace:
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            set_train_fn_utils(_Kept(self.folder))
            try:
                return SimpleNamespace(return_value=self.work(self.given))
            except Exception as error:
                if self.failures == 0:
                    raise ray.train.TrainingFailedError(str(error)) from error
                self.failures -= 1
            finally:
                set_train_fn_utils(None)


@contextmanager
def in_this_process() -> Iterator[None]:
    """Trainings in the block run here, on one thread as Ray's workers do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
            patch.setattr(fit, "TorchTrainer", InProcess)
            yield
    finally:
        torch.set_num_threads(threads)
