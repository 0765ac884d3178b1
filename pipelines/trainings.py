"""How a configuration's trainings are run, and what marks their results."""

from typing import Any

from coreset_ray.config import Config, fingerprint
from coreset_ray.distributed.fit import Running
from coreset_ray.distributed.session import choose_device, cluster
from coreset_ray.io.filesystem import Location


def trains_on_gpu(config: Config) -> bool:
    """Whether trainings have a GPU each worker; `ValueError` where there are GPUs, but too few."""
    gpu = choose_device(config.compute.device) == "cuda"
    if gpu and cluster().gpus < config.compute.train_workers:
        raise ValueError(
            f"compute.train_workers={config.compute.train_workers}: each takes a GPU, and this "
            f"cluster has {cluster().gpus:g}"
        )
    return gpu


def running(config: Config, folder: Location, name: str, checkpoint_every: int = 10) -> Running:
    """How a training of this name is run, with its checkpoints below the stage's folder."""
    return Running(
        name,
        (folder / "training").uri,
        workers=config.compute.train_workers,
        use_gpu=trains_on_gpu(config),
        loader_workers=config.compute.loader_workers,
        checkpoint_every=checkpoint_every,
    )


def training_mark(config: Config, content: list[Any]) -> str:
    """The fingerprint of what a training gives: another number of workers draws other batches."""
    workers = config.compute.train_workers
    return fingerprint([*content, workers] if workers > 1 else content)
