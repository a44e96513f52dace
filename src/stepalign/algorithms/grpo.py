"""GRPO: each rollout's reward compared with its group's, no teacher and no critic (paper, Eq. 2).

The reward is the grade's: 1 for a right final answer, else 0, or a score between. Several updates on the same
rollouts take the log-probabilities of the first update as those of the policy that sampled. They are the trainer's own
under the same weights, so no second pass is spent and no difference between two engines enters the ratio.

    stepalign train real/grpo
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.algorithms.base import Algorithm, StepExamples
from stepalign.algorithms.old_log_probs import OldLogProbs, importance_of, sampler_log_probs
from stepalign.collate import Batch
from stepalign.losses.grpo import Clip, advantages, policy_gradient
from stepalign.losses.log_probs import scores
from stepalign.policy import Policy
from stepalign.records import CriticResult, Problem, Rollout
from stepalign.teachers.stateless import BaseTeacher
from stepalign.views import View


@dataclass(frozen=True, kw_only=True)
class PolicyGradientExample:
    """One rollout with its advantage over the others of its group."""

    rollout_id: str
    student: View
    advantage: float
    sampler_logprobs: tuple[float, ...] | None = None
    """The sampler's own log-probabilities of the completion; None where it gave none."""

    @property
    def max_input_len(self) -> int:
        """The tokens of a pass over the example."""
        return len(self.student.input_ids)


class GRPO(Algorithm[PolicyGradientExample]):
    """Group-relative policy optimization with the grade as reward."""

    needs_critique = False
    one_by_one = False  # an advantage is over a group
    reference_stage = "base"

    def __init__(self, algorithm: config.PolicyGradientConfig, *, temperature: float) -> None:
        """Take the recipe's table and the temperature of sampling."""
        self.algorithm, self.temperature = algorithm, temperature
        self.num_iterations = algorithm.num_iterations
        self.clip = Clip(algorithm.epsilon, algorithm.epsilon_high)
        self.importance = importance_of(algorithm)
        self.old_log_probs = OldLogProbs()

    @classmethod
    def from_config(cls, algorithm: config.PolicyGradientConfig, *, recipe: config.Recipe, **_: object) -> "GRPO":
        """Build the algorithm of a recipe."""
        return cls(algorithm, temperature=recipe.sampling.temperature)

    def build_examples(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> StepExamples[PolicyGradientExample]:
        """Give every rollout its advantage. See `Algorithm.build_examples`.

        Groups of equal rewards are counted and cost no pass, but stay in the loss's denominator. With `kl_coef`, which
        acts on every token, they are trained on too.
        """
        step = StepExamples[PolicyGradientExample]()
        groups: dict[str, list[Rollout]] = defaultdict(list)
        for rollout in rollouts:
            groups[rollout.problem_id].append(rollout)
        for group in groups.values():
            rewards = torch.tensor([[rollout.reward for rollout in group]])
            given = advantages(rewards)[0].tolist()
            if len(set(rewards[0].tolist())) == 1:
                step.failures["zero-variance group"] += len(group)
                given = [0.0] * len(group)  # the rounded mean of equal rewards may differ from them
            for rollout, advantage in zip(group, given, strict=True):
                view = View.whole(rollout.prompt_ids, rollout.completion_ids)
                if advantage == 0 and not self.algorithm.kl_coef:
                    step.outcomes["dropped"] += 1
                    step.zero_gradient.append(view)
                    continue
                step.outcomes["trained"] += 1
                step.examples.append(
                    PolicyGradientExample(
                        rollout_id=rollout.id,
                        student=view,
                        advantage=advantage,
                        sampler_logprobs=rollout.sampler_logprobs,
                    )
                )
        return step

    def reference_forward(
        self, policy: Policy, examples: Sequence[PolicyGradientExample], batch: Batch
    ) -> Float[Tensor, " tokens"] | None:
        """Compute the tokens' log-probabilities under the base, where the loss has a KL to it."""
        if not self.algorithm.kl_coef:
            return None
        base = BaseTeacher(policy)
        return scores(base.forward(batch), base.head, batch.targets, temperature=self.temperature).log_probs

    def loss(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        reference: Float[Tensor, " tokens"] | None,
        head: Float[Tensor, "vocab hidden"],
        examples: Sequence[PolicyGradientExample],
        batch: Batch,
        weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Compute Σ_t weight_t · L_t over the micro-batch's tokens."""
        advantage = torch.cat([torch.full((one.student.num_loss_tokens,), one.advantage) for one in examples])
        return self.policy_gradient(hidden, reference, head, examples, batch, weights, advantage.to(head.device))

    def policy_gradient(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        base: Float[Tensor, " tokens"] | None,
        head: Float[Tensor, "vocab hidden"],
        examples: Sequence[PolicyGradientExample],
        batch: Batch,
        weights: Float[Tensor, " tokens"],
        advantage: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Compute the loss with these advantages. `base` has the base's log-probabilities, for `kl_coef`."""
        lengths = [example.student.num_loss_tokens for example in examples]
        old = self.old_log_probs.get(examples)
        loss, metrics = policy_gradient(
            hidden,
            head,
            batch.targets,
            advantage,
            weights,
            temperature=self.temperature,
            clip=self.clip,
            kl_coef=self.algorithm.kl_coef,
            chunk_tokens=self.algorithm.chunk_tokens,
            old_log_probs=old,
            base_log_probs=base,
            lengths=lengths,
            importance=self.importance,
            sampled_log_probs=sampler_log_probs(examples, head.device) if self.importance else None,
        )
        self.old_log_probs.keep(examples, metrics.log_probs)
        measures = {"entropy_student": metrics.entropy, "clipped": metrics.clipped}
        if base is not None:
            measures["kl_base"] = metrics.kl
        if metrics.importance_ratio is not None:
            measures["importance_ratio"] = metrics.importance_ratio
        return loss, measures

    def begin(self, policy: Policy) -> None:
        """Keep the base, where the loss has a KL to it."""
        if self.algorithm.kl_coef:
            policy.keep_base()

    def after_step(self, policy: Policy) -> None:
        """Drop the step's old log-probabilities."""
        self.old_log_probs.clear()

    def reference_tokens(self, examples: Sequence[PolicyGradientExample]) -> dict[str, int]:
        """Count the tokens that the base reads."""
        tokens = sum(len(example.student.input_ids) for example in examples)
        return {"base": tokens} if self.algorithm.kl_coef else {}
