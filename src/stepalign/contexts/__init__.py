"""Contexts: what the teacher is shown beyond the problem. A design is one template file, under one fixed objective.

A template uses the variables that it names, of

- `problem`, `solution`, `answer`: the problem's statement, reference solution and reference answer;
- `attempt`, `correct`, `feedback`: the solver's rollout, whether it was graded correct, and the grader's words on it;
- `sibling`: another rollout of the same problem that was graded correct, without its thinking;
- `demonstration`: another problem, with `statement`, `solution` and `answer`, as an example;
- `critique`: the critique of the rollout, with all its parts;
- `wrong_step`, `paraphrase`: the first wrong step as the solver wrote it, and the correct part in other words.

A design that names one of the last three needs a critic. One that names `sibling` needs groups of rollouts. A rollout
for which a design has nothing to show is not taught (`Context.missing`). To add a design, write a template
(`prompts/refsol.txt` is the shortest) and name it: `context.template = "my-context.txt"`. A Python function is a
design as well: its parameters have the names above, and it returns the message.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from stepalign import config, prompts, python_objects
from stepalign.config import PythonObject
from stepalign.contexts.others import response
from stepalign.contexts.paraphrase import paraphrase
from stepalign.critics import sample
from stepalign.critics.schema import trim
from stepalign.errors import StepalignError
from stepalign.records import Critique, Problem, Rollout
from stepalign.trace import parse_rollout

OF_CRITIQUE = frozenset({"critique", "wrong_step", "paraphrase"})
OF_OTHERS = frozenset({"sibling", "demonstration"})
VARIABLES = OF_CRITIQUE | OF_OTHERS | {"problem", "solution", "answer", "attempt", "correct", "feedback"}
BEFORE_ATTEMPT = frozenset({"problem", "solution", "answer"})
"""Variables that are known before a rollout is sampled."""
BEFORE_CRITIQUE = BEFORE_ATTEMPT | {"attempt", "correct", "feedback"}
"""Variables that are known before a rollout is critiqued."""

_CUT = "\n[…]"


@dataclass(frozen=True, kw_only=True)
class ContextInput:
    """Everything that a context may be made of."""

    problem: Problem
    rollout: Rollout
    """The attempt that the example teaches, graded."""
    critique: Critique | None = None
    sibling: Rollout | None = None
    """Another rollout of the same problem, to be shown in place of a solution (`others.successful_sibling`)."""
    demonstration: Problem | None = None
    """Another problem, with its solution (`others.demonstrations`)."""


@dataclass(frozen=True)
class Context:
    """A context design, ready to be rendered into teachers' messages."""

    name: str
    write: Callable[[dict[str, object]], str]
    variables: frozenset[str]

    @property
    def needs_critique(self) -> bool:
        """True if the design shows anything of a critique."""
        return not OF_CRITIQUE.isdisjoint(self.variables)

    @property
    def needs_solution(self) -> bool:
        """True if the design shows the reference solution."""
        return "solution" in self.variables

    @property
    def needs_siblings(self) -> bool:
        """True if the design shows another rollout of the problem."""
        return "sibling" in self.variables

    def missing(self, source: ContextInput) -> str:
        """Name what the design would show of this rollout and has not; empty if there is something to show.

        Of several (a sibling, else feedback), one is enough.
        """
        shown = self.variables & {"solution", "feedback", "sibling", "demonstration"}
        if not shown or self.needs_critique:
            return ""
        values = self._values(source, 1.0)
        return "" if any(values[name] for name in shown) else f"no {' or '.join(sorted(shown))}"

    def render(self, source: ContextInput, *, keep: float = 1.0) -> str:
        """Render the teacher's message.

        Args:
            source: what the template may name. Only designs that need no critique do without one.
            keep: the share of each text (solution, attempt, sibling, feedback, demonstration, the critique's parts) to
                keep, from its beginning. Below 1 the cut is marked. The problem's statement is always whole.
        """
        if source.critique is None and self.needs_critique:
            raise StepalignError(f"context {self.name}: rollout {source.rollout.id} has no critique to show")
        return self.write(self._values(source, keep))

    def _values(self, source: ContextInput, keep: float) -> dict[str, object]:
        problem, rollout, critique = source.problem, source.rollout, source.critique
        sibling, demonstration = source.sibling, source.demonstration
        values: dict[str, object] = {
            "problem": problem.statement,
            "solution": _cut(problem.solution, keep),
            "answer": problem.answer,
            "attempt": _cut(rollout.text, keep),
            "correct": rollout.correct,
            "feedback": _cut(rollout.grade.feedback if rollout.grade else "", keep),
            "sibling": _cut(response(sibling), keep) if sibling else "",
            "demonstration": demonstration
            and replace(
                demonstration,
                statement=_cut(demonstration.statement, keep),
                solution=_cut(demonstration.solution, keep),
            ),
        }
        if critique is not None:
            values |= {
                "critique": _cut_critique(critique, keep),
                "wrong_step": _cut(_wrong_step(rollout, critique), keep),
                "paraphrase": _cut(paraphrase(critique.correct_part), keep),
            }
        return values


def from_config(settings: config.ContextConfig) -> Context:
    """Load a recipe's context."""
    return load(settings.design)


def load(design: str | PythonObject | Callable[..., str]) -> Context:
    """Load a context of the package, a template file of the user's own, or a function, and render it once."""
    if not isinstance(design, str):
        context = _of_function(design if isinstance(design, PythonObject) else PythonObject.of(design))
    else:
        template, used = prompts.load(design, VARIABLES)
        context = Context(name=design, write=partial(prompts.render, template), variables=used)
    context.render(
        ContextInput(
            problem=sample.PROBLEM,
            rollout=sample.ROLLOUT,
            critique=sample.CRITIQUE,
            sibling=sample.ROLLOUT,
            demonstration=sample.PROBLEM,
        )
    )
    return context


def check_solutions(context: Context, problems: Sequence[Problem], *, reason: str = "") -> None:
    """Raise a StepalignError, with the reason, where a context shows a reference solution and problems have none."""
    lacking = [problem.id for problem in problems if not problem.solution]
    if context.needs_solution and lacking:
        raise StepalignError(
            f"context {context.name!r} shows the reference solution, but {len(lacking)} of {len(problems)} "
            f"problems have none (the first: {lacking[0]}){reason}"
        )


def _of_function(design: PythonObject) -> Context:
    function = python_objects.load(design, "context.function")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise StepalignError(f"context {design.name}: a function is wanted, found {function!r:.80}") from None
    named = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    required = {one.name for one in parameters if one.default is one.empty or one.name not in named}
    if unknown := sorted(required - VARIABLES):
        raise StepalignError(
            f"context {design.name}: unknown parameters {', '.join(unknown)}; allowed: {', '.join(sorted(VARIABLES))}"
        )
    shown = frozenset(named & VARIABLES)

    def write(values: dict[str, object]) -> str:
        try:
            text = function(**{name: values[name] for name in shown})
        except Exception as error:  # the user's own code
            raise StepalignError(f"context {design.name}: the function failed: {error!r}") from error
        if not isinstance(text, str):
            raise StepalignError(f"context {design.name}: it returned {text!r:.80}, a message is wanted")
        return text.strip()

    return Context(name=design.name, write=write, variables=shown)


def _wrong_step(rollout: Rollout, critique: Critique) -> str:
    """Return the first wrong step in the solver's words; empty without one."""
    try:
        trace = parse_rollout(rollout)
        return trim(trace.content(trace.section(critique.first_error or 0)))
    except IndexError:
        return ""


def _cut_critique(critique: Critique, keep: float) -> Critique:
    return replace(
        critique,
        text=_cut(critique.text, keep),
        correct_part=_cut(critique.correct_part, keep),
        corrected_step=_cut(critique.corrected_step, keep),
        continuation=_cut(critique.continuation, keep),
    )


def _cut(text: str, keep: float) -> str:
    return text if keep >= 1 or not text else text[: int(len(text) * keep)] + _CUT
