"""Lengths of texts: counted, taken from an earlier run, or the caps of the recipe."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from stepalign import config, contexts
from stepalign.chat import load_chat
from stepalign.data import prepare
from stepalign.errors import StepalignError
from stepalign.evaluation import metrics
from stepalign.io import read_jsonl
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Rollout

_COUNTED = 64
"""Problems whose prompts and solutions are tokenized."""
_JUDGEMENT, _INSTRUCTIONS = 250, 960
"""Tokens of a critique beside what it copies, and of the critic's template."""
_SPLICED = 0.5
"""Length of a critique in splice mode over one that copies."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean tokens of one rollout's texts."""

    prompt: float
    completion: float
    max_completion: float
    teacher_prompt: float
    critic_prompt: float = 0.0
    critique: float = 0.0
    """Tokens that the critic writes, thinking included."""
    evaluation: float
    """A completion under the evaluation's settings."""
    read_share: float = 1.0
    """Share of a completion up to its last token in the loss."""
    learned_share: float = 1.0
    """Share of rollouts that the loss uses."""


def lengths(
    settings: config.Recipe, *, from_run: Path | None = None, completion_tokens: int | None = None
) -> tuple[Lengths, int]:
    """Return a rollout's lengths under a recipe, and the number of evaluation problems.

    Args:
        settings: the recipe. Its problems and its tokenizer are loaded, no weights.
        from_run: the folder of an earlier run, whose lengths are taken.
        completion_tokens: tokens of a completion; None is the earlier run's mean, or the cap.

    Raises:
        StepalignError: the problems or the tokenizer cannot be loaded, or the folder is no run's.
    """
    train, evaluation, _ = prepare(settings.problems)
    chat, prompt, thinking = (
        load_chat(settings.model),
        SolverPrompt(settings.prompts),
        settings.sampling.enable_thinking,
    )
    sample = train[:_COUNTED]

    def mean_tokens(texts: Sequence[str]) -> float:
        return fmean(len(chat.encode_text(text)) for text in texts)

    prompt_tokens = fmean(len(chat.prompt_ids(prompt.turns(problem), thinking=thinking)) for problem in sample)
    solution = mean_tokens([problem.solution or problem.answer for problem in sample])
    completion = float(completion_tokens or settings.sampling.max_new_tokens)
    assumed = Lengths(
        prompt=prompt_tokens,
        completion=completion,
        max_completion=completion,
        teacher_prompt=0.0,
        evaluation=float(completion_tokens or settings.evaluation.sampling.max_new_tokens),
    )
    if from_run is not None:
        assumed = _of_run(from_run, assumed)
        if completion_tokens:
            assumed = replace(assumed, completion=completion, max_completion=completion, evaluation=completion)
    copied = assumed.completion + _JUDGEMENT
    spliced = isinstance(settings.critic, config.LLMCriticConfig) and settings.critic.mode == "splice"
    shown = copied if contexts.load(settings.context.template).needs_critique else solution
    return replace(
        assumed,
        teacher_prompt=min(
            assumed.teacher_prompt or prompt_tokens + shown, settings.teacher.max_length - assumed.completion
        ),
        critic_prompt=_INSTRUCTIONS
        + mean_tokens([problem.statement for problem in sample])
        + solution
        + assumed.completion,
        critique=copied * (_SPLICED if spliced else 1.0),
    ), len(evaluation)


def _of_run(folder: Path, assumed: Lengths) -> Lengths:
    """Replace assumed lengths by an earlier run's."""
    try:
        rollouts = [r for file in sorted((folder / "rollouts").glob("*.jsonl")) for r in read_jsonl(file, Rollout)]
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        files = sorted((folder / "evaluations").glob("step-*.json"))
        evaluated = [metrics.read(file).measures["length"].value for file in files]
        learned = sum(step["outcomes"].get("trained", 0) for step in steps)
        prompt = fmean(len(rollout.prompt_ids) for rollout in rollouts)
        completions = [len(rollout.completion_ids) for rollout in rollouts]
        # A view ends before the last token in the loss.
        read = sum(step.get("student_tokens", 0) for step in steps) / learned - prompt
        teacher = sum(step.get("teacher_tokens", 0) for step in steps) / learned
        return replace(
            assumed,
            prompt=prompt,
            completion=fmean(completions),
            max_completion=max(completions),
            teacher_prompt=max(teacher - read, 0.0),
            evaluation=fmean(evaluated) if evaluated else assumed.evaluation,
            read_share=read / fmean(completions),
            learned_share=learned / len(rollouts),
        )
    except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
        raise StepalignError(f"{folder}: not the folder of a run that made a step: {error}") from None
