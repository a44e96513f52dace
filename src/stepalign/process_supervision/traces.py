"""Solutions of ProcessBench as the solver's own traces, with the first wrong step that people marked.

Each step gets a heading, `### Step k:`, so that critics and contexts read it as a step. A step's own headings lose
their `#`, which would divide it. Grades are the data set's. Reference answers and solutions are those of the recipe's
training problems with the same statement; without one, the answer is that of a right solution of the same problem.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

from stepalign.chat import Chat
from stepalign.data.normalize import statement_digest
from stepalign.data.processbench import DATASET, LabelledSolution
from stepalign.error_injection.sets import to_rollout
from stepalign.errors import StepalignError
from stepalign.evaluation.critic_benchmark import evenly_spaced
from stepalign.io import write_jsonl
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Mark, Problem, Rollout
from stepalign.trace import parse, token_span

NOT_IN_STEPS = "steps that cannot stand under headings"

_HEADING = re.compile(r"^( {0,3})#{1,6}[ \t]*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class LabelledTrace:
    """A trace and its label."""

    problem: Problem
    rollout: Rollout
    spans: tuple[tuple[int, int], ...]
    """The characters `[start, end)` of each step, heading included. They tile the text."""
    first_error: int | None
    """The first wrong step, counted from 1; None where every step is right."""
    answer_known: bool
    """True if the problem's answer is known. Without one, the problem's `answer` is a question mark."""

    def step_of(self, section: int) -> int | None:
        """Return the step with a section of a critique, which counts a `Final Answer:` inside a step as one more.

        None for a section behind the last step, where something is missing.
        """
        try:
            start = parse(self.rollout.text, 0).section(section).start
        except IndexError:
            return None
        return next(k for k, (_, end) in enumerate(self.spans, start=1) if start < end)

    def labelled_step(self, section: int) -> int:
        """Return the step with a section of a critique; one more than there are for a section behind the last."""
        return self.step_of(section) or len(self.spans) + 1

    def by_step(self, scores: Sequence[float]) -> list[float]:
        """Return each step's lowest score, from the scores of the sections of a critique."""
        steps = [self.labelled_step(section) for section in range(1, len(scores) + 1)]
        return [min(one for one, step in zip(scores, steps, strict=True) if step == k) for k in sorted(set(steps))]

    @property
    def token_spans(self) -> tuple[tuple[int, int], ...]:
        """The completion tokens `[first, stop)` of each step. A token across a boundary belongs to the later step."""
        starts = [token_span(self.rollout, start, end)[0] for start, end in self.spans]
        return tuple(zip(starts, [*starts[1:], len(self.rollout.completion_ids)], strict=True))


@dataclass(frozen=True, kw_only=True)
class LabelledTraces:
    """The traces of a file."""

    traces: tuple[LabelledTrace, ...]
    dropped: Counter[str] = field(default_factory=Counter)
    """Solutions left out, by reason."""

    @property
    def with_answer(self) -> tuple[LabelledTrace, ...]:
        """The traces of problems whose answer is known."""
        return tuple(trace for trace in self.traces if trace.answer_known)

    def write(self, folder: Path) -> None:
        """Write the traces whose answer is known as a folder that `stepalign probe --rollouts` reads."""
        problems = {trace.problem.id: trace.problem for trace in self.with_answer}
        marks = [_mark(trace) for trace in self.with_answer if trace.first_error is not None]
        write_jsonl(folder / "problems.jsonl", problems.values())
        write_jsonl(folder / "marks.jsonl", marks)
        write_jsonl(folder / "rollouts.jsonl", [trace.rollout for trace in self.with_answer])


def to_traces(
    solutions: Sequence[LabelledSolution],
    references: Iterable[Problem],
    chat: Chat,
    prompt: SolverPrompt,
    *,
    limit: int | None = None,
) -> LabelledTraces:
    """Write solutions of ProcessBench as the solver's traces.

    Args:
        solutions: those of a file (`data.processbench.read`).
        references: problems whose answers and solutions are known, found by their statements.
        chat: the solver's, whose tokenizer turns texts into completions.
        prompt: the solver's.
        limit: the most traces, evenly spaced.

    Raises:
        StepalignError: no solution can be used.
    """
    answers = {statement_digest(one.statement): one.answer for one in reversed(solutions) if one.correct and one.answer}
    known = {statement_digest(problem.statement): problem for problem in references}
    problems: dict[bytes, tuple[Problem, bool]] = {}
    traces, dropped = [], Counter[str]()
    for solution in evenly_spaced(solutions, limit):
        written = in_steps(solution.steps)
        if written is None:
            dropped[NOT_IN_STEPS] += 1
            continue
        text, spans = written
        digest = statement_digest(solution.statement)
        if digest not in problems:
            problems[digest] = _problem(solution, known.get(digest), answers.get(digest))
        problem, answer_known = problems[digest]
        rollout = to_rollout(problem, text, solution.id, solution.correct, chat, prompt)
        if solution.correct and rollout.grade is not None:
            rollout = replace(rollout, grade=replace(rollout.grade, final_answer=solution.answer or problem.answer))
        traces.append(
            LabelledTrace(
                problem=problem,
                rollout=replace(rollout, response_start=0),
                spans=spans,
                first_error=solution.first_error,
                answer_known=answer_known,
            )
        )
    if not traces:
        raise StepalignError(f"no solution can be used: {dict(dropped) or 'the file has none'}")
    return LabelledTraces(traces=tuple(traces), dropped=dropped)


def in_steps(steps: Sequence[str]) -> tuple[str, tuple[tuple[int, int], ...]] | None:
    """Write steps under headings, and return the text with each step's characters.

    None where a heading would not be read as one, or a step would be read as several.
    """
    for bodies in (steps, [_HEADING.sub(r"\1", step) for step in steps]):
        sections = [f"### Step {number}:\n{body.strip()}" for number, body in enumerate(bodies, start=1)]
        sections = [f"{section}\n\n" for section in sections[:-1]] + sections[-1:]
        ends = list(accumulate(map(len, sections)))
        text, spans = "".join(sections), tuple(zip([0, *ends], ends, strict=False))
        if [section.start for section in parse(text, 0).steps] == [start for start, _ in spans]:
            return text, spans
    return None


def _problem(solution: LabelledSolution, reference: Problem | None, answer: str | None) -> tuple[Problem, bool]:
    problem = Problem(
        id=f"{solution.id}/problem",
        statement=solution.statement,
        answer=reference.answer if reference else answer or "?",
        solution=reference.solution if reference else "",
        source=DATASET,
    )
    return problem, bool(reference or answer)


def _mark(trace: LabelledTrace) -> Mark:
    """Mark the whole wrong step."""
    assert trace.first_error is not None
    start, end = trace.spans[trace.first_error - 1]
    return Mark(rollout_id=trace.rollout.id, step=trace.first_error, start=start, end=end, source="human")
