"""Time of one step of many batched heads against as many steps of one head, in one run.

    python benchmarks/heads.py [--heads 50] [--width 1280] [--batch 512] [--threads 2] [--gpu]

Random embeddings, TEMI's settings, 10 classes. The two sides take turns; the median of each, and
the share of one head's time that arithmetic must take at the speed of a large matrix product.
"""

import argparse
import time

import numpy as np
import torch

from coreset_ray.clustering.deep import DeepClustering, HeadSettings
from coreset_ray.clustering.heads import Heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, default=50)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if options.gpu else "cpu"
    pairs = torch.randn(2, options.batch, options.width, device=device)
    many, one = (clustering(heads, options, device) for heads in (options.heads, 1))
    times: dict[str, list[float]] = {"many": [], "one": [], "product": []}
    for _ in range(options.rounds):
        times["many"].append(seconds(lambda: many.step(pairs, 1e-4), 1))
        times["one"].append(seconds(lambda: one.step(pairs, 1e-4), 5))
        times["product"].append(seconds(lambda: pairs[0] @ one.student.weight[0][0], 20))
    median = {name: float(np.median(found)) for name, found in times.items()}
    ratio = median["many"] / (options.heads * median["one"])
    # Student forth and back, teacher forth, of both rows; no gradient goes to the input.
    product, rest = options.width * 512, 512 * 256 + 256 * 10
    bound = 2 * (3 * product + 4 * rest) / product * median["product"] / median["one"]
    print(
        f"{device}, {options.threads} threads, {options.width} dimensions, batch {options.batch}: "
        f"{options.heads} heads {1e3 * median['many']:.0f} ms, one {1e3 * median['one']:.1f} ms, "
        f"ratio {ratio:.2f}; arithmetic is {bound:.0%} of one head's step"
    )


def clustering(heads: int, options: argparse.Namespace, device: str) -> DeepClustering:
    width = options.width
    start = Heads(torch.zeros(width), torch.ones(width), 10, heads).to(device)
    return DeepClustering(HeadSettings(heads=heads, batch_size=options.batch), start)


def seconds(step, times: int) -> float:
    """Of one, after one that is not counted."""
    step()
    _wait()
    start = time.perf_counter()
    for _ in range(times):
        step()
    _wait()
    return (time.perf_counter() - start) / times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
