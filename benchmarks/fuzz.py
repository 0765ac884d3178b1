"""Shards, images and configurations made up by a fuzzer that is led by what code its inputs reach:
each has to give an answer or the one error that is promised.

    pip install atheris
    python benchmarks/fuzz.py shards|images|config [CORPUS ...] [-max_total_time=240]

The arguments after the first are libFuzzer's. It ends with the number of executions, or with a
crash and the file that holds the input.
"""

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")

with atheris.instrument_imports(include=["coreset_ray", "PIL", "yaml", "pydantic"]):
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import numpy as np
    from test_fuzz import IMAGES, MOST, TARS, check_samples, read

    from coreset_ray.config import load
    from coreset_ray.io.images import BadImage, decode

_WHOLE = b"workspace: runs/x\npool: {shards: [a.tar]}\nselect: {budget: 0.1}\n"
_PLACE = Path(tempfile.mkdtemp())


def shards(data: bytes) -> None:
    samples, _ = read(data)
    check_samples(samples, data)


def images(data: bytes) -> None:
    try:
        image = decode(data, MOST)
    except BadImage:
        return
    assert image.mode == "RGB" and 0 < image.width * image.height <= MOST
    assert np.asarray(image).shape == (image.height, image.width, 3)


def config(data: bytes) -> None:
    path = _PLACE / "config.yaml"
    path.write_bytes(data)
    try:
        load(path)
    except ValueError as error:
        assert str(error)


_TARGETS = {
    "shards": (shards, list(TARS.values())),
    "images": (images, list(IMAGES.values())),
    "config": (config, [_WHOLE]),
}


def main() -> None:
    target, seeds = _TARGETS[sys.argv.pop(1)]
    corpus = _PLACE / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus), "-print_final_stats=1"], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
