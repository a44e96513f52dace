"""Credit (Eq. 4) of rollouts under several contexts.

Each rollout costs one student pass, shared by all contexts, and one teacher pass a context. A few rollouts of similar
length are scored at a time under every context, so that batches are full and finished work is whole rollouts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from stepalign import config
from stepalign.algorithms.distillation_loss import DistillationExample
from stepalign.algorithms.self_distillation import distillation_example
from stepalign.algorithms.teacher_prompt import DoesNotFit
from stepalign.chat import Chat
from stepalign.contexts import Context
from stepalign.policy import Policy
from stepalign.probing.folder import Probe
from stepalign.probing.logprobs import TokenScores, score_views
from stepalign.prompts.conversation import Turn
from stepalign.records import Credit, Critique, Problem, Rollout

_ROLLOUTS_AT_A_TIME = 8


class CreditScorer:
    """A policy as student, its base as teacher, and the contexts to compare."""

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
            before: the turns before the problem, as in the solver's prompt.
            contexts: with distinct names.
            teacher: limits and thinking boundary.
            top: how many of the likeliest tokens to keep beside each sampled one.
        """
        self.policy, self.chat, self.before, self.contexts = policy, chat, before, contexts
        self.teacher, self.top = teacher, top
        self.skipped: Counter[str] = Counter()
        """Pairs of a rollout and a context without credit, by reason."""
        self.tokens = 0
        """Tokens scored so far, prompts included."""

    def run(self, inputs: Probe, cached: Mapping[tuple[str, str], Credit]) -> Iterator[list[Credit]]:
        """Yield the credit that is not cached, some rollouts at a time.

        Args:
            inputs: rollouts with their prompts' ids, problems, and critiques where there are any.
            cached: credit from an earlier run, by rollout id and context name.
        """
        problems, critiques = {problem.id: problem for problem in inputs.problems}, inputs.critiques
        students = {
            rollout_id: TokenScores(log_probs=credit.student, top=credit.student_top)
            for (rollout_id, _), credit in cached.items()
        }
        ordered = sorted(inputs.rollouts, key=lambda rollout: len(rollout.prompt_ids) + len(rollout.completion_ids))
        for first in range(0, len(ordered), _ROLLOUTS_AT_A_TIME):
            examples = {
                (rollout.id, context.name): example
                for rollout in ordered[first : first + _ROLLOUTS_AT_A_TIME]
                for context in self.contexts
                if (rollout.id, context.name) not in cached
                and (
                    example := self._example(context, rollout, problems[rollout.problem_id], critiques.get(rollout.id))
                )
            }
            unscored = {name: example.student for (name, _), example in examples.items() if name not in students}
            teacher_views = [example.teacher for example in examples.values()]
            self.tokens += sum(len(view.input_ids) for view in (*unscored.values(), *teacher_views))
            head = self.policy.head
            scores = score_views(self.policy, head, list(unscored.values()), top=self.top)
            students |= zip(unscored, scores, strict=True)
            teachers = score_views(self.policy.forward_base, head, teacher_views, top=self.top)
            yield [
                Credit(
                    rollout_id=rollout_id,
                    context=context_name,
                    prompt=example.message,
                    student=students[rollout_id].log_probs,
                    teacher=teacher.log_probs,
                    student_top=students[rollout_id].top,
                    teacher_top=teacher.top,
                )
                for ((rollout_id, context_name), example), teacher in zip(examples.items(), teachers, strict=True)
            ]

    def _example(
        self, context: Context, rollout: Rollout, problem: Problem, critique: Critique | None
    ) -> DistillationExample | None:
        reason = "teacher prompt too long"
        if critique is None and context.needs_critique:
            reason = "no critique"
        elif context.needs_solution and not problem.solution:
            reason = "no reference solution"
        else:
            with suppress(DoesNotFit):
                return distillation_example(self.chat, self.before, context, problem, rollout, critique, self.teacher)
        self.skipped[f"{context.name}: {reason}"] += 1
        return None
