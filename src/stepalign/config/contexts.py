"""The `[context]` tables: what the teacher is shown beyond the problem."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from stepalign.assets import PROMPTS
from stepalign.config.python import PYTHON, PythonObject
from stepalign.config.registry import FAMILIES, TEMPLATE, Table, register


def _fallback_beside(values: Mapping[str, Any]) -> str:
    folder, _, name = str(values.get("template", "")).partition("/")
    ships = folder in ("lab", "code") and any((PROMPTS / part / f"{name}.txt").is_file() for part in (folder, ""))
    return f"{folder}/refsol" if ships else "refsol"


class ContextConfig(Table):
    """Base of every context's table: the teacher's context beyond the problem."""

    kind: str
    shuffled: bool = False
    """Another problem's critique is shown, as a control; the end of the loss stays the rollout's own."""
    if TYPE_CHECKING:  # each kind declares it after the design that its default depends on
        fallback_template: str

    @property
    @abstractmethod
    def design(self) -> str | PythonObject:
        """The design, for `contexts.load`."""

    def __str__(self) -> str:
        """Name key and value, for messages."""
        design = self.design
        return f"context.{f'template = {design!r}' if isinstance(design, str) else f'function = {design.name!r}'}"


AnyContextConfig = Annotated[SerializeAsAny[ContextConfig], FAMILIES["context"]]


@register("context", "template", implementation="stepalign.contexts:from_config")
class TemplateContextConfig(ContextConfig):
    """One template file."""

    kind: Literal["template"] = "template"
    template: Annotated[str, TEMPLATE] = "refsol"
    """`refsol`, `stepalign`, `sdpo`, … (docs/contexts.md), or the path of a file of your own."""
    fallback_template: Annotated[str, TEMPLATE] = Field(default_factory=_fallback_beside)
    """The template in place of a missing critique; by default `refsol`, of `lab` or `code` beside theirs."""

    @property
    def design(self) -> str:
        """The template."""
        return self.template


@register("context", "python", implementation="stepalign.contexts:from_config")
class PythonContextConfig(ContextConfig):
    """A Python function that writes the teacher's message."""

    kind: Literal["python"] = "python"
    function: Annotated[PythonObject, PYTHON]
    """`module:name`. Its parameters are named like a template's variables, and say what is shown."""
    fallback_template: Annotated[str, TEMPLATE] = "refsol"
    """The template in place of a missing critique."""

    @property
    def design(self) -> PythonObject:
        """The function."""
        return self.function
