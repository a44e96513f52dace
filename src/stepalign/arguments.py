"""Arguments of the functions that Python users call, checked by their annotations before any work.

    @checked
    def sample(recipe: Recipe | Path | str, *, samples: PositiveInt = 1) -> list[Rollout]: ...

Left out: `**keywords`, which their receiver checks.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import cache, wraps
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import NonNegativeInt, PositiveInt

from stepalign.errors import StepalignError
from stepalign.io import short

F = TypeVar("F", bound=Callable[..., Any])

_LEAST = {PositiveInt: 1, NonNegativeInt: 0}
_WORDS = {Path: "a path", str: "a string", bool: "True or False", type(None): "None"}


def checked(function: F) -> F:
    """Raise a StepalignError, which names the argument, for a call with one of another type or out of its range."""
    signature = inspect.signature(function)
    hints = cache(lambda: get_type_hints(function, include_extras=True))

    @wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        for name, value in signature.bind(*args, **keywords).arguments.items():
            hint = hints().get(name, Any)
            if signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD and not _fits(value, hint):
                raise StepalignError(f"{name}: {' or '.join(_words(hint))} is wanted, found {short(value)}")
        return function(*args, **keywords)

    return cast(F, call)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type. Nothing is converted, and no path is empty."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts) and not (value == "" and Path in parts)
    if hint in _LEAST:
        return isinstance(value, int) and not isinstance(value, bool) and value >= _LEAST[hint]
    if origin is Literal:
        return value in parts
    if origin is Callable:
        return callable(value)
    if origin is not None:
        return isinstance(value, origin) and not isinstance(value, str) and all(_fits(one, parts[0]) for one in value)
    return hint is Any or isinstance(value, hint)


def _words(hint: Any) -> Iterator[str]:
    """Yield the types that a hint allows, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        yield from (word for part in parts if not (part is str and Path in parts) for word in _words(part))
    elif hint in _LEAST:
        yield f"a whole number from {_LEAST[hint]}"
    elif origin is Literal:
        yield from map(repr, parts)
    elif origin is Callable:
        yield "a function"
    elif origin is not None:
        yield "a list of " + " or ".join(f"{word.removeprefix('a ')}s" for word in _words(parts[0]))
    else:
        yield _WORDS.get(hint, f"a {hint.__name__}")
