"""Supervised fine-tuning: cross-entropy on reference solutions, or on the policy's own right rollouts (STaR).

No teacher and no critic. With `sequences = "references"` nothing is sampled: each problem's reference solution, in the
solver's format, is the completion. With `"rollouts"` the policy samples, and the right rollouts are learned from
(Zelikman et al., arXiv 2203.14465). With `rationalize` a problem without a right one is tried once more under the
recipe's context, a hint such as the answer. If that is right, it is learned without the hint.

Left out: STaR's restart from the base after each round over the data, because this loop updates after every batch.

    stepalign train RECIPE algorithm.kind=sft
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from stepalign import config, contexts
from stepalign.algorithms.base import Algorithm, StepExamples
from stepalign.algorithms.hint_prompt import HintPrompts
from stepalign.algorithms.teacher_prompt import limit_to_context
from stepalign.chat import Chat
from stepalign.collate import Batch
from stepalign.losses.cross_entropy import cross_entropy
from stepalign.policy import Policy
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CriticResult, Problem, Rollout, RolloutSource, TokenIds
from stepalign.rollouts import sampling_limit
from stepalign.rollouts.references import reference_text
from stepalign.views import View


@dataclass(frozen=True, kw_only=True)
class SequenceExample:
    """One completion behind the solver's prompt, to be learned as it is."""

    rollout_id: str
    student: View
    sampler_logprobs: None = None

    @property
    def max_input_len(self) -> int:
        """The tokens of a pass over the example."""
        return len(self.student.input_ids)


class CrossEntropyLoss(Algorithm[SequenceExample]):
    """Base of the algorithms that learn completions as they are."""

    needs_critique = False
    one_by_one = False  # a problem's rollouts are judged together
    num_iterations = 1
    reference_stage = "teacher"

    def __init__(self, *, chunk_tokens: int | None) -> None:
        self.chunk_tokens = chunk_tokens

    def reference_forward(self, policy: Policy, examples: Sequence[SequenceExample], batch: Batch) -> None:
        """Return None: no other model is read."""

    def loss(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        reference: Tensor | None,
        head: Float[Tensor, "vocab hidden"],
        examples: Sequence[SequenceExample],
        batch: Batch,
        weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Compute −Σ_t weight_t · log π(y_t) over the micro-batch's tokens."""
        loss, metrics = cross_entropy(hidden, head, batch.targets, weights, chunk_tokens=self.chunk_tokens)
        return loss, {"entropy_student": metrics.entropy}

    def after_step(self, policy: Policy) -> None:
        """Do nothing: there is no state."""

    def reference_tokens(self, examples: Sequence[SequenceExample]) -> dict[str, int]:
        """Count no tokens."""
        return {}


class SFT(CrossEntropyLoss):
    """Cross-entropy on references or on own right rollouts."""

    def __init__(self, algorithm: config.SFTConfig, *, hints: HintPrompts | None) -> None:
        """Take the recipe's table, and the prompts with a hint where the recipe rationalizes."""
        super().__init__(chunk_tokens=algorithm.chunk_tokens)
        self.algorithm, self.hints = algorithm, hints

    @classmethod
    def from_config(
        cls,
        algorithm: config.SFTConfig,
        *,
        recipe: config.Recipe,
        chat: Chat,
        prompt: SolverPrompt,
        context_limit: int | None,
    ) -> "SFT":
        """Build the algorithm of a recipe. `context_limit` is the model's own context length."""
        hints = None
        if algorithm.rationalize:
            thinking = {"enable_thinking": recipe.sampling.enable_thinking, "close_think": False}
            hints = HintPrompts(
                recipe.context,
                limit_to_context(recipe.teacher, sampling_limit(recipe.sampler, context_limit)).model_copy(
                    update=thinking
                ),
                chat=chat,
                before=prompt.before,
                max_new_tokens=recipe.sampling.max_new_tokens,
                shows=contexts.BEFORE_CRITIQUE,
            )
        return cls(algorithm, hints=hints)

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where a reference solution is needed and missing, or breaks the format."""
        if self.algorithm.sequences == "references":
            for problem in problems:
                reference_text(problem)
        if self.hints:
            self.hints.check_problems(problems)

    def rollout_source(self, step: int) -> RolloutSource:
        """Return who writes the completions of every step."""
        return "reference" if self.algorithm.sequences == "references" else "policy"

    def second_turn(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> Mapping[str, TokenIds]:
        """Return a prompt with a hint for each problem without a right rollout, in place of its first one."""
        if self.hints is None:
            return {}
        solved = {rollout.problem_id for rollout in rollouts if rollout.correct}
        first: dict[str, Rollout] = {}
        for rollout in rollouts:
            if rollout.problem_id not in solved:
                first.setdefault(rollout.problem_id, rollout)
        prompts = {rollout.id: self.hints(problems[name], rollout) for name, rollout in first.items()}
        return {name: prompt for name, prompt in prompts.items() if prompt is not None}

    def build_examples(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> StepExamples[SequenceExample]:
        """Take every reference, or every right rollout. See `Algorithm.build_examples`."""
        plain: dict[str, TokenIds] = {r.problem_id: r.prompt_ids for r in rollouts if r.turn == 1}
        step = StepExamples[SequenceExample]()
        tried = {rollout.problem_id for rollout in rollouts if rollout.correct or rollout.turn == 2}
        if self.hints and (too_long := plain.keys() - tried):
            step.failures["prompt with a hint too long"] += len(too_long)
        for rollout in rollouts:
            if rollout.source == "policy" and not rollout.correct:
                step.failures["wrong with a hint" if rollout.turn == 2 else "wrong answer"] += 1
                step.outcomes["dropped"] += 1
                continue
            step.outcomes["trained"] += 1
            step.outcomes["rationalized"] += rollout.turn == 2
            step.examples.append(sequence_example(rollout, plain[rollout.problem_id]))
        return step


def sequence_example(rollout: Rollout, prompt_ids: TokenIds) -> SequenceExample:
    """Build the example of a whole completion behind the solver's prompt."""
    return SequenceExample(rollout_id=rollout.id, student=View.whole(prompt_ids, rollout.completion_ids))
