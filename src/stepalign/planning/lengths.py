"""How long texts are: counted where they are at hand, taken from an earlier run where one is named, else the caps."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from stepalign import contexts, problems, recipe, tokens
from stepalign.errors import StepalignError
from stepalign.planning.estimate import Lengths
from stepalign.prompts.conversation import SolverPrompt

_COUNTED = 64
"""Problems whose prompts and solutions are counted."""
_JUDGEMENT = 250
"""Tokens of a critique beside what it copies: summary, verdicts, headings, the corrected step's changes."""
_INSTRUCTIONS = 960
"""Tokens of `prompts/critic.txt`; `critic-splice.txt` has about as many."""
_SPLICED = 0.5
"""How much a critique in splice mode writes, beside one that copies."""


def lengths(settings: recipe.Recipe, *, like: Path | None = None, completion: int | None = None) -> tuple[Lengths, int]:
    """A rollout's lengths under a recipe, and how many problems an evaluation has.

    Args:
        settings: the recipe. Its problems and its tokenizer are loaded, no weights.
        like: the folder of an earlier run, whose own lengths are taken.
        completion: tokens of a completion, where that is known; else the earlier run's, or the cap.

    Raises:
        StepalignError: the problems or the tokenizer are not at hand, or the folder is no run's.
    """
    train, evaluation, _ = problems.prepare(settings.problems)
    chat, prompt = tokens.load(settings.model), SolverPrompt(settings.prompts)
    shown = train[:_COUNTED]

    def count(texts: Sequence[str]) -> float:
        return fmean(len(chat.encode_text(text)) for text in texts)

    asked = fmean(len(chat.prompt_ids(prompt.turns(p), thinking=settings.sampling.thinking)) for p in shown)
    solution = count([p.solution or p.answer for p in shown])
    written = float(completion or settings.sampling.max_new_tokens)
    before: float | None = None
    if like is not None:
        asked, mean, before = _of_run(like)
        written = float(completion or mean)
    copied = written + _JUDGEMENT
    if before is None:
        before = asked
        if isinstance(settings.objective, recipe.Distillation):
            before += copied if contexts.load(settings.context.template).needs_critique else solution
    splice = isinstance(settings.critic, recipe.OpenAICritic) and settings.critic.mode == "splice"
    found = Lengths(
        prompt=asked,
        completion=written,
        teacher_prompt=min(before, settings.teacher.max_tokens - written),
        critic_prompt=_INSTRUCTIONS + count([p.statement for p in shown]) + solution + written,
        critique=copied * (_SPLICED if splice else 1.0),
        evaluation=float(completion or settings.evaluation.sampling.max_new_tokens),
    )
    return found, len(evaluation)


def _of_run(folder: Path) -> tuple[float, float, float]:
    """Prompt, completion and teacher's prompt of an earlier run, in tokens."""
    path = folder / "metrics.jsonl"
    try:
        steps = [json.loads(line) for line in path.read_text().splitlines()]
        rollouts = sum(step["rollouts"] for step in steps)
        written = sum(step["completion_tokens"] for step in steps) / rollouts
        learnt = [step for step in steps if step.get("student_tokens")]
        taught = sum(step["outcomes"]["taught"] for step in learnt)
        student = sum(step["student_tokens"] for step in learnt) / taught
        teacher = sum(step.get("teacher_tokens", 0) for step in learnt) / taught
    except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
        raise StepalignError(f"{path}: not the metrics of a run that learnt something: {error}") from None
    return student - written, written, max(teacher - written, 0.0)
