"""Eq. 4 for rollouts under several contexts: one pass of the student, shared by all, and one of the teacher each.

A few rollouts of similar length are read at a time under every context at once, so that batches are full and what is
done so far is whole rollouts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from stepalign import config
from stepalign.algorithms.distillation_loss import DistillationExample
from stepalign.algorithms.self_distillation import distillation_example
from stepalign.algorithms.teacher_prompt import DoesNotFit
from stepalign.chat import Chat
from stepalign.contexts import Context
from stepalign.policy import Policy
from stepalign.probing.logprobs import Sight, look
from stepalign.prompts.conversation import Turn
from stepalign.records import Credit, Critique, Problem, Rollout
from stepalign.views import View

_TOGETHER = 8
"""Rollouts read at a time."""

Key = tuple[str, str]
"""A rollout's id and a context's name."""


class Crediting:
    """A policy as student, its base as teacher, and the contexts that are compared."""

    def __init__(
        self,
        policy: Policy,
        chat: Chat,
        before: Sequence[Turn],
        contexts: Sequence[Context],
        teacher: config.TeacherConfig,
        *,
        top: int = 0,
    ) -> None:
        """
        Args:
            policy: in evaluation mode; without an adapter it is its own teacher.
            chat: encodes the teacher's prompts.
            before: the turns before the problem, which the solver was shown as well.
            contexts: with distinct names.
            teacher: limits and thinking boundary.
            top: how many of the likeliest tokens are kept beside each sampled one.
        """
        self.policy, self.chat, self.before, self.contexts = policy, chat, before, contexts
        self.teacher, self.top = teacher, top
        self.skipped: Counter[str] = Counter()
        """Rollouts and contexts without credit, by reason."""
        self.tokens = 0
        """Tokens read so far, prompts included."""

    def run(
        self,
        rollouts: Sequence[Rollout],
        problems: Mapping[str, Problem],
        critiques: Mapping[str, Critique],
        kept: Mapping[Key, Credit],
    ) -> Iterator[list[Credit]]:
        """Yield the credit that is not kept yet, some rollouts at a time.

        Args:
            rollouts: with their prompts' ids.
            problems: by id.
            critiques: by rollout id, where there are any.
            kept: credit that an earlier run gave.
        """
        students = {rollout_id: Sight(log_probs=c.student, top=c.student_top) for (rollout_id, _), c in kept.items()}
        ordered = sorted(rollouts, key=lambda rollout: len(rollout.prompt_ids) + len(rollout.completion_ids))
        for first in range(0, len(ordered), _TOGETHER):
            together = ordered[first : first + _TOGETHER]
            lessons: dict[Key, DistillationExample] = {}
            for rollout in together:
                for context in self.contexts:
                    if (rollout.id, context.name) not in kept:
                        made = self._lesson(context, rollout, problems[rollout.problem_id], critiques.get(rollout.id))
                        if made is not None:
                            lessons[rollout.id, context.name] = made
            new = {key[0]: made.student for key, made in lessons.items() if key[0] not in students}
            students |= zip(new, self._look(list(new.values()), student=True), strict=True)
            teachers = self._look([made.teacher for made in lessons.values()], student=False)
            yield [
                Credit(
                    rollout_id=rollout_id,
                    context=context_name,
                    prompt=made.message,
                    student=students[rollout_id].log_probs,
                    teacher=seen.log_probs,
                    student_top=students[rollout_id].top,
                    teacher_top=seen.top,
                )
                for ((rollout_id, context_name), made), seen in zip(lessons.items(), teachers, strict=True)
            ]

    def _look(self, views: Sequence[View], *, student: bool) -> list[Sight]:
        self.tokens += sum(len(view.input_ids) for view in views)
        read = self.policy if student else self.policy.forward_base
        return look(read, self.policy.head, views, top=self.top)

    def _lesson(
        self, context: Context, rollout: Rollout, problem: Problem, critique: Critique | None
    ) -> DistillationExample | None:
        if critique is None and context.needs_critique:
            self.skipped[f"{context.name}: no critique"] += 1
            return None
        if context.needs_solution and not problem.solution:
            self.skipped[f"{context.name}: no reference solution"] += 1
            return None
        try:
            return distillation_example(self.chat, self.before, context, problem, rollout, critique, self.teacher)
        except DoesNotFit:
            self.skipped[f"{context.name}: teacher prompt too long"] += 1
            return None
