"""GRPO in the loop: rollouts against their group's mean reward, no teacher and no critic (paper, Eq. 2).

The reward is the grade: 1 for a right final answer, 0 for any other. Several updates on the same rollouts take the
log-probabilities that the first of them saw as those of the policy that sampled: the trainer's own, under the same
weights, so no second pass is spent and no difference between two engines enters the ratio.

    stepalign train recipes/paper/grpo.toml
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.algorithms.base import StepExamples
from stepalign.losses.grpo import advantages, policy_gradient
from stepalign.losses.log_probs import scores
from stepalign.policy import Policy
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.views import Batch, View


@dataclass(frozen=True, kw_only=True)
class PolicyGradientExample:
    """A rollout with its advantage over the others of its group."""

    rollout_id: str
    student: View
    advantage: float

    @property
    def max_input_len(self) -> int:
        """How many tokens a pass over it reads."""
        return len(self.student.input_ids)


class GRPO:
    """From a step's graded rollouts to advantages."""

    needs_critique = False
    one_by_one = False  # an advantage is over a group

    def __init__(self, settings: config.Recipe, objective: config.GRPOConfig) -> None:
        self._settings, self._objective = settings, objective
        self.num_iterations = objective.num_iterations

    @classmethod
    def from_config(cls, settings: config.GRPOConfig, *, recipe: config.Recipe, **_: object) -> "GRPO":
        """Build the algorithm of a recipe."""
        return cls(recipe, settings)

    def check(self, problems: Sequence[Problem]) -> None:
        """Nothing is asked of problems but an answer, which all have."""

    def teach(
        self,
        rollouts: Sequence[Rollout],
        problems: Mapping[str, Problem],
        answers: Mapping[str, Critique | CritiqueFailure],
    ) -> StepExamples[PolicyGradientExample]:
        """Every rollout with its advantage; groups without a contrast are counted, and cost no pass.

        They stay in the means' denominators. With `kl`, which pulls on every token, they are learnt from too.
        """
        taught: StepExamples[PolicyGradientExample] = StepExamples(lessons=[])
        groups: dict[str, list[Rollout]] = defaultdict(list)
        for rollout in rollouts:
            groups[rollout.problem_id].append(rollout)
        for group in groups.values():
            rewards = torch.tensor([[float(rollout.correct) for rollout in group]])
            if len(set(rewards[0].tolist())) == 1:
                taught.failures["zero-variance group"] += len(group)
            for rollout, advantage in zip(group, advantages(rewards)[0].tolist(), strict=True):
                ids = rollout.completion_ids
                view = View(prompt_ids=rollout.prompt_ids, completion_ids=ids, start=0, stop=len(ids))
                if advantage == 0 and not self._objective.kl_coef:
                    taught.outcomes["dropped"] += 1
                    taught.zero_gradient.append(view)
                else:
                    taught.outcomes["taught"] += 1
                    taught.lessons.append(
                        PolicyGradientExample(rollout_id=rollout.id, student=view, advantage=advantage)
                    )
        return taught

    def learner(self) -> "GRPOLoss":
        """The loss for one step's lessons, over all of its updates."""
        return GRPOLoss(self._objective, self._settings.sampling.temperature)


class GRPOLoss:
    """The clipped policy gradient. It remembers, over a step's updates, what the tokens' first probabilities were."""

    frozen = "base"

    def __init__(self, settings: config.GRPOConfig, temperature: float) -> None:
        self._settings, self._temperature = settings, temperature
        self._old: dict[str, Float[Tensor, " tokens"]] = {}

    def look(
        self, model: Policy, micro: Sequence[PolicyGradientExample], batch: Batch
    ) -> Float[Tensor, " tokens"] | None:
        """The tokens' log-probabilities under the base, where the loss has a KL to it."""
        if not self._settings.kl_coef:
            return None
        # Logits over a temperature are those of hidden states over it.
        return scores(model.forward_base(batch) / self._temperature, model.head, batch.targets).log_probs

    def loss(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        seen: Float[Tensor, " tokens"] | None,
        head: Float[Tensor, "vocab hidden"],
        micro: Sequence[PolicyGradientExample],
        batch: Batch,
        token_weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Σ_t weight_t · L_t over the micro-batch's tokens."""
        counted = [lesson.student.num_loss_tokens for lesson in micro]
        old = [self._old[lesson.rollout_id] for lesson in micro if lesson.rollout_id in self._old]
        loss, metrics = policy_gradient(
            hidden,
            head,
            batch.targets,
            torch.tensor([lesson.advantage for lesson in micro])
            .repeat_interleave(torch.tensor(counted))
            .to(head.device),
            token_weights,
            self._settings,
            temperature=self._temperature,
            old=torch.cat(old) if old else None,
            base=seen,
        )
        if not old:
            by_lesson = torch.split(metrics.log_probs, counted)
            self._old |= {lesson.rollout_id: first for lesson, first in zip(micro, by_lesson, strict=True)}
        measures = {"entropy_student": metrics.entropy, "clipped": metrics.clipped}
        return loss, measures if seen is None else {**measures, "kl_base": metrics.kl}

    def counts(self, lessons: Sequence[PolicyGradientExample]) -> Mapping[str, int]:
        """The tokens that the base read."""
        return {"base_tokens": sum(lesson.max_input_len for lesson in lessons)} if self._settings.kl_coef else {}
