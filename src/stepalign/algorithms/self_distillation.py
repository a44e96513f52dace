"""Self-distillation: the divergence of teacher and student on the student's own rollouts (Eq. 3 of arXiv 2606.11173).

The teacher reads a context (critique, reference solution, sibling, feedback) before the problem's answer; the student
reads the problem alone. Both score the same completion ids. A rollout without a critique falls back or drops out; one
for which the context has nothing to show drops out. Both are counted.

With `lmbda` below 1 some steps train on reference solutions instead of rollouts (GKD); the paper is fully on-policy.

    stepalign train real/stepalign
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Literal

from stepalign import config
from stepalign.algorithms.base import Algorithm, StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample, DistillationLoss
from stepalign.algorithms.teacher_context import NOTHING_TO_SHOW, ChosenContext, TeacherContext, count_critiques
from stepalign.algorithms.teacher_prompt import DoesNotFit, build_teacher_prompt, limited_teacher
from stepalign.chat import Chat
from stepalign.contexts import Context, ContextInput
from stepalign.critics.error_spans import rollout_error_span
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt, Turn
from stepalign.records import CriticResult, Critique, Problem, Rollout, RolloutSource
from stepalign.rollouts.references import reference_text
from stepalign.seeding import derive_seed
from stepalign.trace import token_span
from stepalign.views import View


class SelfDistillation(DistillationLoss, Algorithm[DistillationExample]):
    """Distillation of the same model, shown a context, into itself without it."""

    def __init__(
        self,
        algorithm: config.DistillationConfig,
        *,
        chat: Chat,
        before: Sequence[Turn],
        context: config.ContextConfig,
        critic: config.CriticConfig | None,
        teacher: config.TeacherConfig,
        num_generations: int,
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        """Load contexts and check that they fit the recipe.

        Args:
            algorithm: the recipe's table.
            chat: encodes teacher prompts.
            before: turns before the problem.
            context: the design that the teacher reads.
            critic: the recipe's critic, where it has one.
            teacher: kind, length limit and thinking boundary.
            num_generations: rollouts of each problem.
            max_tokens: padded tokens of one teacher pass, at most; None is no bound.
            seed: the run's, for the draws of `algorithm.lmbda`.

        Raises:
            StepalignError: context, loss span, critic and groups do not go together.
        """
        super().__init__(algorithm, teacher=teacher, max_tokens=max_tokens)
        self.num_iterations, self.seed = algorithm.num_iterations, seed
        self.chat, self.before = chat, tuple(before)
        span = "algorithm.loss_span = 'until_first_error'" if algorithm.loss_span == "until_first_error" else ""
        self.context = TeacherContext(context, critic, num_generations=num_generations, critique_for=span)
        self.needs_critique, self.one_by_one = self.context.needs_critique, self.context.one_by_one

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
        return cls(algorithm, **cls.parts(recipe, chat, prompt, context_limit))

    @staticmethod
    def parts(recipe: config.Recipe, chat: Chat, prompt: SolverPrompt, context_limit: int | None) -> dict[str, Any]:
        """Return the arguments of `__init__` that a recipe gives beside the algorithm's table."""
        return {
            "chat": chat,
            "before": prompt.before,
            "context": recipe.context,
            "critic": recipe.critic,
            "teacher": limited_teacher(recipe, chat, context_limit),
            "num_generations": recipe.training.num_generations,
            "max_tokens": recipe.training.max_tokens_per_micro_batch,
            "seed": recipe.seed,
        }

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where a reference solution is needed and missing, or breaks the solver's format."""
        self.context.check_problems(problems)
        if self.algorithm.lmbda < 1:
            for problem in problems:
                reference_text(problem)

    def rollout_source(self, step: int) -> RolloutSource:
        """Draw by `algorithm.lmbda` whether the step is on the policy's rollouts or on reference solutions (GKD)."""
        draw = Random(derive_seed(self.seed, "lmbda", step)).random()
        return "policy" if draw < self.algorithm.lmbda else "reference"

    def build_examples(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> StepExamples[DistillationExample]:
        """Build both views of every rollout. See `Algorithm.build_examples`."""
        cases, failures = count_critiques([critiques.get(rollout.id) for rollout in rollouts])
        step = StepExamples[DistillationExample](cases=cases, failures=failures)
        for rollout, chosen in self.context.choose(rollouts, problems, critiques):
            example, failure = self._example(rollout, chosen)
            if failure:
                step.failures[failure] += 1
            if example is None:
                step.outcomes["dropped"] += 1
                if failure.startswith(NOTHING_TO_SHOW):
                    step.outcomes["masked"] += 1
                continue
            step.outcomes["trained"] += 1
            step.outcomes["fallback"] += isinstance(chosen, ChosenContext) and chosen.is_fallback
            step.outcomes["cut"] += example.cut
            step.examples.append(example)
        return step

    def _example(self, rollout: Rollout, chosen: ChosenContext | str) -> tuple[DistillationExample | None, str]:
        """Return an example, or None and the reason why there is none that no critic's failure names."""
        if isinstance(chosen, str):
            return None, chosen
        span = "all" if chosen.is_fallback else self.algorithm.loss_span  # without a critique no first error is known
        bounds = loss_bounds(rollout, chosen.critique, span, skip=self.algorithm.num_loss_tokens_to_skip)
        try:
            example = distillation_example(
                self.chat, self.before, chosen.context, chosen.source, self.teacher, bounds=bounds
            )
        except DoesNotFit:
            return None, "teacher prompt too long"
        if not example.message:
            return None, NOTHING_TO_SHOW
        return (example, "") if example.student.num_loss_tokens else (None, "no token in the loss")


def distillation_example(
    chat: Chat,
    before: Sequence[Turn],
    context: Context,
    source: ContextInput,
    teacher: config.TeacherConfig,
    *,
    bounds: tuple[int, int] | None = None,
) -> DistillationExample:
    """Build both views of a rollout under a context.

    Args:
        chat: encodes the teacher's prompt. The student's prompt ids are the rollout's own.
        before: turns before the problem, which the solver was shown as well.
        context: the design that the teacher reads.
        source: the rollout, and what the context may show beside it.
        teacher: length limit and thinking boundary.
        bounds: completion tokens in the loss, [start, stop); None is all.

    Raises:
        DoesNotFit: problem and completion alone exceed `teacher.max_length`.
    """
    rollout = source.rollout
    prompt = build_teacher_prompt(chat, before, context, source, teacher, completion_tokens=len(rollout.completion_ids))
    start, stop = bounds or (0, len(rollout.completion_ids))
    views = [
        View(prompt_ids=ids, completion_ids=rollout.completion_ids, loss_start=start, loss_stop=stop)
        for ids in (rollout.prompt_ids, prompt.ids)
    ]
    sampled = rollout.sampler_logprobs
    return DistillationExample(
        rollout_id=rollout.id,
        student=views[0],
        teacher=views[1],
        message=prompt.message,
        cut=prompt.cut,
        sampler_logprobs=None if sampled is None else sampled[start:stop],
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
        if (error := rollout_error_span(rollout, critique)) is not None:
            end = error.end if error.departure is None else error.departure + 1
            stop = token_span(rollout, error.start, end)[1]
    return min(skip, stop), stop
