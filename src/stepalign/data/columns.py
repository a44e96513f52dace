"""One row's values by column name, with errors that say where the row is, what was found, what is there."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from stepalign.errors import StepalignError

_EXACT = 2**53
"""Up to here every whole number is a float of its own."""


def value(row: Mapping[str, Any], column: str, where: str) -> Any:
    """The column's value.

    Raises:
        StepalignError: naming the columns that are there, where this one is not.
    """
    if column not in row:
        raise StepalignError(f"{where}: no column {column!r}; columns present: {', '.join(row) or 'none'}")
    return row[column]


def text(row: Mapping[str, Any], column: str, where: str) -> str:
    """The column's text; null is empty.

    Raises:
        StepalignError: where the column is missing or holds something else than text.
    """
    found = value(row, column, where)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise _unexpected(found, column, where, "text")
    return found


def text_or_number(row: Mapping[str, Any], column: str, where: str) -> str:
    """The column's text, or its number as text (72.0 becomes 72); null and NaN are empty.

    Raises:
        StepalignError: where the column is missing or holds something else.
    """
    found = value(row, column, where)
    match found:
        case None:
            return ""
        case str():
            return found
        case bool():
            raise _unexpected(found, column, where, "text or a number")
        case int():
            return str(found)
        case float() | Decimal() if math.isnan(found):
            return ""
        case float() if found.is_integer() and abs(found) <= _EXACT:
            return str(int(found))
        case float() | Decimal() if math.isfinite(found):
            return str(found)
    raise _unexpected(found, column, where, "text or a number")


def _unexpected(found: Any, column: str, where: str, wanted: str) -> StepalignError:
    shown = repr(found)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return StepalignError(f"{where}: column {column!r}: {wanted} is wanted, found {shown}")
