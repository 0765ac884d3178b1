"""Finds methods by looking in their folders: the file's name is the method's name."""

import difflib
import importlib
import inspect
import pkgutil
from functools import cache
from types import MappingProxyType
from typing import Any

from coreset_ray import scores
from coreset_ray.core.method import PerSample, Sampled, Scorer
from coreset_ray.strict import validate

_FOLDERS = (scores,)
_SHAPES = (PerSample, Sampled)


@cache
def methods() -> MappingProxyType[str, type[Scorer]]:
    """Every method by name."""
    found = {}
    for folder in _FOLDERS:
        for info in pkgutil.iter_modules(folder.__path__):
            module = importlib.import_module(f"{folder.__name__}.{info.name}")
            classes = [c for _, c in inspect.getmembers(module, _is_method_of(module))]
            assert len(classes) == 1, f"{module.__name__} must define exactly one method"
            found[info.name] = classes[0]
    return MappingProxyType(dict(sorted(found.items())))


def method_class(name: str) -> type[Scorer]:
    """The method of that name; `ValueError` with the nearest names when there is none."""
    if name not in methods():
        near = difflib.get_close_matches(name, methods(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"method {name!r} does not exist: {hint}there are {', '.join(methods())}")
    return methods()[name]


def build(name: str, params: dict[str, Any], where: str = "") -> Scorer:
    """The method with these hyper-parameters, types checked strictly.

    where: how messages call the parameters' place. Raises `ValueError` for an unknown method or
    a setting of the wrong name, type or range.
    """
    return validate(method_class(name), params, where)


def shape_of(method: type[Scorer]) -> str:
    """The name of a method's shape."""
    return next(shape.__name__ for shape in _SHAPES if issubclass(method, shape))


def _is_method_of(module):
    return lambda c: (
        inspect.isclass(c) and issubclass(c, Scorer) and c.__module__ == module.__name__
    )
