"""Base class and value types of a recipe's tables."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Probability = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Urls = Annotated[
    tuple[str, ...], BeforeValidator(lambda urls: (urls,) if isinstance(urls, str) else urls), Field(min_length=1)
]
"""One URL, or a list of URLs."""

RUNTIME = Field(json_schema_extra={"runtime": True})
"""Mark of a key that changes memory, time or place but no result. It may change when a run resumes."""


class Table(BaseModel):
    """A table of the recipe: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def runtime_keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the dotted names of the keys marked `RUNTIME`, those of inner tables included."""
        for name, field in type(self).model_fields.items():
            extra, value = field.json_schema_extra, getattr(self, name)
            if isinstance(extra, dict) and extra.get("runtime"):
                yield f"{prefix}{name}"
            elif isinstance(value, Table):
                yield from value.runtime_keys(f"{prefix}{name}.")
