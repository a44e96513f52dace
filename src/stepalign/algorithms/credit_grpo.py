"""GRPO whose group advantage is spread over a rollout's tokens by credit.

The grade decides each rollout's direction, and credit how much of it each token gets (`losses.advantages`). Credit is

    context     log p(y_t | teacher's context) − log p(y_t | student's prompt)       RLSD (arXiv 2604.03128)
    contrast    log p(y_t | right context) − log mean_k p(y_t | wrong context k)     RLCSD (arXiv 2606.11709)
    verdicts    +1 in the steps that the critique found correct, −1 in the others    after DRACO (arXiv 2609.04094)

and may be gathered over steps (after AgentOPSD, arXiv 2608.05987). The teacher reads the recipe's context; a wrong
context is the same template with a failed sibling, or another problem's critique (`contexts.wrong`). With `verdicts`
there is no teacher. A rollout without a context keeps its plain advantage, and is counted.

Left out: learned weights of steps; credit beside a group without contrast, because its advantage is 0.

    stepalign train quickstart algorithm.kind=credit-grpo training.num_generations=8
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.grpo import GRPO, PolicyGradientExample
from stepalign.algorithms.self_distillation import distillation_example
from stepalign.algorithms.teacher_context import NOTHING_TO_SHOW, TeacherContext, count_critiques
from stepalign.algorithms.teacher_prompt import DoesNotFit, limited_teacher
from stepalign.algorithms.teacher_state import WithTeacher
from stepalign.chat import Chat
from stepalign.collate import Batch, collate, split_views
from stepalign.contexts import ContextInput, others
from stepalign.contexts.wrong import check_has_wrong, wrong_inputs
from stepalign.losses.advantages import Modulation, conserve, contrast, gather_steps, modulate
from stepalign.losses.lm_head import logit_dtype
from stepalign.losses.log_probs import scores
from stepalign.policy import Policy
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CriticResult, Critique, Problem, Rollout
from stepalign.trace import parse_rollout, step_spans
from stepalign.views import View


@dataclass(frozen=True, kw_only=True)
class CreditExample(PolicyGradientExample):
    """One rollout with its advantage, and what credit is made of."""

    teachers: tuple[View, ...] = ()
    """Views under the right context and, to contrast with, under wrong ones; empty without credit."""
    verdicts: tuple[float, ...] = ()
    """Of each token, where credit is made of a critique's verdicts."""
    steps: tuple[tuple[int, int], ...] = ()
    """Token ranges of the steps."""
    cut: bool = False
    """True where a teacher's context was shortened."""

    @property
    def max_input_len(self) -> int:
        """The tokens of the longest pass over the example."""
        return max(len(view.input_ids) for view in (self.student, *self.teachers))


class CreditGRPO(WithTeacher, GRPO):
    """Group-relative policy optimization with token advantages."""

    reference_stage = "teacher"

    def __init__(
        self,
        algorithm: config.CreditGRPOConfig,
        *,
        temperature: float,
        chat: Chat,
        prompt: SolverPrompt,
        context: TeacherContext,
        teacher: config.TeacherConfig,
        max_tokens: int | None = None,
    ) -> None:
        """Take the recipe's tables.

        Args:
            algorithm: the recipe's table.
            temperature: of sampling.
            chat: encodes teacher prompts.
            prompt: has the turns before the problem.
            context: the design that the teacher reads.
            teacher: kind, length limit and thinking boundary.
            max_tokens: padded tokens of one teacher pass, at most; None is no bound.

        Raises:
            StepalignError: the context cannot be wrong, and credit is a contrast.
        """
        WithTeacher.__init__(self, teacher)
        GRPO.__init__(self, algorithm, temperature=temperature)
        self.algorithm: config.CreditGRPOConfig = algorithm
        self.chat, self.before, self.context, self.max_tokens = chat, prompt.before, context, max_tokens
        self.needs_critique = algorithm.credit == "verdicts" or context.needs_critique
        if algorithm.credit == "contrast":
            check_has_wrong(context.context, "algorithm.credit = 'contrast'")
        self.modulation = Modulation(
            mode=algorithm.modulation,
            weight=algorithm.credit_weight,
            scale=algorithm.credit_scale,
            min_credit=algorithm.min_credit,
            min_advantage=algorithm.min_advantage,
            clip=algorithm.credit_clip,
        )
        self._credit: dict[str, Float[Tensor, " tokens"]] = {}
        self._updated = False

    @classmethod
    def from_config(  # type: ignore[override]
        cls,
        algorithm: config.CreditGRPOConfig,
        *,
        recipe: config.Recipe,
        chat: Chat,
        prompt: SolverPrompt,
        context_limit: int | None,
    ) -> "CreditGRPO":
        """Build the algorithm of a recipe. `context_limit` is the model's own context length."""
        verdicts = "algorithm.credit = 'verdicts'" if algorithm.credit == "verdicts" else ""
        return cls(
            algorithm,
            temperature=recipe.sampling.temperature,
            chat=chat,
            prompt=prompt,
            context=TeacherContext.of(recipe, critique_for=verdicts),
            teacher=limited_teacher(recipe, chat, context_limit),
            max_tokens=recipe.training.max_tokens_per_micro_batch,
        )

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where a context shows a reference solution and problems have none."""
        if self.algorithm.credit != "verdicts":
            self.context.check_problems(problems)

    def build_examples(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> StepExamples[PolicyGradientExample]:
        """Give every rollout its advantage and its credit's views. See `Algorithm.build_examples`."""
        step = super().build_examples(rollouts, problems, critiques)
        cases, failures = count_critiques([critiques.get(rollout.id) for rollout in rollouts])
        step.cases.update(cases)
        step.failures.update(failures)
        by_id = {rollout.id: rollout for rollout in rollouts}
        credited = dict(self._verdicts(by_id, critiques) if self.algorithm.credit == "verdicts" else ())
        if self.algorithm.credit != "verdicts":
            trained = {example.rollout_id for example in step.examples}
            credited = dict(self._teacher_views(trained, rollouts, problems, critiques, step))
        for place, example in enumerate(step.examples):
            given = credited.get(example.rollout_id)
            step.outcomes["without credit"] += given is None
            step.examples[place] = replace(
                given or CreditExample(rollout_id=example.rollout_id, student=example.student, advantage=0.0),
                advantage=example.advantage,
                sampler_logprobs=example.sampler_logprobs,
            )
        return step

    def _verdicts(
        self, rollouts: Mapping[str, Rollout], critiques: Mapping[str, CriticResult]
    ) -> Iterator[tuple[str, CreditExample]]:
        for rollout_id, rollout in rollouts.items():
            critique = critiques.get(rollout_id)
            if isinstance(critique, Critique):
                steps, values = (
                    step_spans(rollout, parse_rollout(rollout)),
                    [0.0] * len(rollout.completion_ids),
                )
                for verdict in critique.verdicts:
                    if verdict.step <= len(steps):  # a missing final answer has no tokens
                        start, stop = steps[verdict.step - 1]
                        values[start:stop] = [1.0 if verdict.correct else -1.0] * (stop - start)
                yield (
                    rollout_id,
                    CreditExample(
                        rollout_id=rollout_id,
                        student=View.whole(rollout.prompt_ids, rollout.completion_ids),
                        advantage=0.0,
                        verdicts=tuple(values),
                        steps=steps,
                    ),
                )

    def _teacher_views(
        self,
        trained: set[str],
        rollouts: Sequence[Rollout],
        problems: Mapping[str, Problem],
        critiques: Mapping[str, CriticResult],
        step: StepExamples[PolicyGradientExample],
    ) -> Iterator[tuple[str, CreditExample]]:
        groups = others.groups(rollouts)
        written = [
            (rollout.problem_id, result)
            for rollout in rollouts
            if isinstance(result := critiques.get(rollout.id), Critique)
        ]
        for rollout, chosen in self.context.choose(rollouts, problems, critiques):
            if rollout.id not in trained:
                continue
            if isinstance(chosen, str):
                step.failures[chosen or "no critique"] += 1
                continue
            sources: list[ContextInput] = [chosen.source]
            if self.algorithm.credit == "contrast":
                group, limit = groups[rollout.problem_id], self.algorithm.num_wrong_contexts
                sources += wrong_inputs(chosen.context, chosen.source, group, written, limit)
                if len(sources) == 1:
                    step.failures["no wrong context"] += 1
                    continue
            try:
                shown = [
                    distillation_example(self.chat, self.before, chosen.context, source, self.teacher)
                    for source in sources
                ]
            except DoesNotFit:
                step.failures["teacher prompt too long"] += 1
                continue
            if not all(one.message for one in shown):
                step.failures[NOTHING_TO_SHOW] += 1
                continue
            cut = any(one.cut for one in shown)
            step.outcomes["fallback"] += chosen.is_fallback
            step.outcomes["cut"] += cut
            steps = step_spans(rollout, parse_rollout(rollout))
            yield (
                rollout.id,
                CreditExample(
                    rollout_id=rollout.id,
                    student=View.whole(rollout.prompt_ids, rollout.completion_ids),
                    advantage=0.0,
                    teachers=tuple(one.teacher for one in shown),
                    steps=steps,
                    cut=cut,
                ),
            )

    @torch.no_grad()
    def reference_forward(  # type: ignore[override]
        self, policy: Policy, examples: Sequence[CreditExample], batch: Batch
    ) -> Float[Tensor, "2 tokens"]:
        """Compute each token's log-probability (or contrast) under the teacher, and the base's log-probability.

        Both are NaN where they are not needed: the first without credit, the second without `kl_coef`.
        """
        base = super().reference_forward(policy, examples, batch)
        parts = []
        for example in examples:
            if example.rollout_id in self._credit or not example.teachers:
                parts.append(torch.full((example.student.num_loss_tokens,), torch.nan))
                continue
            right, *wrong = self._log_probs(policy, example.teachers)
            parts.append(contrast(right, torch.stack(wrong)) if wrong else right)
        teacher = torch.cat(parts).to(batch.targets.device, logit_dtype(policy.head))
        return torch.stack([teacher, torch.full_like(teacher, torch.nan) if base is None else base.to(teacher.dtype)])

    def _log_probs(self, policy: Policy, views: Sequence[View]) -> list[Float[Tensor, " tokens"]]:
        """Compute the teacher's log-probabilities of a rollout's tokens under each context, at temperature 1."""
        teacher = self.teacher_of(policy)
        found: list[Float[Tensor, " tokens"]] = []
        share = teacher.shares_prefixes
        for part in split_views(views, self.max_tokens, share_prefixes=share):
            batch = collate(part, share_prefixes=share).to(policy.head.device)
            values = scores(teacher.forward(batch), teacher.head, batch.targets).log_probs
            found += torch.split(values.cpu(), [view.num_loss_tokens for view in part])
        return found

    def loss(  # type: ignore[override]
        self,
        hidden: Float[Tensor, "tokens hidden"],
        reference: Float[Tensor, "2 tokens"] | None,
        head: Float[Tensor, "vocab hidden"],
        examples: Sequence[CreditExample],
        batch: Batch,
        weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Compute Σ_t weight_t · L_t over the micro-batch's tokens, with each token's own advantage."""
        assert reference is not None
        teacher, base = reference
        student = torch.zeros_like(teacher)
        if self.algorithm.credit == "context" and any(one.rollout_id not in self._credit for one in examples):
            student = scores(hidden.detach(), head, batch.targets).log_probs
        lengths = [example.student.num_loss_tokens for example in examples]
        advantages, credits = [], []
        pieces = zip(examples, torch.split(teacher, lengths), torch.split(student, lengths), strict=True)
        for example, teacher_part, student_part in pieces:
            if example.rollout_id not in self._credit:  # it stays the same in further updates
                self._credit[example.rollout_id] = self._credit_of(example, teacher_part.cpu(), student_part.cpu())
            credit = self._credit[example.rollout_id]
            plain = torch.full_like(credit, example.advantage)
            moved = modulate(plain, credit, self.modulation)
            advantages.append(conserve(moved, example.advantage) if self.algorithm.conserve else moved)
            credits.append(credit)
        advantage = torch.cat(advantages).to(head.device)
        loss, measures = self.policy_gradient(
            hidden, base if self.algorithm.kl_coef else None, head, examples, batch, weights, advantage
        )
        return loss, {**measures, "credit": torch.cat(credits), "advantage": advantage}

    def _credit_of(
        self, example: CreditExample, teacher: Float[Tensor, " tokens"], student: Float[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        if example.verdicts:
            return torch.tensor(example.verdicts)
        if not example.teachers:
            return torch.zeros_like(teacher)
        credit = teacher if self.algorithm.credit == "contrast" else teacher - student
        return gather_steps(credit, example.steps, self.algorithm.gather)

    def begin(self, policy: Policy) -> None:
        """Build the teacher that gives credit, and keep the base where the loss has a KL to it."""
        GRPO.begin(self, policy)
        if self.algorithm.credit != "verdicts":
            WithTeacher.begin(self, policy)

    def after_update(self, policy: Policy) -> None:
        """Let the teacher follow; the step's credit stays."""
        super().after_update(policy)
        self._updated = True

    def after_step(self, policy: Policy) -> None:
        """Drop the step's credit and old log-probabilities, and let the teacher follow."""
        GRPO.after_step(self, policy)
        WithTeacher.after_step(self, policy)
        self._credit.clear()
        self._updated = False

    def reference_tokens(self, examples: Sequence[CreditExample]) -> dict[str, int]:  # type: ignore[override]
        """Count the tokens that teacher and base read; the teacher's in a step's first update alone."""
        teacher = sum(len(view.input_ids) for example in examples for view in example.teachers)
        credit = {} if self._updated or not teacher else {"teacher": teacher}
        return credit | super().reference_tokens(examples)
