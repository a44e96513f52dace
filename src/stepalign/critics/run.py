"""A recipe's critic on attempts, by itself."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stepalign import config, prompts
from stepalign.config import registry
from stepalign.console import Console
from stepalign.critics import Critic
from stepalign.critics.files import critique_all, settings_path
from stepalign.critics.own_model import own_model
from stepalign.errors import StepalignError
from stepalign.io import flat, kept_date, sha256
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader


def critique_attempts(
    settings: config.Recipe, attempts: Sequence[tuple[Problem, Rollout]], out: Path
) -> list[Critique | CritiqueFailure]:
    """Have a recipe's critic critique attempts that `out` does not have yet, and return all results.

    Raises:
        StepalignError: the recipe has no critic, or `out` has results of other texts or by other settings.
    """
    if settings.critic is None:
        raise StepalignError("the recipe has no [critic]")
    date = kept_date(settings_path(out))
    with ExitStack() as stack:
        own = own_model(settings, stack, date)
        with prompts.recorded() as texts:
            grader: Grader = stack.enter_context(registry.build(settings.grader))
            before = SolverPrompt(settings.prompts).before
            critic: Critic = registry.build(settings.critic, grader=grader, folder=out.parent, own=own, before=before)
        console = stack.enter_context(Console())
        with console.stage("critique", len(attempts)) as advance:
            return critique_all(critic, attempts, out, advance, made_with=_made_with(settings, texts), date=date)


def dump_tables(settings: config.Recipe, keys: set[str]) -> dict[str, Any]:
    """Return tables of a recipe as JSON, a replayed critic's with a digest of its file."""
    values = settings.model_dump(mode="json", include=keys)
    if "critic" in keys and isinstance(settings.critic, config.ReplayCriticConfig):
        values["critic"]["sha256"] = sha256(settings.critic.path)
    return values


def _made_with(settings: config.Recipe, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that critiques depend on, and digests of `texts`, templates and Python code."""
    assert settings.critic is not None
    values = dump_tables(
        settings, {"critic", "grader", "prompts", *(["model"] if settings.critic.needs_own_model else [])}
    )
    runtime = set(settings.runtime_keys())
    return {key: value for key, value in flat(values) if key not in runtime} | {"words": prompts.digests(texts)}
