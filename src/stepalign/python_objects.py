"""Python functions and objects of a recipe: import by name, and the text by which a resumed run knows them again.

The text is the source of the function or class, with what it takes from its own module (functions, classes and their
bases, plain values), from an enclosing function, from its defaults and from what a decorator wrapped. It is recorded
like a template's words (`prompts.recorded`), so that a run keeps it and refuses to go on with another. Left out: the
state of an instance beyond plain attributes, functions in lists or dicts, and other modules.
"""

import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import cached_property, partial, reduce
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

from stepalign import prompts
from stepalign.config.python import PythonObject
from stepalign.errors import StepalignError, first_line

_PLAIN = (str, bytes, int, float, bool, type(None))


def load(function: PythonObject, key: str) -> Any:
    """Return the object, imported by its name where the recipe does not hold it, and record its text.

    Modules in the working directory are found as well.

    Args:
        function: the recipe's value.
        key: its key in the recipe, for messages and for the record's name: two lambdas have one name.

    Raises:
        StepalignError: module or name cannot be imported.
    """
    value = function.value
    if value is None:
        module, _, name = function.name.partition(":")
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        try:
            value = reduce(getattr, name.split("."), import_module(module))
        except Exception as error:  # a module is code
            raise StepalignError(f"{key} = {function.name!r}: cannot be imported: {first_line(error)}") from error
    if text := source_text(value):  # rows have none
        prompts.record(f"{key}.{function.name.replace(':', '.')}.py", text)
    return value


def source_text(value: Any) -> str:
    """Return the source of a function, class or instance, with what it depends on in its own module."""
    parts: dict[int, str] = {}
    _collect(value, parts)
    return "\n".join(part.rstrip() + "\n" for part in parts.values() if part)


def _collect(value: Any, parts: dict[int, str]) -> None:
    """Add the text of a value and of what it depends on, each once."""
    if id(value) in parts:
        return
    parts[id(value)] = ""
    if isinstance(value, partial):
        parts[id(value)] = f"# partial: {_plain(value.args)} {_plain(value.keywords)}"
        _collect(value.func, parts)
    elif isinstance(value, MethodType):
        _collect(value.__func__, parts)
        _collect(value.__self__, parts)
    elif isinstance(value, FunctionType):
        parts[id(value)] = _source(value, value.__code__)
        _collect_names(value, value, parts)
    elif isinstance(value, type):
        parts[id(value)] = _source(value)
        for base in value.__bases__:
            _collect_own(base, value.__module__, parts)
        for function in (function for member in vars(value).values() for function in _functions(member)):
            if _is_outside(function, value):
                _collect(function, parts)
            else:
                _collect_names(function, value, parts)
    elif type(value).__module__ != "builtins":
        parts[id(value)] = f"# attributes: {_plain(getattr(value, '__dict__', {}))}"
        _collect(type(value), parts)
    if not isinstance(value, type):
        for function in _functions(value):
            _collect(function, parts)


def _collect_names(function: FunctionType, owner: Any, parts: dict[int, str]) -> None:
    """Add what a function takes from elsewhere. Plain values join the text of its owner: itself, or its class."""
    for name, other in _names(function):
        if _is_plain(other):
            parts[id(owner)] += f"\n# {name} = {_text(other)}"
        else:
            _collect_own(other, owner.__module__, parts)


def _collect_own(value: Any, module: str, parts: dict[int, str]) -> None:
    """Collect a value that is of the same module."""
    if getattr(value, "__module__", None) == module or isinstance(value, partial):
        _collect(value, parts)


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield a function and those behind a wrapper (`functools.cache`), a static or class method, or a property."""
    if isinstance(value, FunctionType):
        yield value
    if isinstance(value, property):
        behind = [value.fget, value.fset, value.fdel]
    elif isinstance(value, cached_property):
        behind = [value.func]
    elif isinstance(value, staticmethod | classmethod):
        behind = [value.__func__]
    else:
        behind = [getattr(value, "__dict__", {}).get("__wrapped__")]
    for each in behind:
        if each is not None:
            yield from _functions(each)


def _is_outside(function: FunctionType, owner: type) -> bool:
    """Return whether a class's module has a function whose source is not part of the class's."""
    code = function.__code__
    is_inside = code.co_qualname.startswith(f"{owner.__qualname__}.") or code.co_filename.startswith("<")  # generated
    return function.__globals__.get("__name__") == owner.__module__ and not is_inside


def _source(value: Any, code: CodeType | None = None) -> str:
    """Return the source; where there is none, or for a lambda, a digest of the compiled code."""
    try:
        text = textwrap.dedent(inspect.getsource(code or value))
    except (OSError, TypeError):
        text = f"# {value.__qualname__}: no source"
    if code and (code.co_name == "<lambda>" or text.startswith("# ")):  # two lambdas may share a line
        digest = hashlib.blake2b(digest_size=8)
        for each in _codes(code):
            constants = [constant for constant in each.co_consts if not isinstance(constant, CodeType)]
            digest.update(each.co_code + _text((constants, each.co_names)).encode())
        text = (
            f"{text.rstrip()}\n# compiled by Python {sys.version_info[0]}.{sys.version_info[1]}: {digest.hexdigest()}"
        )
    return text


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function takes from its module, its enclosing function and its defaults."""
    for name in dict.fromkeys(name for code in _codes(function.__code__) for name in code.co_names):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from (("default", value) for value in function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).items()


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    return isinstance(value, _PLAIN)


def _plain(values: Any) -> str:
    """Return the plain ones of some values, and the types of the others."""
    if isinstance(values, Mapping):
        return _text({name: value if _is_plain(value) else type(value).__name__ for name, value in values.items()})
    return _text([value if _is_plain(value) else type(value).__name__ for value in values])


def _text(value: Any) -> str:
    """Return a value's `repr` with sets sorted, because their own order differs between processes."""
    if isinstance(value, set | frozenset) and value:
        items = f"{{{', '.join(sorted(map(_text, value)))}}}"
        return items if isinstance(value, set) else f"frozenset({items})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_text(key)}: {_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' * (len(value) == 1)})"
    return repr(value)
