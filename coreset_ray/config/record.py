"""A configuration as a record, and the content hash of anything."""

import dataclasses
import hashlib
import json
from typing import Any

from coreset_ray.config.section import Section


def fingerprint(data: Any) -> str:
    """12 hex digits of the SHA-256 of the data as canonical JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain(config: Section) -> dict[str, Any]:
    """A configuration, or a section of one, as JSON-able values, for the record."""
    return json.loads(config.model_dump_json())


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be fingerprinted")
