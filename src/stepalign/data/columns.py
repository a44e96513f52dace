"""A row's columns as a candidate: texts, numbers, lists, conversations, and statements from a template.

    columns = { statement = "messages", answer = "target", meta = ["level"] }

A conversation is a list of `{"role": …, "content": …}`. The last user turn is the problem, an assistant turn after it
the reference solution where no column has one. Earlier turns are not shown, and their rows are counted and named.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Self

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from stepalign import config
from stepalign.data.normalize import Candidate, cell, text
from stepalign.errors import StepalignError
from stepalign.io import short

log = logging.getLogger("stepalign")
_DEFAULT = config.ColumnsConfig()
_ROLES = ("system", "developer", "user", "assistant")


class ColumnReader:
    """Reader of a source's rows. As a context manager it says at the end what is not shown of them."""

    def __init__(self, name: str, columns: config.ColumnsConfig, source: str) -> None:
        """Compile the statement's template.

        Args:
            name: the beginning of the ids of rows without an id column.
            columns: the recipe's column map.
            source: the problems' source.

        Raises:
            StepalignError: the template is not valid.
        """
        self._name, self._columns, self._source = name, columns, source
        self._template, self._earlier = _template(columns), list[str]()

    def candidate(self, number: int, where: str, row: Mapping[str, Any]) -> Candidate:
        """Read a row.

        The default column `solution` may be absent; the problem then has no reference solution. One that the recipe
        names must be there.

        Raises:
            StepalignError: naming the place, the column, what was found and the columns that are there.
        """
        columns = self._columns
        statement, answered, is_later = _statement(row, columns, self._template, where)
        if is_later:
            self._earlier.append(where)
        without = not columns.solution or (columns.solution == _DEFAULT.solution and columns.solution not in row)
        return Candidate(
            where=where,
            id=text(row, columns.id, where, numbers=True) if columns.id is not None else f"{self._name}-{number}",
            statement=statement,
            answer=_answer(row, columns.answer, where),
            solution=answered if without else text(row, columns.solution, where),
            source=self._source,
            meta=_meta(row, columns, where),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._earlier:
            log.warning(
                "%s: %d conversations with earlier turns, which the solver is not shown, the first at %s",
                self._source, len(self._earlier), self._earlier[0],
            )  # fmt: skip


def _statement(
    row: Mapping[str, Any], columns: config.ColumnsConfig, template: Template | None, where: str
) -> tuple[str, str, bool]:
    """Return the statement, the answer turn of a conversation, and true where it has turns before the statement."""
    if template is not None:
        try:
            return template.render(row).strip(), "", False
        except Exception as error:  # a template is code
            present = ", ".join(row)
            raise StepalignError(f"{where}: columns.template: {error}; columns present: {present}") from None
    value = _plain(cell(row, columns.statement, where))
    if not isinstance(value, list):
        return text(row, columns.statement, where), "", False
    turns = [_turn(turn, columns.statement, where) for turn in value]
    system = [content for role, content in turns if role in ("system", "developer") and content.strip()]
    if system and columns.system == "refuse":
        raise StepalignError(
            f"{where}: column {columns.statement!r}: a system turn, {short(system[0])}. Set columns.system: 'prepend' "
            "puts it before the statement, 'drop' leaves it out (prompts.system then says what all problems share)"
        )
    spoken = [(role, content) for role, content in turns if role in ("user", "assistant")]
    last = max((place for place, (role, _) in enumerate(spoken) if role == "user"), default=None)
    if last is None:
        raise StepalignError(f"{where}: column {columns.statement!r}: a conversation without a user turn")
    before = system if columns.system == "prepend" else []
    answered = "\n\n".join(content for _, content in spoken[last + 1 :])
    return "\n\n".join([*before, spoken[last][1]]), answered, last > 0


def _turn(turn: Any, column: str, where: str) -> tuple[str, str]:
    if isinstance(turn, Mapping):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        role = {"human": "user", "gpt": "assistant"}.get(str(role), role)  # ShareGPT's names
        if isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text", "")) for part in content)
        if role in _ROLES and isinstance(content, str):
            return str(role), content
    raise StepalignError(
        f"{where}: column {column!r}: turns of {', '.join(_ROLES)} with text are wanted, found {short(turn)}"
    )


def _answer(row: Mapping[str, Any], column: str, where: str) -> str:
    """Return an answer; a list of several is one answer with several values."""
    value = _plain(cell(row, column, where))
    if not isinstance(value, list):
        return text({column: value}, column, where, numbers=True)
    return ", ".join(part for part in (text({column: one}, column, where, numbers=True) for one in value) if part)


def _meta(row: Mapping[str, Any], columns: config.ColumnsConfig, where: str) -> dict[str, Any]:
    names: Sequence[str] = columns.meta
    if "*" in names:
        used = {columns.statement, columns.answer, columns.solution, columns.id}
        names = [name for name in row if name not in used]
    kept = {}
    for name in names:
        value = _plain(cell(row, name, where))
        if not _is_json(value):
            raise StepalignError(
                f"{where}: column {name!r}: JSON cannot hold {short(value)}, so that it cannot be kept; list the "
                "columns to keep in columns.meta"
            )
        kept[name] = value
    return kept


def _plain(value: Any) -> Any:
    """Return arrays and tuples as lists, and numbers of NumPy as Python's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(part) for key, part in value.items())
    return value is None or isinstance(value, str | int | float)


def _template(columns: config.ColumnsConfig) -> Template | None:
    if columns.template is None:
        return None
    environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    try:
        if not meta.find_undeclared_variables(environment.parse(columns.template)):
            raise StepalignError("columns.template names no column; `{{ question }}` stands for the column question")
        return environment.from_string(columns.template)
    except TemplateError as error:
        raise StepalignError(f"columns.template: not a valid template: {error}") from None
