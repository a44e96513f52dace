"""Base class and value types of a recipe's tables."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Probability = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Urls = Annotated[
    tuple[str, ...], BeforeValidator(lambda urls: (urls,) if isinstance(urls, str) else urls), Field(min_length=1)
]
"""One URL, or a list of URLs."""


class Table(BaseModel):
    """A table of the recipe: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
