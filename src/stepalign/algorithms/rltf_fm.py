"""RLTF-FM: GRPO, and beside it the likelihood of the critique given problem and attempt (arXiv 2602.02482).

    L = mean L_GRPO − feedback_weight · mean log π(critique | problem, attempt)

The policy that can say what is wrong with an attempt may attempt better. `algorithm.feedback_template` asks for the
critique; it may use `problem` and `attempt`. Each term is the mean over its own tokens. No teacher reads anything. A
rollout without a critique is rewarded only, one of a group of equal rewards models its feedback only.

Left out: the paper's policy gradient on a second turn, because the aim here is the auxiliary loss by itself.

    stepalign train quickstart algorithm.kind=rltf-fm training.num_generations=8
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config, contexts
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.grpo import GRPO, PolicyGradientExample
from stepalign.algorithms.teacher_context import count_critiques
from stepalign.algorithms.teacher_prompt import DoesNotFit, build_teacher_prompt, limit_to_context
from stepalign.chat import Chat
from stepalign.collate import Batch
from stepalign.contexts import ContextInput
from stepalign.errors import StepalignError
from stepalign.losses.cross_entropy import cross_entropy
from stepalign.losses.weights import part_scales
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CriticResult, Critique, Problem, Rollout
from stepalign.views import View


@dataclass(frozen=True, kw_only=True)
class FeedbackExample(PolicyGradientExample):
    """A rollout with its advantage, or its critique to be modelled."""

    is_feedback: bool = False
    scale: float = 1.0
    """The factor of the step's token weights in the example's own term."""


class RLTFFM(GRPO):
    """Group-relative policy optimization with feedback modelling."""

    needs_critique = True

    def __init__(
        self,
        algorithm: config.RLTFFMConfig,
        *,
        temperature: float,
        chat: Chat,
        prompt: SolverPrompt,
        critic: config.CriticConfig | None,
        teacher: config.TeacherConfig,
    ) -> None:
        """Take the recipe's tables.

        Args:
            algorithm: the recipe's table.
            temperature: of sampling.
            chat: encodes the request for feedback, and the critique.
            prompt: has the turns before the problem.
            critic: the recipe's critic.
            teacher: its length limit.

        Raises:
            StepalignError: the recipe has no critic, or the template shows the feedback itself.
        """
        super().__init__(algorithm, temperature=temperature)
        if critic is None:
            raise StepalignError("algorithm.kind = 'rltf-fm' models critiques, but the recipe has no [critic]")
        self.template = contexts.load(algorithm.feedback_template)
        if shown := self.template.variables - {"problem", "attempt"}:
            raise StepalignError(
                f"algorithm.feedback_template = {algorithm.feedback_template!r} shows {', '.join(sorted(shown))}: the "
                "policy has only problem and attempt when it is to say what is wrong"
            )
        self.feedback_weight, self.chat, self.before, self.prompt = (
            algorithm.feedback_weight, chat, prompt.before, teacher,
        )  # fmt: skip

    @classmethod
    def from_config(  # type: ignore[override]
        cls,
        algorithm: config.RLTFFMConfig,
        *,
        recipe: config.Recipe,
        chat: Chat,
        prompt: SolverPrompt,
        context_limit: int | None,
    ) -> "RLTFFM":
        """Build the algorithm of a recipe. `context_limit` is the model's own context length."""
        limit = limit_to_context(recipe.teacher, context_limit).max_length
        return cls(
            algorithm,
            temperature=recipe.sampling.temperature,
            chat=chat,
            prompt=prompt,
            critic=recipe.critic,
            teacher=config.BaseTeacherConfig(enable_thinking=recipe.sampling.enable_thinking, max_length=limit),
        )

    def build_examples(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> StepExamples[PolicyGradientExample]:
        """Give every rollout its advantage, and every critique an example. See `Algorithm.build_examples`."""
        step = super().build_examples(rollouts, problems, critiques)
        cases, failures = count_critiques([critiques.get(rollout.id) for rollout in rollouts])
        step.cases.update(cases)
        step.failures.update(failures)
        feedback = []
        for rollout in rollouts:
            critique = critiques.get(rollout.id)
            if isinstance(critique, Critique):
                try:
                    feedback.append(self._feedback(rollout, problems[rollout.problem_id], critique))
                except DoesNotFit:
                    step.failures["feedback too long"] += 1
        step.outcomes["feedback"] = len(feedback)
        rewarded = len(step.views)
        lengths = [*(view.num_loss_tokens for view in step.views), *(view.num_loss_tokens for _, view in feedback)]
        mode = self.algorithm.loss_agg_mode
        of_reward = part_scales([*lengths[:rewarded], *[0] * len(feedback)], lengths, mode)[:rewarded]
        of_feedback = part_scales([*[0] * rewarded, *lengths[rewarded:]], lengths, mode)[rewarded:]
        examples = [
            FeedbackExample(
                rollout_id=one.rollout_id,
                student=one.student,
                advantage=one.advantage,
                sampler_logprobs=one.sampler_logprobs,
                scale=scale,
            )
            for one, scale in zip(step.examples, of_reward, strict=False)
        ]
        examples += [
            FeedbackExample(rollout_id=name, student=view, advantage=0.0, is_feedback=True, scale=scale)
            for (name, view), scale in zip(feedback, of_feedback, strict=True)
        ]
        step.examples[:] = examples
        return step

    def _feedback(self, rollout: Rollout, problem: Problem, critique: Critique) -> tuple[str, View]:
        ids = self.chat.completion_ids(critique.text)
        source = ContextInput(problem=problem, rollout=rollout)
        prompt = build_teacher_prompt(
            self.chat, self.before, self.template, source, self.prompt, completion_tokens=len(ids)
        )
        return f"{rollout.id}/feedback", View.whole(prompt.ids, ids)

    def loss(  # type: ignore[override]
        self,
        hidden: Float[Tensor, "tokens hidden"],
        reference: Float[Tensor, " tokens"] | None,
        head: Float[Tensor, "vocab hidden"],
        examples: Sequence[FeedbackExample],
        batch: Batch,
        weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Compute both terms' part of the step's loss."""
        lengths = torch.tensor([one.student.num_loss_tokens for one in examples])
        is_feedback = torch.tensor([one.is_feedback for one in examples]).repeat_interleave(lengths).to(hidden.device)
        scale = torch.tensor([one.scale for one in examples]).repeat_interleave(lengths).to(weights.device)
        loss, measures = hidden.sum() * 0, dict[str, Tensor]()
        for part, chosen in ((is_feedback, True), (~is_feedback, False)):
            place = part.nonzero().squeeze(-1)
            if not len(place):
                continue
            own = Batch(batch.input_ids, batch.rows[place], batch.columns[place], batch.targets[place])
            scaled = (weights * scale)[place]
            if chosen:
                term, metrics = cross_entropy(
                    hidden[place],
                    head,
                    own.targets,
                    self.feedback_weight * scaled,
                    chunk_tokens=self.algorithm.chunk_tokens,
                )
                found: Mapping[str, Tensor] = {"feedback_nll": -metrics.log_probs}
            else:
                base = None if reference is None else reference[place]
                mine = [one for one in examples if not one.is_feedback]
                term, found = super().loss(hidden[place], base, head, mine, own, scaled)
            loss = loss + term
            for name, values in found.items():
                measures[name] = torch.full((len(hidden),), torch.nan, dtype=values.dtype, device=values.device)
                measures[name][place] = values
        return loss, measures
