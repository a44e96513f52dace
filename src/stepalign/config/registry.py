"""Base class of a recipe's tables, and registration of kinds: the decorator on a kind's table is the only list.

    @register("critic", "program", implementation="stepalign.critics.arithmetic.critic:ProgramCritic")
    class ProgramCriticConfig(CriticConfig):
        kind: Literal["program"] = "program"

A recipe's key of a family is annotated `Annotated[SerializeAsAny[CriticConfig], FAMILIES["critic"]]`: any kind that is
registered by the time a recipe is loaded is allowed there. The implementation is named as a string, so that a recipe
loads without importing torch.
"""

import difflib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from stepalign.config import trl
from stepalign.errors import StepalignError
from stepalign.io import home_expanded, short

Probability = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
ONE_OR_MORE = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
"""Take one string as a list of one."""
Urls = Annotated[tuple[str, ...], ONE_OR_MORE, Field(min_length=1)]
"""One URL, or a list of URLs."""

RUNTIME = Field(json_schema_extra={"runtime": True})
"""Mark of a key that changes memory, time or place but no result. It may change when a run resumes."""
TEMPLATE = Field(json_schema_extra={"template": True})
"""Mark of a key that names a file whose text is shown to a model (`config.trust`)."""
KEY_VARIABLE = Field(json_schema_extra={"runtime": True, "key_variable": True})
"""Mark of a `RUNTIME` key that names an environment variable whose value is sent to a server (`config.trust`)."""


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

_WANTED = {"tuple_type": "a list", "is_instance_of": "a path, as a string,", "model_type": "a table"}
"""TOML's words for types, by pydantic's name of the error."""


class _TableType(ModelMetaclass):
    """Type of tables: one that is made in Python has errors like one of a file."""

    if not TYPE_CHECKING:  # type checkers go by the fields

        def __call__(cls, **values: Any) -> Any:
            values = cls.from_keywords(values)
            try:
                return super().__call__(**values)
            except ValidationError as error:
                raise StepalignError(f"{cls.__name__}: not valid\n{fault_lines(cls, values, error)}") from None


class Table(BaseModel, metaclass=_TableType):
    """A table of the recipe: unknown keys are errors, types are not converted, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    alternatives: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Keys that exclude others: where one is laid over a base, the others become these values."""

    @model_validator(mode="before")
    @classmethod
    def _toml_has_no_tuples_and_no_paths(cls, values: object) -> object:
        """Take TOML's arrays as tuples, and strings as paths where a path is wanted; `~` is the home folder."""
        if not isinstance(values, Mapping):
            return values
        paths = {name for name, info in cls.model_fields.items() if Path in _parts(info)}
        return {
            key: tuple(value)
            if isinstance(value, list)
            else home_expanded(value)
            if key in paths and isinstance(value, str | Path) and "\0" not in str(value)
            else value
            for key, value in values.items()
        }

    @classmethod
    def from_keywords(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the table's values from the arguments with which it is made in Python."""
        return values

    def runtime_keys(self) -> Iterator[str]:
        """Yield the dotted names of the keys marked `RUNTIME`, those of inner tables included."""
        return (name for name, _ in self.marked("runtime"))

    def marked(self, mark: str) -> Iterator[tuple[str, Any]]:
        """Yield dotted name and value of the keys with a mark, those of inner tables included."""
        for prefix, table in self.tables():
            for name, info in type(table).model_fields.items():
                if isinstance(extra := info.json_schema_extra, dict) and extra.get(mark):
                    yield f"{prefix}{name}", getattr(table, name)

    def tables(self, prefix: str = "") -> Iterator[tuple[str, "Table"]]:
        """Yield this table and all inner ones, lists of tables included, each with the beginning of its keys' names."""
        yield prefix, self
        for name in type(self).model_fields:
            value = getattr(self, name)
            inner = {f"{index}.": one for index, one in enumerate(value)} if isinstance(value, tuple) else {"": value}
            for place, table in inner.items():
                if isinstance(table, Table):
                    yield from table.tables(f"{prefix}{name}.{place}")

    def extras(self) -> Iterator[tuple[str, str]]:
        """Yield each key of this table that needs an extra of Stepalign, as messages show it, and the extra."""
        yield from ()


T = TypeVar("T", bound=type[Table])


@dataclass(eq=False)
class Family:
    """The kinds that one table of a recipe may have."""

    name: str
    tag: str = "kind"
    """The key that names the kind."""
    default: str | None = None
    """The kind of a table without that key; None requires the key."""
    keeps_common_keys: bool = False
    """A table of another kind keeps the keys that both kinds have, where it is laid over one."""
    tables: dict[str, type[Table]] = field(default_factory=dict)
    implementations: dict[str, str] = field(default_factory=dict)

    def kind_of(self, values: Mapping[str, Any]) -> Any:
        """Return the kind that a table names or implies."""
        return values.get(self.tag, self.default)

    def replaces(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        """Return whether a table of this family names another kind than the one it is laid over."""
        return self.tag in new and self.kind_of(old) not in (None, new[self.tag])

    def kept(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a replaced table that the table of another kind keeps."""
        tables = [self.tables.get(kind) for kind in (self.kind_of(old), new[self.tag])]
        if not self.keeps_common_keys or None in tables:
            return {}
        return {key: value for key, value in old.items() if all(key in table.model_fields for table in tables if table)}

    def check(self, kind: Any) -> str:
        """Return a kind that is registered; raise a `PydanticCustomError` if it is missing (None) or is not."""
        if isinstance(kind, str) and kind in self.tables:
            return kind
        close = difflib.get_close_matches(str(kind), self.tables, n=1)
        fault = "missing" if kind is None else "unknown kind" + (f"; did you mean {close[0]}?" if close else "")
        kinds = ", ".join(self.tables)
        raise PydanticCustomError("kind", "{fault}; allowed: {kinds}", {"fault": fault, "kinds": kinds})

    def validate(self, values: object) -> object:
        """Validate a table as the kind that it names. Anything but a mapping is left to pydantic."""
        if not isinstance(values, Mapping):
            return values
        kind = self.kind_of(values)
        try:
            return self.tables[self.check(kind)].model_validate(values)
        except PydanticCustomError as refusal:
            error = InitErrorDetails(type=refusal, loc=(self.tag,), input=kind)
            raise ValidationError.from_exception_data(self.name, [error]) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by kind before the family's base class is checked."""
        return core_schema.no_info_before_validator_function(self.validate, handler(source))


_FAMILIES = (
    Family("algorithm", default="distillation"),
    Family("context", default="template", keeps_common_keys=True),
    Family("critic"),
    Family("grader", default="math"),
    Family("locator", default="critic"),
    Family("mender", default="program"),
    Family("sampler", default="transformers"),
    Family("source", tag="source"),
    Family("strategy", tag="strategy"),
    Family("teacher", default="base", keeps_common_keys=True),
)
FAMILIES = {family.name: family for family in _FAMILIES}
"""The families by name. Their kinds register themselves."""


def register(family: str, kind: str, *, implementation: str) -> Callable[[T], T]:
    """Register a recipe's table as a kind of a family.

    `implementation` is `module:name` of a class with `from_config(settings, **parts)`, or of a function that takes the
    same. It is imported when it is first built.
    """

    def add(table: T) -> T:
        FAMILIES[family].tables[kind] = table
        FAMILIES[family].implementations[kind] = implementation
        return table

    return add


def implementation(family: str, kind: str) -> Any:
    """Import the implementation of a registered kind."""
    module, _, name = FAMILIES[family].implementations[kind].partition(":")
    return getattr(import_module(module), name)


def build(settings: Table, **parts: Any) -> Any:
    """Build the implementation of a registered kind from its table, with the parts that its family documents."""
    names = ((family.name, kind) for family in FAMILIES.values() for kind in family.tables)
    family, kind = next(pair for pair in names if FAMILIES[pair[0]].tables[pair[1]] is type(settings))
    built = implementation(family, kind)
    return getattr(built, "from_config", built)(settings, **parts)


def nested(table: type[Table] | None, key: str, values: object) -> tuple[Family | None, type[Table] | None]:
    """Return the family and the class of the table behind a key, whose value names the kind."""
    parts = list(_parts(table.model_fields[key])) if table and key in table.model_fields else []
    family = next((part for part in parts if isinstance(part, Family)), None)
    if family is None:
        return None, next((part for part in parts if isinstance(part, type) and issubclass(part, Table)), None)
    kind = family.kind_of(values) if isinstance(values, Mapping) else None
    return family, family.tables.get(kind) if isinstance(kind, str) else None


def lay_over(base: dict[str, Any], values: Mapping[str, Any], table: type[Table] | None) -> None:
    """Lay values over a base, in place. Of a known table's class, a table of another kind replaces the old one."""
    for key, others in table.alternatives.items() if table else ():
        if values.get(key):
            base.update({other: value for other, value in others.items() if other not in values})
    for key, value in values.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            family, inner = nested(table, key, {**old, **value})
            if family is None or not family.replaces(old, value):
                lay_over(old, value, inner)
            else:
                base[key] = {**family.kept(old, value), **value}
        else:
            base[key] = value


def _parts(annotated: Any) -> Iterator[Any]:
    """Yield a field's type, the types inside it and their metadata."""
    yield annotated
    annotation = getattr(annotated, "annotation", None)
    inner = (*getattr(annotated, "metadata", ()), *([] if annotation is None else [annotation]))
    for part in (*inner, *typing.get_args(annotated)):
        yield from _parts(part)


def fault_lines(root: type[Table], values: Mapping[str, Any], error: ValidationError) -> str:
    """Return one indented line for each fault of a table's values: the key, what was found and what is allowed."""
    lines, places = [], [fault["loc"] for fault in error.errors()]
    for fault in error.errors():
        depth = len(fault["loc"])
        if fault["type"] == "too_short" and any(place[:depth] == fault["loc"] and place[depth:] for place in places):
            continue  # pydantic does not count items that are not valid
        key = ".".join(str(part) for part in fault["loc"] or ("the recipe",))
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            table = _table_at(root, values, fault["loc"])
            message = unknown_key(str(fault["loc"][-1]), table, list(key_paths(root, values)))
        elif fault["type"] in _WANTED:
            message = f"{_WANTED[fault['type']]} is wanted"
        elif fault["type"] == "missing":
            message = "missing"
        found = list(fault["input"]) if isinstance(fault["input"], tuple) else fault["input"]
        silent = message.startswith("missing") or isinstance(found, dict | Table)
        lines.append(f"  {key}: {message}" + ("" if silent else f" (found {short(found)})"))
    return "\n".join(lines)


def key_paths(table: type[Table], values: object) -> Iterator[list[str]]:
    """Yield the places of all keys below a table, of the kinds that its values name."""
    for name, info in table.model_fields.items():
        below = values.get(name) if isinstance(values, Mapping) else None
        inner = nested(table, name, below or {})[1]
        if inner is not None and not isinstance(info.default, tuple):  # no list of tables
            yield from ([name, key] for key in inner.model_fields)
            yield from ([name, *path] for path in key_paths(inner, below))


def unknown_key(name: str, table: type[Table] | None, paths: Sequence[Sequence[str]]) -> str:
    """Say what an unknown key may have meant.

    Args:
        name: the key.
        table: the class of the table that lacks it; None where it is not known.
        paths: the places of the recipe's keys (`key_paths`).
    """
    keys = list(table.model_fields) if table else []
    close = difflib.get_close_matches(name, keys, n=1)
    if not difflib.get_close_matches(name, close, cutoff=0.85):  # no typing error
        if said := trl.hint(name):
            return said
        family = next((family for family in FAMILIES.values() if table in family.tables.values()), Family(""))
        if kinds := [repr(kind) for kind, other in family.tables.items() if name in other.model_fields]:
            return f"unknown key; {family.tag} = {' or '.join(kinds)} has it"
        others = [path[-1] for path in paths]
        if name in others or not close:
            there = [name] if name in others else difflib.get_close_matches(name, others, n=1)
            close = [".".join(path) for path in paths if path[-1] in there]
    return f"unknown key; did you mean {' or '.join(close)}?" if close else f"unknown key; allowed: {', '.join(keys)}"


def _table_at(root: type[Table], values: Any, location: Sequence[int | str]) -> type[Table] | None:
    """Return the class of the table that holds a key."""
    table: type[Table] | None = root
    family: Family | None = None
    for part in location[:-1]:
        values = values[part]
        if isinstance(part, str):
            family, table = nested(table, part, values)
        elif family:
            table = family.tables.get(family.kind_of(values))
    return table
