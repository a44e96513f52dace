"""What the teacher is shown beyond the problem: one template file a design, under one fixed objective.

A template may use the problem, the reference solution and answer, the solver's own attempt, the critique of it, and
what follows from attempt and critique together: the wrong step as the solver wrote it, and the correct part before it
in other words. Whether a design needs a critic follows from the variables it uses.
"""

from dataclasses import dataclass, replace

from jinja2 import Template

from stepalign import prompts
from stepalign.contexts.paraphrase import reworded
from stepalign.critics.schema import trim
from stepalign.errors import StepalignError
from stepalign.records import Critique, Problem, Rollout
from stepalign.trace import parse

OF_CRITIQUE = frozenset({"critique", "wrong_step", "paraphrase"})
VARIABLES = OF_CRITIQUE | {"problem", "solution", "answer", "attempt"}

_CUT = "\n[…]"


@dataclass(frozen=True)
class Context:
    """A context design, ready to be rendered into teachers' messages."""

    name: str
    template: Template
    variables: frozenset[str]

    @property
    def needs_critique(self) -> bool:
        """Whether the design shows anything of a critique."""
        return not OF_CRITIQUE.isdisjoint(self.variables)

    @property
    def needs_solution(self) -> bool:
        """Whether the design shows the reference solution."""
        return "solution" in self.variables

    def render(self, problem: Problem, rollout: Rollout, critique: Critique | None = None, *, keep: float = 1.0) -> str:
        """The teacher's message.

        Args:
            problem: its statement is always shown whole.
            rollout: the attempt that is taught.
            critique: of that rollout; only designs that use none may go without.
            keep: the share of each shown text (solution, attempt, the critique's parts) to keep, from its
                beginning; below 1 the cut is marked.

        Raises:
            StepalignError: the template fails, or needs a critique and has none.
        """
        if critique is None and self.needs_critique:
            raise StepalignError(f"context {self.name}: rollout {rollout.id} has no critique to show")
        values: dict[str, object] = {
            "problem": problem.statement,
            "solution": _head(problem.solution, keep),
            "answer": problem.answer,
            "attempt": _head(rollout.text, keep),
        }
        if critique is not None:
            values |= {
                "critique": _shorten(critique, keep),
                "wrong_step": _head(_wrong_step(rollout, critique), keep),
                "paraphrase": _head(reworded(critique.correct_part), keep),
            }
        return prompts.render(self.template, values)


def load(name: str) -> Context:
    """A context that ships with the package, or a template file of the user's own."""
    template, used = prompts.load(name, VARIABLES)
    return Context(name=name, template=template, variables=used)


def _wrong_step(rollout: Rollout, critique: Critique) -> str:
    """The first wrong step in the solver's words; empty where nothing is wrong, or what is wrong was not written."""
    try:
        trace = parse(rollout.text)
        return trim(trace.content(trace.section(critique.first_error or 0)))
    except IndexError:
        return ""


def _shorten(critique: Critique, keep: float) -> Critique:
    if keep >= 1:
        return critique
    return replace(
        critique,
        text=_head(critique.text, keep),
        correct_part=_head(critique.correct_part, keep),
        corrected_step=_head(critique.corrected_step, keep),
        continuation=_head(critique.continuation, keep),
    )


def _head(text: str, keep: float) -> str:
    return text if keep >= 1 or not text else text[: int(len(text) * keep)] + _CUT
