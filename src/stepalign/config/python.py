"""Python in a recipe: a function or an object, by its name `module:name` or as it is.

A recipe file names it. A recipe that is built in Python may hold the object itself. Both are written as a name, so
that two recipes can be compared. `stepalign.python_objects` imports what a name stands for.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from stepalign.errors import StepalignError

PYTHON = Field(json_schema_extra={"python": True})
"""Mark of a key that names Python code, which is run (`config.trust`)."""
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class PythonObject:
    """A function or an object with its name; `value` None is imported by the name."""

    name: str
    value: Any = None

    @classmethod
    def of(cls, value: object) -> Self:
        """Wrap a function, a class or an instance, under the name of its definition."""
        named = value if hasattr(value, "__qualname__") else getattr(value, "func", type(value))
        return cls(f"{named.__module__}:{named.__qualname__}", value)

    @classmethod
    def of_rows(cls, rows: Any) -> Self:
        """Wrap rows: a list of dicts or of `Problem` records, a DataFrame, or one split of a data set.

        Raises:
            StepalignError: `rows` holds no rows.
        """
        kind, values = type(rows).__name__, rows
        if hasattr(rows, "to_dicts"):  # Polars
            values = rows.to_dicts()
        elif hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # pandas
            values = rows.to_dict("records")
        elif isinstance(rows, Mapping):
            keys = ", ".join(map(str, rows))
            wanted = "rows (a list of dicts, a DataFrame or one split of a data set) are wanted"
            raise StepalignError(f"problems: {wanted}, found a {kind} with the keys {keys}")
        elif isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
            raise StepalignError(
                f"problems: a list, a DataFrame, a datasets.Dataset or a function is wanted, found {rows!r:.80}"
            )
        values = list(values)
        digest = hashlib.blake2b(repr(values).encode(errors="surrogatepass"), digest_size=8).hexdigest()
        return cls(f"<{len(values)} rows of a {kind}, digest {digest}>", values)

    @classmethod
    def _validate(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        if callable(value):
            return cls.of(value)
        if isinstance(value, str) and _NAME.fullmatch(value):
            return cls(value)
        wanted = "'module:name' is wanted"
        if isinstance(value, str) and (value.startswith("<") or "<" in value.partition(":")[2]):
            wanted += "; this was an object in Python, which a file cannot hold: give it again from Python"
        raise PydanticCustomError("python", wanted)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Take a name, a callable or a wrapped object. JSON holds the name."""
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda one: one.name, when_used="json"),
        )
