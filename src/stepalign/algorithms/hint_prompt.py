"""Prompts for sampling under a context: a hint before the attempt that it is to help."""

from collections.abc import Sequence

from stepalign import config, contexts
from stepalign.algorithms.teacher_prompt import DoesNotFit, build_teacher_prompt
from stepalign.chat import Chat
from stepalign.config import registry
from stepalign.contexts import ContextInput
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import Turn
from stepalign.records import Problem, Rollout, TokenIds


class HintPrompts:
    """The recipe's context as a prompt to sample from."""

    def __init__(
        self,
        settings: config.ContextConfig,
        teacher: config.TeacherConfig,
        *,
        chat: Chat,
        before: Sequence[Turn],
        max_new_tokens: int,
        shows: frozenset[str],
    ) -> None:
        """Load the context.

        Args:
            settings: the recipe's `[context]`.
            teacher: length limit and thinking boundary of the prompt.
            chat: encodes the prompt.
            before: turns before the problem, which the solver is shown as well.
            max_new_tokens: room behind the prompt.
            shows: variables that the context may use, because they are known before sampling.

        Raises:
            StepalignError: the context uses another variable.
        """
        self.context: contexts.Context = registry.build(settings)
        if unknown := sorted(self.context.variables - shows):
            raise StepalignError(
                f"{settings} shows {', '.join(unknown)}, which is not known when this algorithm "
                f"samples under it; allowed: {', '.join(sorted(shows))}"
            )
        self.teacher, self.chat, self.before, self.max_new_tokens = teacher, chat, tuple(before), max_new_tokens

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where the context shows a reference solution and a problem has none."""
        contexts.check_solutions(self.context, problems)

    def __call__(self, problem: Problem, rollout: Rollout | None = None) -> TokenIds | None:
        """Return the prompt ids, cut so that `sampling.max_new_tokens` fit behind them; None where they cannot.

        `rollout` is a first attempt; None where there is none.
        """
        attempt = rollout or Rollout(
            id=problem.id, problem_id=problem.id, completion_ids=(), text="", token_starts=(), finish="length"
        )
        source = ContextInput(problem=problem, rollout=attempt)
        try:
            return build_teacher_prompt(
                self.chat, self.before, self.context, source, self.teacher, completion_tokens=self.max_new_tokens
            ).ids
        except DoesNotFit:
            return None
