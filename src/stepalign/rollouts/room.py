"""Problems whose prompts leave room for a completion."""

from collections.abc import Sequence

from stepalign import config, models
from stepalign.chat import Chat
from stepalign.console import Console
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem
from stepalign.rollouts import sampling_limit
from stepalign.rollouts.generate import Solver

LONGER = "longer than the model's context"
"""The reason under which problems without room are counted."""


def with_room(
    problems: Sequence[Problem],
    sampling: config.SamplingConfig,
    chat: Chat,
    prompt: SolverPrompt,
    context_limit: int | None,
    *,
    name: str = "problems.train",
    key: str = "sampling",
) -> list[Problem]:
    """Return the problems whose prompt leaves room for a completion in the model's context.

    Args:
        problems: to choose from.
        sampling: its `max_new_tokens` need room.
        chat: encodes prompts.
        prompt: of the solver.
        context_limit: the most tokens of both (`rollouts.sampling_limit`); None is no limit.
        name: the problems' name in an error.
        key: the recipe's key of `sampling`.

    Raises:
        StepalignError: there are problems, and none leaves room.
    """

    def fits(problem: Problem) -> bool:
        ids = chat.prompt_ids(prompt.turns(problem), thinking=sampling.enable_thinking)
        return context_limit is None or len(ids) + sampling.max_new_tokens <= context_limit

    fitting = [problem for problem in problems if fits(problem)]
    if problems and not fitting:
        raise StepalignError(
            f"{name}: no problem leaves room for {key}.max_new_tokens = {sampling.max_new_tokens} "
            f"in {context_limit} tokens, which the model's context or sampler.max_model_len allows"
        )
    return fitting


def drop_long(
    recipe: config.Recipe, solver: Solver, problems: Sequence[Problem], console: Console, *, evaluation: bool = False
) -> list[Problem]:
    """Return the training or evaluation problems with room for a completion, and warn of the others."""
    limit = sampling_limit(recipe.sampler, models.context_limit(recipe.model))
    name, key = ("evaluation problems", "evaluation.sampling") if evaluation else ("problems.train", "sampling")
    sampling = recipe.evaluation.sampling if evaluation else recipe.sampling
    fitting = with_room(problems, sampling, solver.chat, solver.prompt, limit, name=name, key=key)
    if lacking := len(problems) - len(fitting):
        console.warn(f"{name}: {lacking} of {len(problems)} left out: {LONGER}, {limit} tokens")
    return fitting
