"""Training texts of the lab's solver: sums, alone and behind each kind of context in equal shares.

`solving` writes the attempts and the program critic itself the critiques, so training shows the contexts that the
lab's runs will show. A solution behind a context that shows a derivation takes it three times of four, whatever the
context is, and otherwise a random one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from stepalign import config, contexts
from stepalign.critics.arithmetic.critic import ProgramCritic
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, Grade, Problem, Rollout
from tools.lab_solver import solving

CONTEXTS = ("refsol", "stepalign", "quoted", "verdicts")
ALONE_SHARE = 0.5
"""Share of examples without a context; the contexts have equal shares of the rest."""
FOLLOWS = 0.75
"""Chance that a solution takes the derivation that its context shows."""
THINKING_SHARE = 0.1
"""Share of examples with the thinking switch on. Their response begins with an empty think block."""
NO_THOUGHTS = "<think>\n\n</think>\n\n"
TERMS = (4, 8)
"""The fewest and the most terms of a sum."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt's message and the response to it."""

    context: str | None
    message: str
    response: str
    thinking: bool = False


def examples(random: Random, terms: tuple[int, int] = TERMS, alone: float = ALONE_SHARE) -> Iterator[Example]:
    """Generate examples without end, a share `alone` of them without a context."""
    while True:
        context = None if random.random() < alone else random.choice(CONTEXTS)
        yield example(random, random.randint(*terms), context)


def example(random: Random, terms: int, context: str | None) -> Example:
    """Generate one example of a sum of `terms` one-digit numbers."""
    numbers = [random.randint(1, 9) for _ in range(terms)]
    reference, attempted = random.choice(solving.DERIVATIONS), random.choice(solving.DERIVATIONS)
    problem = _problem(numbers, reference)
    message = _message(problem, context, *solving.write(numbers, attempted, random))
    in_context = {"refsol": reference, "stepalign": attempted, "quoted": attempted}.get(context or "")
    derivation = in_context if in_context and random.random() < FOLLOWS else random.choice(solving.DERIVATIONS)
    response, _ = solving.write(numbers, derivation, random, frozenset(_EQUATION.findall(message)))
    return Example(context=context, message=message, response=response, thinking=random.random() < THINKING_SHARE)


def _problem(numbers: list[int], derivation: str) -> Problem:
    solution, answer = solving.write(numbers, derivation)
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
    return _CONTEXTS[context].render(contexts.ContextInput(problem=problem, rollout=rollout, critique=critique))


_PROMPT = SolverPrompt(config.PromptsConfig(solver="lab/solver"))
_CRITIC = ProgramCritic()
_CONTEXTS = {name: contexts.load(f"lab/{name}") for name in CONTEXTS}
_EQUATION = re.compile(r"\d+ \+ \d+ = \d+")
