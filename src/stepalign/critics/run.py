"""A recipe's critic on attempts, by itself."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from stepalign import config
from stepalign.config import registry
from stepalign.console import Console
from stepalign.critics import Critic
from stepalign.critics.files import critique_all
from stepalign.critics.own_model import own_model
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader


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
        before = SolverPrompt(settings.prompts).before
        own = own_model(settings, stack)
        critic: Critic = registry.build(settings.critic, grader=grader, folder=out.parent, own=own, before=before)
        console = stack.enter_context(Console())
        with console.stage("critique", len(attempts)) as advance:
            return critique_all(critic, attempts, out, advance)
