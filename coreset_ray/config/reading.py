"""A configuration read from YAML, strictly: no tags, no key given twice, bounded in size."""

import re
from pathlib import Path
from typing import Any

import yaml

from coreset_ray.config.whole import Config
from coreset_ray.strict import validate

_MOST = 4 << 20  # characters of a configuration, its aliases written out


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The configuration in a YAML file, with `section.key=value` overrides applied in order.

    Raises `ValueError` that names the file, the path of each wrong key, its value and what was
    expected.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"configuration {str(path)!r} is not a file: give the path of a YAML file")
    if (size := file.stat().st_size) > _MOST:
        raise ValueError(
            f"configuration {str(path)!r} has {size} bytes, more than {_MOST}: is it the right "
            "file? A long list of shards goes into one of its own, named by pool.shards: '@FILE'"
        )
    try:
        data = yaml.load(file.read_text("utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of sections, got {type(data).__name__}")
    for text in overrides or []:
        _override(data, text)
    try:
        return validate(Config, _spelled_out(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:\n{error}") from None


def _spelled_out(data: dict[str, Any]) -> dict[str, Any]:
    """A single shard entry, encoder or filter written for a list of one, the name of an encoder,
    filter or compared method for it all."""
    for *sections, key in (
        ["pool", "shards"],
        ["pretrain", "pool", "shards"],
        ["evaluate", "test", "shards"],
        ["select", "target", "shards"],
        ["select", "filters"],
        ["embed", "encoders"],
    ):
        node: Any = data
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(key), (str, dict)):
            node[key] = [node[key]]
        name = {"encoders": "name", "filters": "method"}.get(key)
        if name and isinstance(node, dict) and isinstance(node.get(key), list):
            node[key] = [{name: e} if isinstance(e, str) else e for e in node[key]]
    compare = data.get("compare")
    if isinstance(compare, dict) and isinstance(compare.get("methods"), list):
        compare["methods"] = named = _named(compare["methods"])
        for entry in named:
            if isinstance(entry, dict) and isinstance(entry.get("filters"), list):
                entry["filters"] = _named(entry["filters"])
    return data


def _named(entries: list[Any]) -> list[Any]:
    return [{"method": entry} if isinstance(entry, str) else entry for entry in entries]


def _override(data: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ValueError(f"override {text!r}: expected section.key=value")
    *parents, last = path.split(".")
    node: Any = data
    for depth, step in enumerate(parents):
        child = _child(node, step, text)
        if not isinstance(child, (dict, list)):
            if child is not None:
                place = ".".join(parents[: depth + 1])
                raise ValueError(f"override {text!r}: {place} is {child!r}, which has no keys")
            child = node[int(step) if isinstance(node, list) else step] = {}
        node = child
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"override {text!r}: {value!r} is not a YAML value") from error
    if isinstance(node, list):
        _child(node, last, text)
        node[int(last)] = parsed
    else:
        node[last] = parsed


def _child(node: Any, step: str, text: str) -> Any:
    if isinstance(node, dict):
        return node.get(step)
    if not step.isdigit() or int(step) >= len(node):
        raise ValueError(f"override {text!r}: {step!r} is no position in a list of {len(node)}")
    return node[int(step)]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses tags and a key given twice, and reads 1e-4 as the number it is."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and (size := _written_out(node, {})) > _MOST:
            raise yaml.composer.ComposerError(  # type: ignore[attr-defined]
                None, None, f"its aliases written out would be {size} characters, more than {_MOST}"
            )
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"tag {event.tag!r}: a configuration has none", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """About as many characters as the node has once every alias in it is replaced by what it
    stands for; `known` holds what was counted. A node within itself counts once, and is refused
    later."""
    if id(node) not in known:
        known[id(node)] = 1
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in below for part in pair] if pairs else below
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        known[id(node)] += own + sum(_written_out(part, known) for part in parts)
    return known[id(node)]


_REPLACED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int")  # 1:30 is not 90, 010 not 8
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
