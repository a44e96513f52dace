"""How long texts are: counted where they are at hand, taken from an earlier run where one is named, else the caps."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from stepalign import config, contexts
from stepalign import data as problems
from stepalign.chat import load_chat
from stepalign.errors import StepalignError
from stepalign.evaluation import metrics
from stepalign.io import read_jsonl
from stepalign.planning.estimate import Lengths, parts
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Rollout

_COUNTED = 64
"""Problems whose prompts and solutions are counted."""
_JUDGEMENT = 250
"""Tokens of a critique beside what it copies: summary, verdicts, headings, the corrected step's changes."""
_INSTRUCTIONS = 960
"""Tokens of `prompts/critic.txt`; `critic-splice.txt` has about as many."""
_SPREAD = 64
"""Parts that an earlier run's completions are told apart by."""
_SPLICED = 0.5
"""How much a critique in splice mode writes, beside one that copies."""


def lengths(settings: config.Recipe, *, like: Path | None = None, completion: int | None = None) -> tuple[Lengths, int]:
    """A rollout's lengths under a recipe, and how many problems an evaluation has.

    Args:
        settings: the recipe. Its problems and its tokenizer are loaded, no weights.
        like: the folder of an earlier run, whose own lengths are taken.
        completion: tokens of a completion, where that is known; else the earlier run's, or the cap.

    Raises:
        StepalignError: the problems or the tokenizer are not at hand, or the folder is no run's.
    """
    train, evaluation, _ = problems.prepare(settings.problems)
    chat, prompt = load_chat(settings.model), SolverPrompt(settings.prompts)
    shown = train[:_COUNTED]

    def count(texts: Sequence[str]) -> float:
        return fmean(len(chat.encode_text(text)) for text in texts)

    asked = fmean(len(chat.prompt_ids(prompt.turns(p), thinking=settings.sampling.enable_thinking)) for p in shown)
    solution = count([p.solution or p.answer for p in shown])
    before = _of_run(like) if like is not None else None
    written = float(completion or (before.completion if before else settings.sampling.max_new_tokens))
    copied = written + _JUDGEMENT
    told = asked
    if isinstance(settings.algorithm, config.DistillationConfig):
        told += copied if contexts.load(settings.context.template).needs_critique else solution
    splice = isinstance(settings.critic, config.OpenAICriticConfig) and settings.critic.mode == "splice"
    found = Lengths(
        prompt=before.prompt if before else asked,
        completion=written,
        teacher_prompt=min(before.teacher_prompt if before else told, settings.teacher.max_length - written),
        critic_prompt=_INSTRUCTIONS + count([p.statement for p in shown]) + solution + written,
        critique=copied * (_SPLICED if splice else 1.0),
        evaluation=float(completion or (before and before.evaluation) or settings.evaluation.sampling.max_new_tokens),
        spread=before.spread if before else (1.0,),
        reached=before.reached if before else 1.0,
        taught=before.taught if before else 1.0,
    )
    return found, len(evaluation)


@dataclass(frozen=True)
class _Before:
    prompt: float
    completion: float
    teacher_prompt: float
    evaluation: float | None
    spread: tuple[float, ...]
    reached: float
    taught: float


def _of_run(folder: Path) -> _Before:
    """An earlier run's lengths, in tokens."""
    try:
        rollouts = [r for file in sorted((folder / "rollouts").glob("*.jsonl")) for r in read_jsonl(file, Rollout)]
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lessons = sum(step["outcomes"].get("taught", 0) for step in steps)

        def each(name: str) -> float:
            return float(sum(step.get(name, 0) for step in steps) / lessons)

        prompt = fmean(len(rollout.prompt_ids) for rollout in rollouts)
        drawn = sorted(len(rollout.completion_ids) for rollout in rollouts)
        written = fmean(drawn)
        judged = [
            metrics.read(file).measures["length"].value for file in sorted((folder / "evaluations").glob("step-*.json"))
        ]
        # A view ends before the last token that counts.
        read = each("student_tokens") - prompt
        return _Before(
            prompt=prompt,
            completion=written,
            teacher_prompt=max(each("teacher_tokens") - read, 0.0),
            evaluation=fmean(judged) if judged else None,
            spread=tuple(length / written for length in parts(drawn, min(len(drawn), _SPREAD))),
            reached=read / written,
            taught=lessons / len(rollouts),
        )
    except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
        raise StepalignError(f"{folder}: not a run that learnt something: {error}") from None
