"""Wrong contexts: the same template filled with what is not right, to contrast a context with (RLCSD).

Where the template shows a critique, that is a critique of another problem. Where it shows a solution, an answer or a
sibling, it is a failed sibling in their place. Never the rollout's own attempt: a teacher that reads it copies it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from stepalign.contexts import Context, ContextInput
from stepalign.contexts.others import failed_siblings, response
from stepalign.errors import StepalignError
from stepalign.records import Critique, Rollout

OF_A_SOLUTION = frozenset({"solution", "answer", "sibling"})


def check_has_wrong(context: Context, reason: str) -> None:
    """Raise a StepalignError where nothing of the context can be wrong. `reason` is the setting that needs it."""
    if not context.needs_critique and OF_A_SOLUTION.isdisjoint(context.variables):
        raise StepalignError(
            f"{reason} contrasts a context with wrong ones, but {context.name!r} shows none of critique, "
            f"{', '.join(sorted(OF_A_SOLUTION))}"
        )


def wrong_inputs(
    context: Context,
    source: ContextInput,
    group: Iterable[Rollout],
    critiques: Sequence[tuple[str, Critique]],
    limit: int,
) -> list[ContextInput]:
    """Return the rollout's wrong contexts, at most `limit`; none where there is nothing wrong to show.

    Args:
        context: the design.
        source: the right input.
        group: the rollouts of the same problem.
        critiques: all critiques at hand, each with its problem's id.
        limit: the number of wrong contexts.
    """
    if context.needs_critique:
        others = [critique for problem_id, critique in critiques if problem_id != source.problem.id]
        # Not the same few for every rollout: those that follow its own.
        own = next((place for place, (_, one) in enumerate(critiques) if one.rollout_id == source.rollout.id), 0)
        before = sum(problem_id != source.problem.id for problem_id, _ in critiques[:own])
        return [replace(source, critique=critique) for critique in [*others[before:], *others[:before]][:limit]]
    shown = []
    for wrong in failed_siblings(source.rollout, group):
        answer = wrong.grade.final_answer if wrong.grade else ""
        if answer or "answer" not in context.variables:
            problem = replace(source.problem, solution=response(wrong), answer=answer or source.problem.answer)
            shown.append(replace(source, problem=problem, sibling=wrong))
    return shown[:limit]
