"""Self-distillation: the divergence of teacher and student on the student's own rollouts (Eq. 3 of arXiv 2606.11173).

The teacher reads a context (critique or reference solution) before the problem's answer; the student reads the problem
alone. Both score the same completion ids. A rollout without a critique falls back or drops out, and is counted.

Left out: sequences from a data set, because the paper is fully on-policy (lambda 1).

    stepalign train recipes/paper/stepalign.toml
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from stepalign import config, contexts, models
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample, DistillationLoss
from stepalign.algorithms.teacher_prompt import DoesNotFit, build_teacher_prompt, limit_to_context
from stepalign.chat import Chat
from stepalign.critics.first_error import first_error_span
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt, Turn
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout
from stepalign.teachers.model import check_tokenizer
from stepalign.trace import token_span
from stepalign.views import View


class SelfDistillation(DistillationLoss):
    """Distillation of the same model, shown a context, into itself without it."""

    num_iterations = 1

    def __init__(
        self,
        algorithm: config.DistillationConfig,
        *,
        chat: Chat,
        before: Sequence[Turn],
        context: config.ContextConfig,
        critic: config.CriticConfig | None,
        teacher: config.TeacherConfig,
        max_tokens: int | None = None,
    ) -> None:
        """Load contexts and check that they fit the critic.

        Args:
            algorithm: the recipe's table.
            chat: encodes teacher prompts.
            before: turns before the problem.
            context: the design that the teacher reads.
            critic: the recipe's critic, where it has one.
            teacher: kind, length limit and thinking boundary.
            max_tokens: padded tokens of one teacher pass, at most; None is no bound.

        Raises:
            StepalignError: context, loss span and critic do not go together.
        """
        super().__init__(algorithm, teacher=teacher, max_tokens=max_tokens)
        self.chat, self.before, self.critic = chat, tuple(before), critic
        self.context, self.shuffled = contexts.load(context.template), context.shuffled
        self.needs_critique = self.context.needs_critique or algorithm.loss_span == "until_first_error"
        if self.needs_critique and critic is None:
            reason = (
                f"context.template = {context.template!r} shows a critique"
                if self.context.needs_critique
                else "algorithm.loss_span = 'until_first_error' needs a critique with the first error"
            )
            raise StepalignError(f"{reason}, but the recipe has no [critic]")
        self.one_by_one = not self.shuffled
        self.fallback: contexts.Context | None = None
        if self.needs_critique and critic is not None and "refsol" in critic.fallbacks:
            self.fallback = contexts.load(context.fallback_template)
            if self.fallback.needs_critique:
                raise StepalignError(
                    f"context.fallback_template = {self.fallback.name!r} shows a critique, but replaces a missing one"
                )

    @classmethod
    def from_config(
        cls,
        algorithm: config.DistillationConfig,
        *,
        recipe: config.Recipe,
        chat: Chat,
        prompt: SolverPrompt,
        context_limit: int | None,
    ) -> "SelfDistillation":
        """Build the algorithm of a recipe. `context_limit` is the model's own context length."""
        if (model := recipe.teacher.model_of(recipe.model)) is not recipe.model:
            check_tokenizer(model, chat)
            context_limit = models.context_limit(model)
        return cls(
            algorithm,
            chat=chat,
            before=prompt.before,
            context=recipe.context,
            critic=recipe.critic,
            teacher=limit_to_context(recipe.teacher, context_limit),
            max_tokens=recipe.training.max_tokens_per_micro_batch,
        )

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where a context shows a reference solution and problems have none."""
        needing = [context for context in (self.context, self.fallback) if context and context.needs_solution]
        lacking = [problem.id for problem in problems if not problem.solution]
        if needing and lacking:
            raise StepalignError(
                f"context {needing[0].name!r} shows the reference solution, but {len(lacking)} of {len(problems)} "
                f"problems have none (the first: {lacking[0]})"
            )

    def build_examples(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> StepExamples[DistillationExample]:
        """Build both views of every rollout. See `Algorithm.build_examples`."""
        step = StepExamples[DistillationExample]()
        others = _critiques_of_other_problems(rollouts, critiques) if self.shuffled else {}
        for rollout in rollouts:
            result = critiques.get(rollout.id)
            if isinstance(result, Critique):
                step.cases[result.case] += 1
            elif result is not None:
                step.failures[result.reason] += 1
            example, failure = self._example(rollout, problems[rollout.problem_id], result, others.get(rollout.id))
            if failure:
                step.failures[failure] += 1
            if example is None or not example.student.num_loss_tokens:
                step.outcomes["dropped"] += 1
                continue
            step.outcomes["trained"] += 1
            step.outcomes["fallback"] += self.needs_critique and not isinstance(result, Critique)
            step.outcomes["cut"] += example.cut
            step.examples.append(example)
        return step

    def _example(
        self, rollout: Rollout, problem: Problem, result: CriticResult | None, other: Critique | None
    ) -> tuple[DistillationExample | None, str]:
        """Return an example, or None, and the reason why there is none that no critic's failure names."""
        critique = result if isinstance(result, Critique) else None
        context, span = self.context, self.algorithm.loss_span
        if critique is None and self.needs_critique:
            if self.fallback is None or self._fallback_of(result) == "drop":
                return None, ""
            # Without a critique the first error is not known.
            context, span = self.fallback, "all"
        elif other is None and self.shuffled:
            return None, "no other problem's critique"
        bounds = loss_bounds(rollout, critique, span, skip=self.algorithm.num_loss_tokens_to_skip)
        try:
            return distillation_example(
                self.chat, self.before, context, problem, rollout, other or critique, self.teacher, bounds=bounds
            ), ""
        except DoesNotFit:
            return None, "teacher prompt too long"

    def _fallback_of(self, result: CriticResult | None) -> config.Fallback:
        """Return the failure's own fallback, else the critic's `on_failure`."""
        assert self.critic is not None
        own = result.fallback if isinstance(result, CritiqueFailure) else None
        return own or self.critic.on_failure


def distillation_example(
    chat: Chat,
    before: Sequence[Turn],
    context: contexts.Context,
    problem: Problem,
    rollout: Rollout,
    critique: Critique | None,
    teacher: config.TeacherConfig,
    *,
    bounds: tuple[int, int] | None = None,
) -> DistillationExample:
    """Build both views of a rollout under a context.

    Args:
        chat: encodes the teacher's prompt. The student's prompt ids are the rollout's own.
        before: turns before the problem, which the solver was shown as well.
        context: the design that the teacher reads.
        problem: the rollout's.
        rollout: the attempt.
        critique: the critique to show, where the context shows one.
        teacher: length limit and thinking boundary.
        bounds: completion tokens in the loss, [start, stop); None is all.

    Raises:
        DoesNotFit: problem and completion alone exceed `teacher.max_length`.
    """
    prompt = build_teacher_prompt(chat, before, context, problem, rollout, critique, teacher)
    start, stop = bounds or (0, len(rollout.completion_ids))
    views = [
        View(prompt_ids=ids, completion_ids=rollout.completion_ids, loss_start=start, loss_stop=stop)
        for ids in (rollout.prompt_ids, prompt.ids)
    ]
    return DistillationExample(
        rollout_id=rollout.id, student=views[0], teacher=views[1], message=prompt.message, cut=prompt.cut
    )


def loss_bounds(
    rollout: Rollout, critique: Critique | None, span: Literal["all", "until_first_error"], *, skip: int = 0
) -> tuple[int, int]:
    """Return the completion tokens in the loss, [start, stop).

    Args:
        rollout: the attempt.
        critique: knows the first error; needed for `until_first_error`.
        span: all tokens, or those up to and with the first wrong one, because there the teacher differs.
        skip: first tokens to leave out.

    Raises:
        StepalignError: `until_first_error` without a critique.
    """
    stop = len(rollout.completion_ids)
    if span == "until_first_error":
        if critique is None:
            raise StepalignError(
                f"algorithm.loss_span = 'until_first_error': rollout {rollout.id} has no critique with its first error"
            )
        if (error := first_error_span(rollout.text, critique)) is not None:
            end = error.end if error.departure is None else error.departure + 1
            stop = token_span(rollout, error.start, end)[1]
    return min(skip, stop), stop


def _critiques_of_other_problems(
    rollouts: Sequence[Rollout], critiques: Mapping[str, CriticResult]
) -> dict[str, Critique]:
    """Map each rollout to the next critique, cyclically, of another problem."""
    results = [(rollout.problem_id, critiques.get(rollout.id)) for rollout in rollouts]
    others = {}
    for place, rollout in enumerate(rollouts):
        for problem_id, result in (*results[place + 1 :], *results[:place]):
            if problem_id != rollout.problem_id and isinstance(result, Critique):
                others[rollout.id] = result
                break
    return others
