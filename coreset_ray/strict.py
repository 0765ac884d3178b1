"""Strict validation with errors that name the place, the value, what was expected and the
nearest valid key."""

import difflib
import json
import numbers
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
        return TypeAdapter(kind).validate_json(json.dumps(data, default=_number), strict=True)
    except ValidationError as error:
        items = [item for item in error.errors() if not _follows(item)]
        lines = dict.fromkeys(_line(kind, item, where) for item in items)
    raise ValueError("\n".join(lines))


def _number(value: Any) -> int | float:
    """A NumPy number as Python's; nothing else that JSON lacks is accepted."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise ValueError(f"{value!r} ({type(value).__name__}): expected plain text, numbers or lists")


def _follows(item: Any) -> bool:
    """Whether a list is too short only because items in it are wrong, which has its own line."""
    return item["type"] == "too_short" and item["ctx"]["actual_length"] < len(item["input"])


def _steps(kind: Any, item: Any) -> list[str | int]:
    """Keys and indices down to what is wrong; the branch of a union that was tried is left out."""
    *above, last = item["loc"] or ("",)
    unknown = item["type"] in ("extra_forbidden", "unexpected_keyword_argument")
    known, steps = _keys(kind), []
    for step in [*above, *([] if unknown else [last])]:
        if isinstance(step, int):
            steps.append(step)
        elif step in known:
            steps.append(step)
            known = _keys(known[step])
    return [*steps, last] if unknown else steps


def _line(kind: Any, item: Any, where: str) -> str:
    steps = _steps(kind, item)
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
    bare = not steps and not where
    return message if bare or message.startswith(path) else f"{path}: {message}"


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
