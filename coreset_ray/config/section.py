"""What all sections of a configuration share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Budget = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]  # images, or their share


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def changed(section: Section, keys: tuple[str, ...]) -> list[str]:
    """Those of the keys that do not hold their default."""
    fields = type(section).model_fields
    return [key for key in keys if getattr(section, key) != fields[key].default]
