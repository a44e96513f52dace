"""Credit (Eq. 4) of rollouts under several contexts.

Each rollout costs one student pass, shared by all contexts, and one teacher pass a context. A few rollouts of similar
length are scored at a time under every context, so that batches are full and finished work is whole rollouts. The
tokens of a batch are bounded, and with them the memory. A view's scores do not depend on its batch. Left out: reading a
common beginning once and sharing its keys and values. On GSM8K without worked examples 6 % of the tokens are one; with
the two of `recipes/smollm2-sums.toml` it is 37 %, and would pay.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.algorithms.distillation_loss import DistillationExample
from stepalign.algorithms.self_distillation import distillation_example
from stepalign.algorithms.teacher_prompt import DoesNotFit
from stepalign.chat import Chat
from stepalign.collate import Batch, collate, sharing_order, split_views
from stepalign.contexts import Context, ContextInput, others
from stepalign.contexts.wrong import wrong_inputs
from stepalign.losses.advantages import log_mean_exp
from stepalign.losses.log_probs import scores
from stepalign.policy import Policy
from stepalign.probing.folder import Probe
from stepalign.prompts.conversation import Turn
from stepalign.records import Credit, TopTokens
from stepalign.teachers import Teacher
from stepalign.views import View

BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}
"""Tokens of a batch, padding included. On the CPU, larger batches are no faster."""

_ROLLOUTS_AT_A_TIME = 8


class TokenScores(NamedTuple):
    """A model's log-probabilities of a view's loss tokens, in nats to six decimals."""

    log_probs: tuple[float, ...]
    top: tuple[TopTokens, ...]
    """The likeliest tokens in each place; empty unless requested."""


@torch.no_grad()
def score_views(
    forward: Callable[[Batch], Float[Tensor, "tokens hidden"]],
    head: Float[Tensor, "vocab hidden"],
    views: Sequence[View],
    *,
    top: int = 0,
    share_prefixes: bool = False,
) -> list[TokenScores]:
    """Score every view, in the given order.

    Args:
        forward: a `Policy`, or a teacher's `forward`.
        head: the model's output embedding.
        views: of any lengths.
        top: the number of likeliest tokens kept in each place.
        share_prefixes: let views that begin alike share a row (`Policy.shares_prefixes`).
    """
    by_index: dict[int, TokenScores] = {}
    # The longest come first, so that running out of memory shows at once.
    max_tokens = BATCH_TOKENS.get(head.device.type, BATCH_TOKENS["cuda"])
    order = sorted(range(len(views)), key=lambda index: -len(views[index].input_ids))
    if share_prefixes:
        order = sharing_order(views, max_tokens)
    remaining = iter(order)
    for group in split_views([views[index] for index in order], max_tokens, share_prefixes=share_prefixes):
        batch = collate(group, share_prefixes=share_prefixes).to(head.device)
        scored = scores(forward(batch), head, batch.targets, top=top)
        sizes = [view.num_loss_tokens for view in group]
        parts = (
            torch.split(tensor.cpu(), sizes) for tensor in (scored.log_probs, scored.top_ids, scored.top_log_probs)
        )
        for log_probs, ids, top_log_probs in zip(*parts, strict=True):
            entries = zip(ids.tolist(), map(_rounded, top_log_probs.tolist()), strict=True)
            likeliest = tuple(tuple(zip(*entry, strict=True)) for entry in entries) if top else ()
            by_index[next(remaining)] = TokenScores(_rounded(log_probs.tolist()), likeliest)
    return [by_index[index] for index in range(len(views))]


def _rounded(values: list[float]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)


class CreditScorer:
    """A policy as student, its teacher, and the contexts to compare."""

    def __init__(
        self,
        policy: Policy,
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
            policy: in evaluation mode.
            chat: encodes the teacher's prompts.
            before: the turns before the problem, as in the solver's prompt.
            contexts: with distinct names.
            teacher: the policy's.
            prompt: the teacher's length limit and thinking boundary.
            top: the number of likeliest tokens kept in each place.
            num_wrong: the most wrong contexts that each context is contrasted with.
        """
        self.num_wrong = num_wrong
        self.policy, self.chat, self.before, self.contexts = policy, chat, before, contexts
        self.teacher, self.prompt, self.top = teacher, prompt, top
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
        sources = context_inputs(inputs)
        students = {
            rollout_id: TokenScores(credit.student, credit.student_top) for (rollout_id, _), credit in cached.items()
        }
        ordered = sorted(inputs.rollouts, key=lambda rollout: len(rollout.prompt_ids) + len(rollout.completion_ids))
        for first in range(0, len(ordered), _ROLLOUTS_AT_A_TIME):
            examples = {
                (rollout.id, context.name): example
                for rollout in ordered[first : first + _ROLLOUTS_AT_A_TIME]
                for context in self.contexts
                if (rollout.id, context.name) not in cached and (example := self._example(context, sources[rollout.id]))
            }
            unscored = {name: example.student for (name, _), example in examples.items() if name not in students}
            teacher_views = [example.teacher for example in examples.values()]
            self.tokens += sum(len(view.input_ids) for view in (*unscored.values(), *teacher_views))
            students |= zip(unscored, self._score(self.policy, self.policy, unscored.values()), strict=True)
            teachers = self._score(self.teacher, self.teacher.forward, teacher_views)
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
                )
                for ((rollout_id, context_name), example), teacher in zip(examples.items(), teachers, strict=True)
            ]

    def _wrong(
        self, pairs: Sequence[tuple[str, str]], sources: Mapping[str, ContextInput]
    ) -> dict[tuple[str, str], tuple[float, ...]]:
        """Return log mean_k p of each token under wrong contexts, by rollout and context, where there are some."""
        if not self.num_wrong:
            return {}
        groups = others.groups(source.rollout for source in sources.values())
        written = [(one.problem.id, one.critique) for one in sources.values() if one.critique is not None]
        by_name = {context.name: context for context in self.contexts}
        views: list[tuple[tuple[str, str], View]] = []
        for rollout_id, name in pairs:
            context, source = by_name[name], sources[rollout_id]
            found = wrong_inputs(context, source, groups[source.problem.id], written, self.num_wrong)
            own: list[View] = []
            with suppress(DoesNotFit):
                own = [distillation_example(self.chat, self.before, context, one, self.prompt).teacher for one in found]
            views += [((rollout_id, name), view) for view in own]
            self.skipped[f"{name}: no wrong context"] += not own
        self.tokens += sum(len(view.input_ids) for _, view in views)
        scored = self._score(self.teacher, self.teacher.forward, [view for _, view in views])
        by_pair: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
        for (pair, _), one in zip(views, scored, strict=True):
            by_pair[pair].append(one.log_probs)
        return {
            pair: _rounded(log_mean_exp(torch.tensor(rows, dtype=torch.float64)).tolist())
            for pair, rows in by_pair.items()
        }

    def _score(
        self,
        model: Policy | Teacher,
        forward: Callable[[Batch], Float[Tensor, "tokens hidden"]],
        views: Collection[View],
    ) -> list[TokenScores]:
        return score_views(forward, model.head, list(views), top=self.top, share_prefixes=model.shares_prefixes)

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
        self.skipped[f"{context.name}: {reason}"] += 1
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
