"""A recipe's critic on attempts, by itself."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from stepalign import config, models
from stepalign.config import registry
from stepalign.console import Console
from stepalign.critics import Critic
from stepalign.critics.files import critique_all
from stepalign.critics.self_critic import OwnModel
from stepalign.errors import StepalignError
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.rollouts.generate import open_solver


def critique_attempts(
    settings: config.Recipe, attempts: Sequence[tuple[Problem, Rollout]], out: Path
) -> list[Critique | CritiqueFailure]:
    """Have a recipe's critic critique attempts that `out` does not have yet, and return all results.

    Raises:
        StepalignError: the recipe has no critic.
    """
    if settings.critic is None:
        raise StepalignError("the recipe has no [critic]")
    with ExitStack() as stack:
        grader: Grader = stack.enter_context(registry.build(settings.grader))

        def own_model() -> OwnModel:
            loaded = stack.enter_context(open_solver(settings, None))
            return OwnModel(loaded.chat, loaded.sampler, models.context_limit(settings.model))

        critic: Critic = registry.build(settings.critic, grader=grader, folder=out.parent, own=own_model)
        console = stack.enter_context(Console())
        with console.stage("critique", len(attempts)) as advance:
            return critique_all(critic, attempts, out, advance)
