"""Reads the source: which layer may import what, and calls that do not belong in this code."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STDLIB = frozenset(sys.stdlib_module_names)

# Layer → the modules (and all below them) that it may import, beside the standard library. The
# longest prefix of a file's module name decides its layer. A layer always sees itself, except
# for methods, which never import one another.
ALLOWED = {
    "coreset_ray": "coreset_ray.catalog coreset_ray.core coreset_ray.version numpy",
    "coreset_ray.version": "",
    "coreset_ray.versions": "",
    "coreset_ray.core": "numpy scipy numba llvmlite torch triton",
    "coreset_ray.scores": "coreset_ray.core numpy",
    "coreset_ray.selectors": "coreset_ray.core numpy",
    "coreset_ray.filters": "coreset_ray.core numpy",
    "coreset_ray.clustering": "coreset_ray.core numpy scipy numba torch sklearn faiss",
    "coreset_ray.models": "coreset_ray.core numpy torch torchvision timm open_clip PIL sklearn "
    "safetensors lightly",
    "coreset_ray.io": "coreset_ray.core pyarrow webdataset braceexpand PIL numpy torchvision "
    "sklearn",
    "coreset_ray.strict": "pydantic",
    "coreset_ray.catalog": "coreset_ray.scores coreset_ray.selectors coreset_ray.filters "
    "coreset_ray.core coreset_ray.strict",
    "coreset_ray.config": "coreset_ray.catalog coreset_ray.strict coreset_ray.core "
    "coreset_ray.models.spec coreset_ray.models.recipe coreset_ray.models.mlp "
    "coreset_ray.models.pretrain "
    "coreset_ray.clustering.deep pydantic yaml",
    "coreset_ray.telemetry": "coreset_ray.core",
    "coreset_ray.distributed": "coreset_ray.core coreset_ray.clustering coreset_ray.models "
    "coreset_ray.io coreset_ray.telemetry ray pyarrow numpy torch torchvision tqdm",
    "coreset_ray.help_text": "",
    "coreset_ray.cli": "coreset_ray pipelines",
    "pipelines": "coreset_ray pyarrow numpy matplotlib",
}
METHOD_FOLDERS = ("coreset_ray.scores", "coreset_ray.selectors", "coreset_ray.filters")
MAY_PRINT = ("coreset_ray.cli",)


def below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def layer_of(module: str) -> str:
    return max((layer for layer in ALLOWED if below(module, layer)), key=len)


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything imported, at the top, inside functions, by name in text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".") if is_package else module.split(".")[:-1]
                above = here[: len(here) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called(node).endswith(("import_module", "__import__")):
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def bad_imports(module: str, tree: ast.AST, is_package: bool = False) -> Iterator[str]:
    layer = layer_of(module)
    own = "" if layer in METHOD_FOLDERS or layer == "coreset_ray" else layer
    allowed = [*ALLOWED[layer].split(), *filter(None, [own])]
    for line, name in imports(tree, module, is_package):
        standard = name.split(".")[0] in STDLIB
        if not standard and not any(below(name, prefix) for prefix in allowed):
            yield f"{module}:{line}: imports {name}; {layer} may not"


def safe_loaders(tree: ast.AST) -> set[str]:
    """Names of SafeLoader and of the module's own classes that derive from it."""
    safe = {"SafeLoader", "yaml.SafeLoader"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and safe & {ast.unparse(b) for b in node.bases}:
            safe.add(node.name)
    return safe


def bad_calls(module: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        place = f"{module}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("pickle", "cloudpickle"):
            if node.attr != "UnpicklingError":
                yield f"{place}: uses pickle.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "cloudpickle"):
            yield from (
                f"{place}: imports {alias.name} of pickle"
                for alias in node.names
                if alias.name != "UnpicklingError"
            )
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name == "print" and module not in MAY_PRINT:
            yield f"{place}: prints"
        if name in ("eval", "exec", "builtins.eval", "builtins.exec"):
            yield f"{place}: calls {name}"
        if name == "torch.load" and given.get("weights_only") != "True":
            yield f"{place}: torch.load without weights_only=True"
        if name in ("yaml.load", "yaml.load_all"):
            loader = given.get("Loader", ast.unparse(node.args[1]) if node.args[1:] else "none")
            if loader not in safe_loaders(tree):
                yield f"{place}: {name} with Loader {loader}"
        if name.startswith("yaml.") and name.endswith(("unsafe_load", "full_load", "load_all")):
            yield f"{place}: calls {name}"


def problems(root: Path) -> list[str]:
    """Everything wrong in the packages below `root`."""
    found = []
    for path in sorted(p for top in ("coreset_ray", "pipelines") for p in (root / top).rglob("*")):
        if path.suffix != ".py":
            continue
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        tree = ast.parse(path.read_text("utf-8"), str(path))
        found += [*bad_imports(module, tree, is_package), *bad_calls(module, tree)]
        if parts[-1] in ("utils", "util", "select"):
            found.append(f"{module}: no file is called {path.name}")
    return found


def test_the_source_keeps_to_its_layers() -> None:
    assert problems(ROOT) == []


def test_every_folder_has_a_layer_of_its_own() -> None:
    """So that a new folder is not judged by the rules of the package around it."""
    modules = {p.stem for p in (ROOT / "coreset_ray").glob("*.py")} - {"__init__"}
    folders = {p.parent.name for p in (ROOT / "coreset_ray").glob("*/__init__.py")}
    assert len(folders) > 4 and "catalog" in modules
    assert {f"coreset_ray.{name}" for name in modules | folders} <= set(ALLOWED)


BROKEN = [
    ("coreset_ray/core/a.py", "import ray", "imports ray"),
    ("coreset_ray/core/a.py", "import numpy, pandas as p", "imports pandas"),
    ("coreset_ray/core/a.py", "def f():\n    import pyarrow.fs", "imports pyarrow.fs"),
    ("coreset_ray/core/a.py", "from coreset_ray.io import tables", "coreset_ray.io.tables"),
    ("coreset_ray/core/a.py", "from ..scores import random", "coreset_ray.scores.random"),
    ("coreset_ray/core/a.py", "from coreset_ray import scores", "imports coreset_ray.scores"),
    ("coreset_ray/core/__init__.py", "from ..io import a", "imports coreset_ray.io.a"),
    ("coreset_ray/scores/a.py", "from coreset_ray.scores.b import B", "coreset_ray.scores.b"),
    ("coreset_ray/scores/a.py", "from . import b", "imports coreset_ray.scores.b"),
    ("coreset_ray/scores/a.py", "import torch", "imports torch"),
    ("coreset_ray/scores/a.py", "from coreset_ray.selectors.b import B", "coreset_ray.selectors"),
    ("coreset_ray/selectors/a.py", "from coreset_ray.io.tables import T", "coreset_ray.io"),
    ("coreset_ray/clustering/a.py", "from coreset_ray.models.spec import S", "coreset_ray.models"),
    ("coreset_ray/models/a.py", "import ray.train", "imports ray.train"),
    ("coreset_ray/models/a.py", "import pyarrow", "imports pyarrow"),
    ("coreset_ray/models/a.py", "from coreset_ray.io.images import decode", "coreset_ray.io"),
    ("coreset_ray/io/a.py", "def f():\n    from ray import get", "imports ray.get"),
    ("coreset_ray/io/a.py", "from coreset_ray.scores.random import R", "coreset_ray.scores"),
    ("coreset_ray/io/a.py", "from coreset_ray.catalog import methods", "coreset_ray.catalog"),
    ("coreset_ray/catalog.py", "from coreset_ray.io.tables import T", "coreset_ray.io"),
    ("coreset_ray/catalog.py", "import importlib as i\ni.import_module('ray')", "imports ray"),
    (
        "coreset_ray/config/reading.py",
        "from coreset_ray.models.encoders import E",
        "models.encoders",
    ),
    ("coreset_ray/config/reading.py", "import ray", "imports ray"),
    ("coreset_ray/config/reading.py", "from coreset_ray.scores.blindcs import B", "scores.blindcs"),
    ("coreset_ray/strict.py", "from coreset_ray.catalog import build", "coreset_ray.catalog"),
    ("coreset_ray/distributed/a.py", "from coreset_ray.scores.random import R", "scores.random"),
    ("coreset_ray/distributed/a.py", "from coreset_ray.config import load", "coreset_ray.config"),
    ("coreset_ray/distributed/a.py", "from coreset_ray import catalog", "coreset_ray.catalog"),
    ("coreset_ray/__init__.py", "from coreset_ray.config import load", "coreset_ray.config"),
    ("coreset_ray/version.py", "import numpy", "imports numpy"),
    ("pipelines/a.py", "import ray", "imports ray"),
    ("pipelines/a.py", "import torch", "imports torch"),
    ("coreset_ray/core/a.py", "print(1)", "prints"),
    ("pipelines/a.py", "def f():\n    print()", "prints"),
    ("coreset_ray/models/a.py", "import pickle\npickle.load(f)", "uses pickle.load"),
    ("coreset_ray/models/a.py", "import pickle\nx = pickle.Unpickler", "pickle.Unpickler"),
    ("coreset_ray/models/a.py", "from pickle import loads", "imports loads of pickle"),
    ("coreset_ray/models/a.py", "import torch\ntorch.load(p)", "torch.load without"),
    ("coreset_ray/models/a.py", "torch.load(p, weights_only=False)", "torch.load without"),
    ("coreset_ray/config/reading.py", "yaml.load(t)", "Loader none"),
    ("coreset_ray/config/reading.py", "yaml.load(t, Loader=yaml.Loader)", "Loader yaml.Loader"),
    ("coreset_ray/config/reading.py", "yaml.load(t, yaml.FullLoader)", "Loader yaml.FullLoader"),
    (
        "coreset_ray/config/reading.py",
        "class L(yaml.Loader):\n    x = 1\nyaml.load(t, Loader=L)",
        "Loader L",
    ),
    ("coreset_ray/config/reading.py", "yaml.unsafe_load(t)", "calls yaml.unsafe_load"),
    ("coreset_ray/core/a.py", "x = eval('1')", "calls eval"),
    ("coreset_ray/core/a.py", "exec('x = 1')", "calls exec"),
    ("coreset_ray/core/utils.py", "", "no file is called utils.py"),
    ("pipelines/select.py", "", "no file is called select.py"),
]

SOUND = [
    ("coreset_ray/core/a.py", "import numpy as np, torch, numba\nfrom scipy import stats"),
    ("coreset_ray/core/a.py", "from coreset_ray.core.b import B\nfrom . import c"),
    ("coreset_ray/core/a.py", "model.eval()\nmodel.print()\nre.compile('x')"),
    ("coreset_ray/scores/a.py", "import json\nfrom coreset_ray.core.pool import Pool"),
    ("coreset_ray/models/a.py", "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError: ..."),
    ("coreset_ray/models/a.py", "import torch\ntorch.load(p, weights_only=True)"),
    ("coreset_ray/catalog.py", "from coreset_ray import scores"),
    ("coreset_ray/config/reading.py", "class L(yaml.SafeLoader): ...\nyaml.load(t, Loader=L)"),
    ("coreset_ray/cli.py", "print(1)\nfrom pipelines import run"),
    ("coreset_ray/distributed/a.py", "import ray\nfrom coreset_ray.io.tables import T"),
    ("pipelines/a.py", "import numpy\nfrom coreset_ray.distributed.embed import e"),
]


def lay(root: Path, file: str, source: str) -> Path:
    (root / file).parent.mkdir(parents=True)
    (root / file).write_text(source)
    return root


@pytest.mark.parametrize(("file", "source", "complaint"), BROKEN)
def test_a_broken_rule_is_reported(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    found = problems(lay(tmp_path, file, source))
    assert len(found) == 1 and complaint in found[0]


@pytest.mark.parametrize(("file", "source"), SOUND)
def test_what_is_allowed_is_not_reported(tmp_path: Path, file: str, source: str) -> None:
    assert problems(lay(tmp_path, file, source)) == []
