"""Distillation and GRPO's policy gradient in one loss, on the same forward pass.

    L = distillation_weight · mean D(teacher, student) + reward_weight · mean L_GRPO

The teacher reads the recipe's context, as in `self_distillation`; the reward is the grade, as in `grpo`. Each term is
the mean over its own tokens: a rollout that has no context is rewarded only, one of a group of equal rewards is
distilled only (TRL's `distillation_weight`; SDPG, arXiv 2606.04036).

Left out: a KL to the base, because the one pass without gradients is the teacher's; routing of rollouts to one of the
two terms (SRPO), because a template that renders to nothing does that for distillation.

    stepalign train quickstart algorithm.kind=grpo-distillation training.num_generations=8
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample
from stepalign.algorithms.grpo import GRPO, PolicyGradientExample
from stepalign.algorithms.self_distillation import SelfDistillation
from stepalign.chat import Chat
from stepalign.collate import Batch
from stepalign.losses.weights import part_scales
from stepalign.policy import Policy
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CriticResult, Problem, Rollout
from stepalign.views import View


@dataclass(frozen=True, kw_only=True)
class RewardedExample(PolicyGradientExample):
    """One rollout with its advantage, and with a teacher's view where it has a context."""

    distilled: DistillationExample | None = None
    """Both views, whose loss tokens are the distilled ones."""
    scale: float = 0.0
    """The factor of the step's token weights for distillation."""

    @property
    def max_input_len(self) -> int:
        """The tokens of the longest pass over the example."""
        return max(len(self.student.input_ids), self.distilled.max_input_len if self.distilled else 0)


class GRPODistillation(SelfDistillation):
    """Self-distillation with a policy gradient beside it."""

    def __init__(self, algorithm: config.GRPODistillationConfig, *, grpo: GRPO, **parts: object) -> None:
        """Take the recipe's table and the policy gradient of it; see `SelfDistillation` for the other parts."""
        super().__init__(algorithm, **parts)  # type: ignore[arg-type]
        self.weights, self.grpo = algorithm, grpo
        self.one_by_one = False  # an advantage is over a group

    @classmethod
    def from_config(  # type: ignore[override]
        cls,
        algorithm: config.GRPODistillationConfig,
        *,
        recipe: config.Recipe,
        chat: Chat,
        prompt: SolverPrompt,
        context_limit: int | None,
    ) -> "GRPODistillation":
        """Build the algorithm of a recipe. `context_limit` is the model's own context length."""
        grpo = GRPO.from_config(algorithm, recipe=recipe)
        return cls(algorithm, grpo=grpo, **cls.parts(recipe, chat, prompt, context_limit))

    def build_examples(  # type: ignore[override]
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> StepExamples[RewardedExample]:
        """Give every rollout its advantage and, where it has a context, both views. See `Algorithm.build_examples`."""
        taught = super().build_examples(rollouts, problems, critiques)
        rewarded = self.grpo.build_examples(rollouts, problems, critiques)
        distilled = {example.rollout_id: example for example in taught.examples}
        advantages = {example.rollout_id: example.advantage for example in rewarded.examples}
        step = StepExamples[RewardedExample](
            cases=taught.cases, failures=taught.failures + rewarded.failures, outcomes=taught.outcomes
        )
        step.outcomes["distilled"], step.outcomes["rewarded"] = len(distilled), len(advantages)
        step.outcomes["trained"] = step.outcomes["dropped"] = 0
        views = {rollout.id: View.whole(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts}
        scales = part_scales(
            [distilled[name].student.num_loss_tokens if name in distilled else 0 for name in views],
            [view.num_loss_tokens for view in views.values()],
            self.algorithm.loss_agg_mode,
        )
        for rollout, scale in zip(rollouts, scales, strict=True):
            if rollout.id not in distilled and rollout.id not in advantages:
                step.outcomes["dropped"] += 1
                step.zero_gradient.append(views[rollout.id])
                continue
            step.outcomes["trained"] += 1
            step.examples.append(
                RewardedExample(
                    rollout_id=rollout.id,
                    student=views[rollout.id],
                    advantage=advantages.get(rollout.id, 0.0),
                    sampler_logprobs=rollout.sampler_logprobs,
                    distilled=distilled.get(rollout.id),
                    scale=scale,
                )
            )
        return step

    @torch.no_grad()
    def reference_forward(  # type: ignore[override]
        self, policy: Policy, examples: Sequence[RewardedExample], batch: Batch
    ) -> Float[Tensor, "distilled hidden"] | None:
        """Run the teacher on the distilled tokens of a micro-batch; None where there are none."""
        distilled = [example.distilled for example in examples if example.distilled]
        return super().reference_forward(policy, distilled, batch) if distilled else None

    def loss(  # type: ignore[override]
        self,
        hidden: Float[Tensor, "tokens hidden"],
        reference: Float[Tensor, "distilled hidden"] | None,
        head: Float[Tensor, "vocab hidden"],
        examples: Sequence[RewardedExample],
        batch: Batch,
        weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Compute both terms' part of the step's loss."""
        rewarded, measures = self.grpo.loss(hidden, None, head, examples, batch, self.weights.reward_weight * weights)
        measures = {name: values for name, values in measures.items() if name != "importance_ratio"}
        if reference is None:
            return rewarded, measures
        scale = torch.cat([torch.full((one.student.num_loss_tokens,), one.scale) for one in examples])
        place = torch.cat([_distilled_tokens(one) for one in examples]).nonzero().squeeze(-1).to(hidden.device)
        scaled = self.weights.distillation_weight * weights * scale.to(weights.device)
        part = Batch(batch.input_ids, batch.rows[place], batch.columns[place], batch.targets[place])
        distilled = [example.distilled for example in examples if example.distilled]
        taught, of_part = super().loss(hidden[place], reference, head, distilled, part, scaled[place])
        for name, values in of_part.items():
            measures[name] = torch.full((len(hidden),), torch.nan, dtype=values.dtype, device=values.device)
            measures[name][place] = values
        return rewarded + taught, measures

    def after_step(self, policy: Policy) -> None:
        """Let the teacher follow, and drop the step's log-probabilities of both terms."""
        super().after_step(policy)
        self.grpo.after_step(policy)

    def reference_tokens(self, examples: Sequence[RewardedExample]) -> dict[str, int]:  # type: ignore[override]
        """Count the tokens that the teacher reads."""
        return super().reference_tokens([example.distilled for example in examples if example.distilled])


def _distilled_tokens(example: RewardedExample) -> Tensor:
    mask = torch.zeros(example.student.num_loss_tokens, dtype=torch.bool)
    if example.distilled:
        mask[example.distilled.student.loss_start : example.distilled.student.loss_stop] = True
    return mask
