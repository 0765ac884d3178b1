"""How fast the cluster multiplies matrices with all its CPUs at work."""

import time

import ray

from coreset_ray.distributed.session import Cluster

_SECONDS = 0.7
_SIDE = 768


def multiply_rate(on: Cluster) -> float:
    """Floating-point operations a second of one CPU in float32, all of them multiplying at once."""
    count = max(1, int(on.cpus))
    rates = ray.get([_multiply.remote() for _ in range(count)])
    return sum(rates) / count


@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def _multiply() -> float:
    import torch

    torch.set_num_threads(1)
    left, right = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE)
    torch.mm(left, right)
    start, done = time.monotonic(), 0
    while (spent := time.monotonic() - start) < _SECONDS:
        torch.mm(left, right)
        done += 1
    return 2.0 * _SIDE**3 * done / spent
