"""Finds methods by looking in their folders: the file's name is the method's name."""

import difflib
import importlib
import inspect
import pkgutil
from functools import cache
from types import MappingProxyType
from typing import Any

from coreset_ray import filters as filter_folder
from coreset_ray import scores, selectors
from coreset_ray.core.filter import Filter
from coreset_ray.core.greedy import Greedy
from coreset_ray.core.method import Method, PerSample, Sampled, Scorer
from coreset_ray.core.rule import Rule
from coreset_ray.core.whole_set import WholeSet
from coreset_ray.strict import validate

_SHAPES = (PerSample, Sampled, Rule, Greedy, WholeSet, Filter)
Selector = Rule | Greedy | WholeSet


@cache
def methods() -> MappingProxyType[str, type[Scorer]]:
    """Every method that scores, by name."""
    return _found_in(scores, Scorer)


@cache
def selector_classes() -> MappingProxyType[str, type[Selector]]:
    """Every method that selects, by name: rules over scores, and those that need none."""
    return _found_in(selectors, (Rule, Greedy, WholeSet))


@cache
def filters() -> MappingProxyType[str, type[Filter]]:
    """Every filter, by name."""
    return _found_in(filter_folder, Filter)


def _found_in(folder: Any, kind: Any) -> MappingProxyType[str, Any]:
    found = {}
    for info in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{folder.__name__}.{info.name}")
        classes = [
            c
            for _, c in inspect.getmembers(module, inspect.isclass)
            if issubclass(c, kind) and c.__module__ == module.__name__
        ]
        assert len(classes) == 1, f"{module.__name__} must define exactly one method"
        found[info.name] = classes[0]
    return MappingProxyType(dict(sorted(found.items())))


def method_class(name: str) -> type[Scorer]:
    """The method of that name; `ValueError` with the nearest names when there is none."""
    return _named(name, methods(), "method")


def build(name: str, params: dict[str, Any], where: str = "") -> Scorer:
    """The method with these hyper-parameters, types checked strictly.

    where: how messages call the parameters' place. Raises `ValueError` for an unknown method or
    a setting of the wrong name, type or range.
    """
    return validate(method_class(name), params, where)


def build_selector(name: str, params: dict[str, Any], where: str = "") -> Selector:
    """The selector with these settings, as `build`."""
    return validate(_named(name, selector_classes(), "selector"), params, where)


def reads_scores(name: str) -> bool:
    """Whether the selector of that name is a rule over scores; others select by themselves."""
    return issubclass(_named(name, selector_classes(), "selector"), Rule)


def build_filter(name: str, params: dict[str, Any], where: str = "") -> Filter:
    """The filter with these settings, as `build`."""
    return validate(_named(name, filters(), "filter"), params, where)


def shape_of(method: type[Method]) -> str:
    """The name of a method's shape."""
    return next(shape.__name__ for shape in _SHAPES if issubclass(method, shape))


def _named(name: str, known: Any, what: str) -> Any:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{what} {name!r} does not exist: {hint}there are {', '.join(known)}")
    return known[name]
