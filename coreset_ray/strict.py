"""Strict validation with errors that name the place, the value, what was expected and the
nearest valid key."""

import difflib
import json
import typing
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

T = TypeVar("T")


def validate(kind: type[T], data: Any, where: str = "") -> T:
    """`data` (plain YAML or JSON values) as an instance of `kind`, without any coercion.

    where: a prefix for the paths in messages, such as `score.params`.
    Raises `ValueError`, one line for each thing that is wrong.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        lines = dict.fromkeys(_line(kind, item, where) for item in error.errors())
    raise ValueError("\n".join(lines))


def _line(kind: Any, item: Any, where: str) -> str:
    # Beside keys and indices a path holds the branch of a union that was tried: left out.
    steps = [s for s in item["loc"] if isinstance(s, int) or s.isidentifier()]
    steps = [s for s in steps if s not in ("int", "float", "str", "bool") and s != kind]
    path = ".".join(filter(None, [where, *map(str, steps)])) or "the configuration"
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown_key(kind, steps, path)
    if item["type"] in ("missing", "missing_argument"):
        return f"{path}: missing, and has no default"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if message != item["msg"] and not item["msg"].startswith("Value error"):
        message = f"expected {message}"
    if item["type"] != "value_error":
        return f"{path}: {message}, got {_short(item)}"
    return message if not steps or message.startswith(path) else f"{path}: {message}"


def _unknown_key(kind: Any, steps: list[Any], path: str) -> str:
    known = _keys(kind)
    for step in steps[:-1]:
        if not isinstance(step, int):  # an index stays with the keys of the sequence's items
            known = _keys(known.get(step))
    near = difflib.get_close_matches(str(steps[-1]), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{path}: unknown key; {hint}valid keys here: {', '.join(known) or 'none'}"


def _keys(kind: Any) -> dict[str, Any]:
    """Key → type of what a record type holds; looks through unions and sequences."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {f.name: hints[f.name] for f in fields(kind)}
    found: dict[str, Any] = {}
    for part in typing.get_args(kind):
        found |= _keys(part)
    return found


def _short(item: Any) -> str:
    text = repr(item["input"])
    return text if len(text) <= 120 else text[:117] + "..."
