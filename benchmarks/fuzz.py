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
    import yaml
    from test_fuzz import GOOD, IMAGES, TARS, check_image, check_samples, checked_config, read

_PLACE = Path(tempfile.mkdtemp())


def shards(data: bytes) -> None:
    samples, _ = read(data)
    check_samples(samples, data)


def config(data: bytes) -> None:
    checked_config(_PLACE / "config.yaml", data)


_TARGETS = {
    "shards": (shards, list(TARS.values())),
    "images": (check_image, list(IMAGES.values())),
    "config": (config, [yaml.safe_dump(GOOD).encode()]),
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
