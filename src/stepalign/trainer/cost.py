"""What a step cost, in the same units for every condition, so that they can be compared at equal cost.

Floating-point operations are counted as 2·N a token read, N the base's parameters, and as many again for a token that
gradients pass (the frozen weights want none). The adapter's own, attention's and an outside critic's are left out; the
critic's tokens are counted by themselves.
"""

from collections.abc import Mapping, Sequence

from stepalign.records import Critique, CritiqueFailure, Problem, Rollout

COSTS = ("rollouts", "problems", "generated_tokens", "teacher_tokens", "critic_tokens", "updates", "flops", "seconds")
"""What conditions are compared by. `seconds` are the stages', which the metrics hold by themselves."""


def spent(
    parameters: int,
    batch: Sequence[Problem],
    rollouts: Sequence[Rollout],
    answers: Sequence[Critique | CritiqueFailure],
    learnt: Mapping[str, float],
    updates: int,
) -> dict[str, int]:
    """One optimizer step's cost, seconds aside.

    Args:
        parameters: of the base.
        batch: the problems that were seen.
        rollouts: drawn from them.
        answers: the critic's.
        learnt: the last update's metrics: the tokens that student and frozen pass read in each of them.
        updates: of the adapter.
    """
    generated = sum(len(rollout.completion_ids) for rollout in rollouts)
    prompts = sum(len(rollout.prompt_ids) for rollout in rollouts)
    frozen = updates * int(learnt.get("teacher_tokens", learnt.get("base_tokens", 0)))
    student = updates * int(learnt.get("student_tokens", 0))
    critic = sum(a.prompt_tokens + a.completion_tokens for a in answers)
    return {
        "rollouts": len(rollouts),
        "problems": len(batch),
        "generated_tokens": generated,
        "teacher_tokens": frozen,
        "critic_tokens": critic,
        "updates": updates,
        "flops": 2 * parameters * (prompts + generated + frozen + 2 * student),
    }
