"""The solver's own base as critic, mender or locator: the weights that are loaded already, with the adapter off."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Self

from accelerate import Accelerator

from stepalign import config, models
from stepalign.chat import Chat
from stepalign.policy import Policy
from stepalign.prompts.conversation import SolverPrompt
from stepalign.rollouts import Sampler, sampling_limit
from stepalign.rollouts.generate import Solver, open_solver
from stepalign.rollouts.transformers import TransformersSampler
from stepalign.teachers import Teacher
from stepalign.teachers.stateless import BaseTeacher


@dataclass(frozen=True)
class OwnModel:
    """The solver's base: it samples and scores."""

    chat: Chat
    sampler: Sampler
    prompt: SolverPrompt
    context_limit: int | None
    """Positions that the model has."""
    sampling_limit: int | None
    """The most tokens of a prompt and its completion."""
    policy: Callable[[], Policy]
    """Return the weights in this process."""

    @classmethod
    def of(cls, solver: Solver, recipe: config.Recipe, policy: Policy | None = None) -> Self:
        """Build it from a solver. Without a `policy` its weights are the sampler's, or loaded when they are needed."""

        @cache
        def weights() -> Policy:
            sampler = solver.sampler
            if isinstance(sampler, TransformersSampler):
                return Policy(sampler.model)
            return Policy(models.load_model(recipe.model, None, Accelerator().device))

        loaded = weights if policy is None else lambda: policy
        limit = models.context_limit(recipe.model)
        return cls(solver.chat, solver.sampler, solver.prompt, limit, sampling_limit(recipe.sampler, limit), loaded)

    @contextmanager
    def base(self) -> Iterator[Teacher]:
        """Yield the base, without dropout."""
        policy = self.policy()
        was_training = policy.training
        policy.eval()
        try:
            yield BaseTeacher(policy)
        finally:
            policy.train(was_training)


def own_model(recipe: config.Recipe, stack: ExitStack, date: date) -> Callable[[], OwnModel]:
    """Return a function that loads the base of a recipe's solver at its first call. The stack closes it.

    A chat template shows `date`.
    """
    return cache(lambda: OwnModel.of(stack.enter_context(open_solver(recipe, None, date)), recipe))
