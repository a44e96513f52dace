"""Credit (Eq. 4) of rollouts under several contexts.

Each rollout costs one student pass, shared by all contexts, and one teacher pass a context. A few rollouts of similar
length are scored at a time under every context, so that batches are full and finished work is whole rollouts. The
tokens of a batch are bounded, and with them the memory. Views that begin alike share a row, so worked examples are read
once a batch.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress

import torch

from stepalign import config
from stepalign.algorithms.distillation_loss import DistillationExample
from stepalign.algorithms.self_distillation import distillation_example
from stepalign.algorithms.teacher_prompt import DoesNotFit
from stepalign.chat import Chat
from stepalign.contexts import Context, ContextInput, others
from stepalign.contexts.wrong import wrong_inputs
from stepalign.losses.advantages import log_mean_exp
from stepalign.probing.folder import Probe
from stepalign.prompts.conversation import Turn
from stepalign.records import Credit
from stepalign.scoring import Predictor, TokenScores, rounded, score_views
from stepalign.teachers import Teacher
from stepalign.views import View

_ROLLOUTS_AT_A_TIME = 8


class CreditScorer:
    """A student, its teacher, and the contexts to compare."""

    def __init__(
        self,
        student: Predictor,
        chat: Chat,
        before: Sequence[Turn],
        contexts: Sequence[Context],
        teacher: Teacher,
        prompt: config.TeacherConfig,
        *,
        top: int = 0,
        num_wrong: int = 0,
    ) -> None:
        """
        Args:
            student: in evaluation mode.
            chat: encodes the teacher's prompts.
            before: the turns before the problem, as in the solver's prompt.
            contexts: with distinct names.
            teacher: the student's.
            prompt: the teacher's length limit and thinking boundary.
            top: the number of likeliest tokens kept in each place.
            num_wrong: the most wrong contexts that each context is contrasted with.
        """
        self.num_wrong = num_wrong
        self.student, self.chat, self.before, self.contexts = student, chat, before, contexts
        self.teacher, self.prompt, self.top = teacher, prompt, top
        self.reasons: dict[tuple[str, str], str] = {}
        """For each pair of a rollout and a context without credit, or without its contrast, the reason."""
        self.tokens = 0
        """Tokens scored so far, prompts included."""

    @property
    def skipped(self) -> dict[str, int]:
        """Number of pairs by context and reason."""
        return dict(Counter(f"{context}: {reason}" for (_, context), reason in self.reasons.items()))

    def run(self, inputs: Probe, cached: Mapping[tuple[str, str], Credit]) -> Iterator[list[Credit]]:
        """Yield the credit that is not cached, some rollouts at a time.

        Args:
            inputs: rollouts with their prompts' ids, problems, and critiques where there are any.
            cached: credit from an earlier run, by rollout id and context name.
        """
        sources = context_inputs(inputs)
        students = {
            rollout_id: TokenScores(credit.student, credit.student_top) for (rollout_id, _), credit in cached.items()
        }
        names = {context.name for context in self.contexts}
        self._wrong_views([pair for pair, one in cached.items() if pair[1] in names and not one.wrong], sources)
        ordered = sorted(inputs.rollouts, key=lambda rollout: len(rollout.prompt_ids) + len(rollout.completion_ids))
        for first in range(0, len(ordered), _ROLLOUTS_AT_A_TIME):
            examples = {
                (rollout.id, context.name): example
                for rollout in ordered[first : first + _ROLLOUTS_AT_A_TIME]
                for context in self.contexts
                if (rollout.id, context.name) not in cached and (example := self._example(context, sources[rollout.id]))
            }
            if not examples:
                continue
            unscored = {name: example.student for (name, _), example in examples.items() if name not in students}
            teacher_views = [example.teacher for example in examples.values()]
            self.tokens += sum(len(view.input_ids) for view in (*unscored.values(), *teacher_views))
            students |= zip(unscored, self._score(self.student, unscored.values()), strict=True)
            teachers = self._score(self.teacher, teacher_views)
            wrong = self._wrong(list(examples), sources)
            yield [
                Credit(
                    rollout_id=rollout_id,
                    context=context_name,
                    prompt=example.message,
                    student=students[rollout_id].log_probs,
                    teacher=teacher.log_probs,
                    student_top=students[rollout_id].top,
                    teacher_top=teacher.top,
                    wrong=wrong.get((rollout_id, context_name), ()),
                    cut=example.cut,
                )
                for ((rollout_id, context_name), example), teacher in zip(examples.items(), teachers, strict=True)
            ]

    def _wrong(
        self, pairs: Sequence[tuple[str, str]], sources: Mapping[str, ContextInput]
    ) -> dict[tuple[str, str], tuple[float, ...]]:
        """Return log mean_k p of each token under wrong contexts, by rollout and context, where there are some."""
        views = self._wrong_views(pairs, sources)
        self.tokens += sum(len(view.input_ids) for _, view in views)
        scored = self._score(self.teacher, [view for _, view in views])
        by_pair: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
        for (pair, _), one in zip(views, scored, strict=True):
            by_pair[pair].append(one.log_probs)
        return {
            pair: rounded(log_mean_exp(torch.tensor(rows, dtype=torch.float64)).tolist())
            for pair, rows in by_pair.items()
        }

    def _wrong_views(
        self, pairs: Sequence[tuple[str, str]], sources: Mapping[str, ContextInput]
    ) -> list[tuple[tuple[str, str], View]]:
        """Return the teacher's views under wrong contexts, each with its pair. A pair without any has its reason."""
        if not self.num_wrong:
            return []
        groups = others.groups(source.rollout for source in sources.values())
        written = [(one.problem.id, one.critique) for one in sources.values() if one.critique is not None]
        by_name = {context.name: context for context in self.contexts}
        views: list[tuple[tuple[str, str], View]] = []
        for pair in pairs:
            source, context = sources[pair[0]], by_name[pair[1]]
            found = wrong_inputs(context, source, groups[source.problem.id], written, self.num_wrong)
            own: list[View] = []
            for one in found:
                with suppress(DoesNotFit):
                    own.append(distillation_example(self.chat, self.before, context, one, self.prompt).teacher)
            views += [(pair, view) for view in own]
            if not own:
                self.reasons[pair] = "wrong context too long" if found else "no wrong context"
        return views

    def _score(self, model: Predictor, views: Collection[View]) -> list[TokenScores]:
        return score_views(model, list(views), top=self.top)

    def _example(self, context: Context, source: ContextInput) -> DistillationExample | None:
        reason = "teacher prompt too long"
        if source.critique is None and context.needs_critique:
            reason = "no critique"
        elif context.needs_solution and not source.problem.solution:
            reason = "no reference solution"
        elif missing := context.missing(source):
            reason = missing
        else:
            with suppress(DoesNotFit):
                example = distillation_example(self.chat, self.before, context, source, self.prompt)
                if example.message:
                    return example
                reason = "empty message"
        self.reasons[source.rollout.id, context.name] = reason
        return None


def context_inputs(inputs: Probe) -> dict[str, ContextInput]:
    """Return what a context may show of each rollout, by its id. Siblings are other rollouts of the probe."""
    problems, critiques = {problem.id: problem for problem in inputs.problems}, inputs.critiques
    groups, demonstrations = others.groups(inputs.rollouts), others.demonstrations(inputs.problems)
    return {
        rollout.id: ContextInput(
            problem=problems[rollout.problem_id],
            rollout=rollout,
            critique=critiques.get(rollout.id),
            sibling=others.successful_sibling(rollout, groups[rollout.problem_id]),
            demonstration=demonstrations.get(rollout.problem_id),
        )
        for rollout in inputs.rollouts
    }
