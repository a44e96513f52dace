"""RLTF-SD: the policy learns to answer at once what it answers after feedback (Song et al., arXiv 2602.02482).

For each rollout y₀ a second turn y₁ is sampled from the same policy, whose prompt shows the recipe's context: attempt
and critique. The gradient is on the first turn's prompt x₀ with the tokens of the second turn:

    L = −mean_i A_i · log π(y₁ⁱ | x₀) / |y₁ⁱ|,        A_i = R(y₁ⁱ) − mean_j R(y₀ʲ) over the first turns of the problem

The paper has the sum over a turn's tokens. Here it is the mean, or `loss_agg_mode`'s, as in the other algorithms.

The baseline is the first turn's, because a second-turn one would lose the signal as second turns become right. There
are no importance weights, although π(· | x₀) did not sample y₁ (the paper's choice). A rollout whose context has
nothing to show has no second turn, and is counted.

Left out: a loss on the second turn itself; the paper's multi-turn objective beside it.

    stepalign train quickstart algorithm.kind=rltf-sd context.template=lab/second-turn
"""

from collections.abc import Mapping, Sequence
from statistics import mean

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.algorithms.base import Algorithm, StepExamples
from stepalign.algorithms.grpo import PolicyGradientExample
from stepalign.algorithms.teacher_context import NOTHING_TO_SHOW, TeacherContext, count_critiques
from stepalign.algorithms.teacher_prompt import DoesNotFit, build_teacher_prompt, limit_to_context
from stepalign.chat import Chat
from stepalign.collate import Batch
from stepalign.contexts import others
from stepalign.losses.grpo import policy_gradient
from stepalign.policy import Policy
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CriticResult, Critique, Problem, Rollout, TokenIds
from stepalign.rollouts import sampling_limit
from stepalign.views import View


class RLTFSD(Algorithm[PolicyGradientExample]):
    """Policy gradient on the first turn's prompt with second turns."""

    one_by_one = False
    num_iterations = 1
    reference_stage = "teacher"

    def __init__(
        self,
        algorithm: config.RLTFSDConfig,
        *,
        chat: Chat,
        prompt: SolverPrompt,
        context: TeacherContext,
        sampling: config.SamplingConfig,
        max_length: int,
    ) -> None:
        """Take the recipe's tables.

        Args:
            algorithm: the recipe's table.
            chat: encodes the second turn's prompts.
            prompt: has the turns before the problem.
            context: the design that the second turn reads.
            sampling: of second turns too.
            max_length: the most tokens of a second turn and its prompt.
        """
        self.algorithm, self.chat, self.before, self.context = algorithm, chat, prompt.before, context
        self.temperature, self.max_new_tokens = sampling.temperature or 1.0, sampling.max_new_tokens
        self.needs_critique = context.needs_critique
        # The student writes the second turn, so the prompt has its thinking switch.
        self.prompt = config.BaseTeacherConfig(enable_thinking=sampling.enable_thinking, max_length=max_length)

    @classmethod
    def from_config(
        cls,
        algorithm: config.RLTFSDConfig,
        *,
        recipe: config.Recipe,
        chat: Chat,
        prompt: SolverPrompt,
        context_limit: int | None,
    ) -> "RLTFSD":
        """Build the algorithm of a recipe. `context_limit` is the model's own context length."""
        return cls(
            algorithm,
            chat=chat,
            prompt=prompt,
            context=TeacherContext.of(recipe),
            sampling=recipe.sampling,
            max_length=limit_to_context(recipe.teacher, sampling_limit(recipe.sampler, context_limit)).max_length,
        )

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where a context shows a reference solution and problems have none."""
        self.context.check_problems(problems)

    def second_turn(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> Mapping[str, TokenIds]:
        """Return the second turns' prompts. See `Algorithm.second_turn`."""
        prompts = self._prompts(rollouts, problems, critiques)
        return {name: prompt for name, prompt in prompts.items() if not isinstance(prompt, str)}

    def _prompts(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> dict[str, TokenIds | str]:
        """Return each rollout's second prompt, or the reason why it has none."""
        prompts: dict[str, TokenIds | str] = {}
        for rollout, chosen in self.context.choose(rollouts, problems, critiques):
            if isinstance(chosen, str):
                prompts[rollout.id] = chosen
                continue
            try:
                prompt = build_teacher_prompt(
                    self.chat,
                    self.before,
                    chosen.context,
                    chosen.source,
                    self.prompt,
                    completion_tokens=self.max_new_tokens,
                )
            except DoesNotFit:
                prompts[rollout.id] = "second turn's prompt too long"
                continue
            prompts[rollout.id] = prompt.ids if prompt.message else NOTHING_TO_SHOW
        return prompts

    def build_examples(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> StepExamples[PolicyGradientExample]:
        """Give every second turn its advantage over the first ones. See `Algorithm.build_examples`."""
        first = [rollout for rollout in rollouts if rollout.turn == 1]
        by_place = {(rollout.problem_id, rollout.sample): rollout for rollout in rollouts if rollout.turn == 2}
        second = {one.id: by_place[place] for one in first if (place := (one.problem_id, one.sample)) in by_place}
        cases, failures = count_critiques([critiques.get(rollout.id) for rollout in first])
        step = StepExamples[PolicyGradientExample](cases=cases, failures=failures)
        for name, reason in self._prompts(first, problems, critiques).items():
            if name in second:
                continue
            step.outcomes["dropped"] += 1
            if isinstance(reason, str) and reason:
                step.failures[reason] += 1
        for group in others.groups(first).values():
            baseline = mean(rollout.reward for rollout in group)  # exact, so that equal rewards give 0
            for rollout in group:
                if (turn := second.get(rollout.id)) is None:
                    continue
                advantage, view = turn.reward - baseline, View.whole(rollout.prompt_ids, turn.completion_ids)
                if advantage == 0:
                    step.outcomes["dropped"] += 1
                    step.failures["as good as the first turns"] += 1
                    step.zero_gradient.append(view)
                    continue
                step.outcomes["trained"] += 1
                if self.needs_critique and not isinstance(critiques.get(rollout.id), Critique):
                    step.outcomes["fallback"] += 1
                step.examples.append(PolicyGradientExample(rollout_id=turn.id, student=view, advantage=advantage))
        return step

    def reference_forward(self, policy: Policy, examples: Sequence[PolicyGradientExample], batch: Batch) -> None:
        """Run nothing: there is no model to compare with."""

    def loss(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        reference: Tensor | None,
        head: Float[Tensor, "vocab hidden"],
        examples: Sequence[PolicyGradientExample],
        batch: Batch,
        weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Compute −Σ_t weight_t · A_i · log π(y₁ₜ | x₀), at the temperature of sampling."""
        advantage = torch.cat([torch.full((one.student.num_loss_tokens,), one.advantage) for one in examples])
        advantage = advantage.to(head.device)
        surrogate, metrics = policy_gradient(
            hidden,
            head,
            batch.targets,
            advantage,
            weights,
            temperature=self.temperature,
            chunk_tokens=self.algorithm.chunk_tokens,
        )
        value = -(weights * advantage * metrics.log_probs).sum()
        loss = surrogate - surrogate.detach() + value
        return loss, {"entropy_student": metrics.entropy, "second_turn_log_prob": metrics.log_probs}

    def after_step(self, policy: Policy) -> None:
        """Do nothing: there is no state."""

    def reference_tokens(self, examples: Sequence[PolicyGradientExample]) -> dict[str, int]:
        """Count no tokens."""
        return {}
