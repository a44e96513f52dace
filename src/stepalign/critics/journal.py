"""A critic's answers in a file, appended as they come, so that a second start asks only for what is missing.

What a kill can leave behind is a half-written last line: it is cut off and asked for again, and so is what no server
answered. When all is there the file is written once more, in the order of the rollouts.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stepalign.critics import Critic
from stepalign.critics.replay import ReplayCritic
from stepalign.errors import StepalignError
from stepalign.io import explain, to_json, write_jsonl
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout

UNANSWERED = frozenset({"server", "timeout"})
"""Failures that say nothing of the rollout: a second start asks again."""

_ANSWER: TypeAdapter[Critique | CritiqueFailure] = TypeAdapter(CriticResult)


def answer_all(
    critic: Critic,
    attempts: Sequence[tuple[Problem, Rollout]],
    path: Path,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Critique | CritiqueFailure]:
    """Have a critic answer every attempt that the file does not answer yet.

    Args:
        critic: whom to ask.
        attempts: problems and graded rollouts, each rollout once.
        path: where the answers are kept.
        advance: told how many answers more there are, those found in the file first.

    Returns:
        The answers in the order of the attempts.

    Raises:
        StepalignError: the file is damaged, or belongs to other rollouts or another critic; it cannot be written.
    """
    order = [rollout.id for _, rollout in attempts]
    answers = _kept(path, set(order), None if critic.name == ReplayCritic.name else critic.name)
    advance(len(answers))
    missing = [(problem, rollout) for problem, rollout in attempts if rollout.id not in answers]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            for answer in critic.critique(missing):
                file.write(f"{to_json(answer)}\n".encode())
                file.flush()
                answers[answer.rollout_id] = answer
                advance(1)
    except OSError as error:
        raise StepalignError(f"{path}: could not be written: {error.strerror}; what it has is kept") from None
    ordered = [answers[rollout_id] for rollout_id in order]
    write_jsonl(path, ordered)
    return ordered


def _kept(path: Path, wanted: set[str], critic: str | None) -> dict[str, Critique | CritiqueFailure]:
    """The answers that an earlier start left, by rollout."""
    answers: dict[str, Critique | CritiqueFailure] = {}
    whole = 0
    if not path.exists():
        return answers
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            where = f"{path}, line {number}"
            try:
                answer = _ANSWER.validate_json(line)
            except ValidationError as error:
                raise StepalignError(f"{where}: not a critic's result: {explain(error)}") from None
            if answer.rollout_id not in wanted:
                raise StepalignError(f"{where}: rollout {answer.rollout_id} is not among these rollouts: {_ELSEWHERE}")
            if critic is not None and answer.critic != critic:
                raise StepalignError(f"{where}: an answer of {answer.critic}, not of {critic}: {_ELSEWHERE}")
            if not (isinstance(answer, CritiqueFailure) and answer.reason in UNANSWERED):
                answers[answer.rollout_id] = answer
            whole = file.tell()
    os.truncate(path, whole)
    return answers


_ELSEWHERE = "delete the file, or name another with --out"
