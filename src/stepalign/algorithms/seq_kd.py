"""Sequence distillation: cross-entropy on the teacher's own samples (Kim & Rush, arXiv 1606.07947).

The teacher reads the recipe's context, which may show what is known before an attempt (reference solution, answer),
and writes a whole answer. The student learns it behind the solver's prompt. With `teacher.kind = "base"` or `"live"` it
is off-policy context distillation of the same model; with `"model"` it is distillation from another one.

Left out: the teacher's token distributions. With them and its samples it would be KD with the teacher's sequences.

    stepalign train RECIPE algorithm.kind=seq-kd context.template=refsol
"""

from collections.abc import Mapping, Sequence

from stepalign import config, contexts
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.hint_prompt import HintPrompts
from stepalign.algorithms.sft import CrossEntropyLoss, SequenceExample, sequence_example
from stepalign.algorithms.teacher_prompt import limited_teacher
from stepalign.algorithms.teacher_state import WithTeacher
from stepalign.chat import Chat
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CriticResult, Problem, Rollout, RolloutSource, TokenIds
from stepalign.rollouts import sampling_limit

_KINDS = ("base", "live", "model")


class SeqKD(WithTeacher, CrossEntropyLoss):
    """Cross-entropy on what the teacher writes under a context."""

    def __init__(
        self,
        algorithm: config.SeqKDConfig,
        *,
        recipe: config.Recipe,
        chat: Chat,
        prompt: SolverPrompt,
        context_limit: int | None,
    ) -> None:
        """Load the context. `context_limit` is the model's own context length.

        Raises:
            StepalignError: this kind of teacher cannot be sampled from, or the context shows an attempt.
        """
        WithTeacher.__init__(self, recipe.teacher)
        CrossEntropyLoss.__init__(self, chunk_tokens=algorithm.chunk_tokens)
        if recipe.teacher.kind not in _KINDS:
            raise StepalignError(
                f"teacher.kind = {recipe.teacher.kind!r} with algorithm.kind = 'seq-kd': it cannot be sampled from; "
                f"allowed: {', '.join(_KINDS)}"
            )
        self.algorithm = algorithm
        self.chat, self.prompt, self.thinking = chat, prompt, recipe.sampling.enable_thinking
        self.prompts = HintPrompts(
            recipe.context,
            limited_teacher(recipe, chat, sampling_limit(recipe.sampler, context_limit)),
            chat=chat,
            before=prompt.before,
            max_new_tokens=recipe.sampling.max_new_tokens,
            shows=contexts.BEFORE_ATTEMPT,
        )

    @classmethod
    def from_config(
        cls,
        algorithm: config.SeqKDConfig,
        *,
        recipe: config.Recipe,
        chat: Chat,
        prompt: SolverPrompt,
        context_limit: int | None,
    ) -> "SeqKD":
        """Build the algorithm of a recipe."""
        return cls(algorithm, recipe=recipe, chat=chat, prompt=prompt, context_limit=context_limit)

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where the context shows a reference solution and a problem has none."""
        self.prompts.check_problems(problems)

    def rollout_source(self, step: int) -> RolloutSource:
        """Return the teacher, for every step."""
        return "teacher"

    def teacher_prompts(self, problems: Sequence[Problem]) -> Mapping[str, TokenIds]:
        """Return each problem's prompt under the context. See `Algorithm.teacher_prompts`."""
        prompts = {problem.id: self.prompts(problem) for problem in problems}
        return {name: prompt for name, prompt in prompts.items() if prompt is not None}

    def build_examples(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> StepExamples[SequenceExample]:
        """Take the teacher's completions, with `only_correct` the right ones. See `Algorithm.build_examples`."""
        step = StepExamples[SequenceExample]()
        for rollout in rollouts:
            if self.algorithm.only_correct and not rollout.correct:
                step.outcomes["dropped"] += 1
                step.failures["the teacher's answer is wrong"] += 1
                continue
            if max(rollout.completion_ids) >= len(self.chat.tokenizer):
                step.outcomes["dropped"] += 1
                step.failures["the teacher wrote a padding id"] += 1
                continue
            turns = self.prompt.turns(problems[rollout.problem_id])
            step.outcomes["trained"] += 1
            step.examples.append(sequence_example(rollout, self.chat.prompt_ids(turns, thinking=self.thinking)))
        return step
