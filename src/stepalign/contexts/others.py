"""Other rollouts and problems that a context may show beside the rollout's own.

A sibling has another text than the rollout: shown its own attempt, a teacher copies it (SDPO, arXiv 2601.20802,
Table 6). It is the first that fits, so that equal rollouts give equal contexts.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from stepalign.records import Problem, Rollout
from stepalign.trace import parse_rollout


def response(rollout: Rollout) -> str:
    """Return a rollout's text without its thinking."""
    return rollout.text[parse_rollout(rollout).response_start :].strip()


def groups(rollouts: Iterable[Rollout]) -> dict[str, list[Rollout]]:
    """Gather rollouts by problem, each group in the order of its sample numbers."""
    by_problem: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        by_problem[rollout.problem_id].append(rollout)
    return {name: sorted(group, key=lambda one: (one.sample, one.id)) for name, group in by_problem.items()}


def successful_sibling(rollout: Rollout, group: Iterable[Rollout]) -> Rollout | None:
    """Return the first other rollout of the group that was graded correct; None without one."""
    return next((other for other in _others(rollout, group) if other.correct), None)


def failed_siblings(rollout: Rollout, group: Iterable[Rollout]) -> list[Rollout]:
    """Return the other rollouts of the group that were not graded correct, each text once."""
    by_text: dict[str, Rollout] = {}
    for other in _others(rollout, group):
        if not other.correct:
            by_text.setdefault(response(other), other)
    return list(by_text.values())


def _others(rollout: Rollout, group: Iterable[Rollout]) -> list[Rollout]:
    own = response(rollout)
    return [other for other in group if other.id != rollout.id and response(other) not in ("", own)]


def demonstrations(problems: Sequence[Problem]) -> dict[str, Problem]:
    """Map each problem's id to the next problem, cyclically, that has a solution; the only one has none."""
    chosen: dict[str, Problem] = {}
    following: Problem | None = None
    for problem in reversed([*problems, *problems]):
        if following is not None and following.id != problem.id:
            chosen[problem.id] = following
        if problem.solution:
            following = problem
    return chosen
