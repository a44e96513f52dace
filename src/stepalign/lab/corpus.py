"""What the lab's solver was trained on: sums, alone and behind every kind of context in equal shares.

Attempts are written by `solving`, critiques of them by the program critic itself, so the solver has seen what the
loop will show it. A solution behind a context that shows a derivation takes it three times of four, whatever the
context is, and another otherwise. Each example is a message, the thinking switch and the response.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from stepalign import config, contexts
from stepalign.critics.arithmetic.critic import ProgramCritic
from stepalign.lab import solving
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, Grade, Problem, Rollout

CONTEXTS = ("refsol", "stepalign", "quoted", "verdicts")
ALONE_SHARE = 0.5
"""Examples without a context; the contexts share the rest equally."""
FOLLOWS = 0.75
"""How often a solution takes the derivation that its context shows."""
THINKING_SHARE = 0.1
"""Examples with the thinking switch on. The response then begins with an empty think block: it does not think."""
NO_THOUGHTS = "<think>\n\n</think>\n\n"
TERMS = (4, 8)
"""The fewest and the most terms of a sum."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt's message and what the solver answers."""

    context: str | None
    message: str
    response: str
    thinking: bool = False


def examples(random: Random, terms: tuple[int, int] = TERMS, alone: float = ALONE_SHARE) -> Iterator[Example]:
    """Examples without end, a share of them without a context."""
    while True:
        context = None if random.random() < alone else random.choice(CONTEXTS)
        yield example(random, random.randint(*terms), context)


def example(random: Random, terms: int, context: str | None) -> Example:
    """One example of a sum of `terms` numbers of one digit."""
    numbers = [random.randint(1, 9) for _ in range(terms)]
    known, attempted = random.choice(solving.WAYS), random.choice(solving.WAYS)
    problem = _problem(numbers, known)
    message = _message(problem, context, *solving.write(numbers, attempted, random))
    shown = {"refsol": known, "stepalign": attempted, "quoted": attempted}.get(context or "")
    way = shown if shown and random.random() < FOLLOWS else random.choice(solving.WAYS)
    response, _ = solving.write(numbers, way, random, frozenset(_EQUATION.findall(message)))
    thinking = random.random() < THINKING_SHARE
    return Example(
        context=context,
        message=message,
        response=response,
        thinking=thinking,
    )


def _problem(numbers: list[int], way: str) -> Problem:
    solution, answer = solving.write(numbers, way)
    return Problem(
        id="sum",
        statement=f"Compute {' + '.join(map(str, numbers))}.",
        answer=str(answer),
        solution=solution,
        meta={"terms": list(numbers)},
    )


def _message(problem: Problem, context: str | None, text: str, answer: int) -> str:
    if context is None:
        return _PROMPT.turns(problem)[-1].content
    correct = str(answer) == problem.answer
    rollout = Rollout(
        id="attempt",
        problem_id=problem.id,
        completion_ids=(0,),
        text=text,
        token_starts=(0,),
        finish="stop",
        grade=Grade(correct=correct, outcome="correct" if correct else "wrong", final_answer=str(answer)),
    )
    (critique,) = _CRITIC.critique([(problem, rollout)])
    if not isinstance(critique, Critique):
        return _PROMPT.turns(problem)[-1].content
    return _DESIGNS[context].render(problem, rollout, critique)


_PROMPT = SolverPrompt(config.PromptsConfig(solver="lab/solver"))
_CRITIC = ProgramCritic()
_DESIGNS = {name: contexts.load(f"lab/{name}") for name in CONTEXTS}
_EQUATION = re.compile(r"\d+ \+ \d+ = \d+")
