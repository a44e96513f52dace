"""From rollouts and a critic's answers to lessons; what cannot be taught falls back or drops out, and is counted."""

from collections.abc import Mapping, Sequence

from stepalign import config, contexts
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationLoss
from stepalign.chat import Chat
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.views import DistillationExample, DoesNotFit, lesson


class SelfDistillation:
    """The teacher's side of a recipe: context, fallback, limits."""

    num_iterations = 1

    def __init__(
        self,
        chat: Chat,
        prompt: SolverPrompt,
        settings: config.Recipe,
        objective: config.DistillationConfig,
        context_limit: int | None,
    ) -> None:
        """`context_limit` is the model's own; the teacher's views stay within both.

        Raises:
            StepalignError: context, horizon and critic do not go together.
        """
        self.chat, self.before = chat, prompt.before
        self.settings, self.objective = settings, objective
        self.context = contexts.load(settings.context.template)
        self.needs_critique = self.context.needs_critique or objective.loss_span == "until_first_error"
        if self.needs_critique and settings.critic is None:
            why = (
                f"context.template = {settings.context.template!r} shows a critique"
                if self.context.needs_critique
                else "algorithm.loss_span = 'until_first_error' needs a critique that knows the first error"
            )
            raise StepalignError(f"{why}, but the recipe has no [critic]")
        self.one_by_one = not settings.context.shuffled
        self.fallback: contexts.Context | None = None
        if self.needs_critique and settings.critic is not None and "refsol" in settings.critic.fallbacks:
            self.fallback = contexts.load(settings.context.fallback_template)
            if self.fallback.needs_critique:
                raise StepalignError(
                    f"context.fallback_template = {self.fallback.name!r} shows a critique, but replaces a missing one"
                )
        self.teacher = within(settings.teacher, context_limit)

    @classmethod
    def from_config(
        cls,
        settings: config.DistillationConfig,
        *,
        recipe: config.Recipe,
        chat: Chat,
        prompt: SolverPrompt,
        context_limit: int | None,
    ) -> "SelfDistillation":
        """Build the algorithm of a recipe."""
        return cls(chat, prompt, recipe, settings, context_limit)

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where the contexts show a reference solution that problems lack."""
        shown = [context for context in (self.context, self.fallback) if context and context.needs_solution]
        lacking = [problem.id for problem in problems if not problem.solution]
        if shown and lacking:
            raise StepalignError(
                f"context {shown[0].name!r} shows the reference solution, but {len(lacking)} of {len(problems)} "
                f"problems have none (the first: {lacking[0]})"
            )

    def teach(
        self,
        rollouts: Sequence[Rollout],
        problems: Mapping[str, Problem],
        answers: Mapping[str, Critique | CritiqueFailure],
    ) -> StepExamples[DistillationExample]:
        """A lesson for every rollout that can be taught.

        Args:
            rollouts: one step's, graded.
            problems: by id.
            answers: the critic's, by rollout id; empty where no critique is needed.
        """
        taught: StepExamples[DistillationExample] = StepExamples(lessons=[])
        others = _others(rollouts, answers) if self.settings.context.shuffled else {}
        for rollout in rollouts:
            answer = answers.get(rollout.id)
            if isinstance(answer, Critique):
                taught.cases[answer.case] += 1
            elif answer is not None:
                taught.failures[answer.reason] += 1
            made = self._lesson(rollout, problems[rollout.problem_id], answer, others.get(rollout.id), taught)
            if made is None or not made.student.num_loss_tokens:
                taught.outcomes["dropped"] += 1
                continue
            taught.outcomes["taught"] += 1
            taught.outcomes["fallback"] += self.needs_critique and not isinstance(answer, Critique)
            taught.outcomes["cut"] += made.cut
            taught.lessons.append(made)
        return taught

    def learner(self) -> DistillationLoss:
        """The loss for one step's lessons."""
        return DistillationLoss(self.objective)

    def _lesson(
        self,
        rollout: Rollout,
        problem: Problem,
        answer: Critique | CritiqueFailure | None,
        other: Critique | None,
        taught: StepExamples[DistillationExample],
    ) -> DistillationExample | None:
        critique = answer if isinstance(answer, Critique) else None
        context, objective = self.context, self.objective
        if critique is None and self.needs_critique:
            if self.fallback is None or self._stands_in(answer) == "drop":
                return None
            # Without a critique nothing knows where the first error is.
            context, objective = self.fallback, objective.model_copy(update={"loss_span": "all"})
        elif other is None and self.settings.context.shuffled:
            taught.failures["no other problem's critique"] += 1
            return None
        try:
            return lesson(
                self.chat, self.before, context, problem, rollout, critique, self.teacher, objective, shown=other
            )
        except DoesNotFit:
            taught.failures["teacher prompt too long"] += 1
            return None

    def _stands_in(self, answer: CritiqueFailure | Critique | None) -> config.Fallback:
        """What takes the place of a critique that is not there: the policy's word, or else the last resort."""
        assert self.settings.critic is not None
        own = answer.fallback if isinstance(answer, CritiqueFailure) else None
        return own or self.settings.critic.on_failure


def _others(rollouts: Sequence[Rollout], answers: Mapping[str, Critique | CritiqueFailure]) -> dict[str, Critique]:
    """For each rollout the next critique, round about, that is of another problem's."""
    critiques = [(rollout.problem_id, answers.get(rollout.id)) for rollout in rollouts]
    others = {}
    for place, rollout in enumerate(rollouts):
        for problem_id, answer in (*critiques[place + 1 :], *critiques[:place]):
            if problem_id != rollout.problem_id and isinstance(answer, Critique):
                others[rollout.id] = answer
                break
    return others


def within(teacher: config.TeacherConfig, context_limit: int | None) -> config.TeacherConfig:
    """A recipe's teacher within the model's own limit, where it has one."""
    if context_limit is None:
        return teacher
    return teacher.model_copy(update={"max_length": min(teacher.max_length, context_limit)})
