"""Attempts of the solver alone and of the teacher behind its context, and their measures side by side.

Both are sampled by the same sampler with the same settings and graded by the same grader. Differences are paired over
problems. A teacher's attempt answers the prompt that one of the solver's attempts leads to; the solver's own side are
fresh attempts, so that neither is chosen by its outcome.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from stepalign import config
from stepalign.append_log import AppendLog
from stepalign.critics.arithmetic.equations import find_equations
from stepalign.evaluation.stats import Interval, interval, resample
from stepalign.gates.numbers import right_numbers
from stepalign.records import Problem, Rollout, TokenIds
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed
from stepalign.trace import parse_rollout
from stepalign.trainer.step_metrics import repeated

RESAMPLES = 2000


def all_numbers_right(problem: Problem, rollout: Rollout) -> float | None:
    """Return 1 where every operand is right, else 0; None without a computation."""
    share = right_numbers(problem, rollout)
    return None if share is None else float(share == 1)


def false_equations(_: Problem, rollout: Rollout) -> float | None:
    """Return the share of chains of equations with one that does not hold; None without any."""
    chains = find_equations(rollout.text)
    return sum(bool(chain.false_links()) for chain in chains) / len(chains) if chains else None


MEASURES: Mapping[str, Callable[[Problem, Rollout], float | None]] = {
    "solved": lambda _, rollout: float(rollout.correct),
    "right numbers": all_numbers_right,
    "false equations": false_equations,
    "format": lambda _, rollout: float(parse_rollout(rollout).formatted),
    "truncated": lambda _, rollout: float(rollout.finish == "length"),
    "length": lambda _, rollout: float(len(rollout.completion_ids)),
    "repeated": lambda _, rollout: repeated(rollout),
}
"""A value of each attempt; None where the attempt does not allow it."""


def resumed(
    path: Path,
    wanted: Sequence[str],
    count: int,
    sample: Callable[[Sequence[str]], Iterable[Rollout]],
    size: int,
    advance: Callable[[int], None],
    timed: Callable[[int, float], None],
) -> dict[str, list[Rollout]]:
    """Return `count` rollouts of each key, `KEY/0` …: those that a log has, and the others, `size` keys at a time.

    `timed` is called with the tokens and seconds of each part.
    """
    log = AppendLog(path, Rollout)
    done = {rollout.id: rollout for rollout in log.read()}
    log.truncate()
    ids = {key: [f"{key}/{number}" for number in range(count)] for key in wanted}
    missing = [key for key in wanted if not done.keys() >= {*ids[key]}]
    advance(len(wanted) - len(missing))
    for start in range(0, len(missing), size):
        keys = missing[start : start + size]
        begin = perf_counter()
        made = list(sample(keys))
        timed(sum(len(rollout.completion_ids) for rollout in made), perf_counter() - begin)
        log.append(*made)
        done |= {rollout.id: rollout for rollout in made}
        advance(len(keys))
    return {key: [done[name] for name in ids[key]] for key in wanted}


def solver_attempts(
    solver: Solver,
    problems: Sequence[Problem],
    num_samples: int,
    settings: config.Recipe,
    path: Path,
    advance: Callable[[int], None],
    timed: Callable[[int, float], None],
) -> list[list[Rollout]]:
    """Sample `num_samples` attempts of the base at each problem; a second start goes on from `path`."""
    by_id = {problem.id: problem for problem in problems}

    def sample(names: Sequence[str]) -> Iterable[Rollout]:
        return solver.generate_rollouts(
            [by_id[name.removeprefix("preflight/")] for name in names],
            num_samples,
            settings.sampling,
            adapter=None,
            policy_step=0,
            seed=derive_seed(settings.seed, "preflight"),
            prefix="preflight",
        )

    size = max(1, 2 * settings.sampler.max_num_seqs // num_samples)
    return list(
        resumed(path, [f"preflight/{name}" for name in by_id], num_samples, sample, size, advance, timed).values()
    )


def teacher_attempts(
    solver: Solver,
    attempts: Sequence[Rollout],
    prompts: Mapping[str, TokenIds],
    problems: Mapping[str, Problem],
    num_samples: int,
    settings: config.Recipe,
    path: Path,
    advance: Callable[[int], None],
    timed: Callable[[int, float], None],
) -> dict[str, list[Rollout]]:
    """Sample the teacher's attempts behind each prompt, by the id of the solver's attempt."""
    by_id = {rollout.id: rollout for rollout in attempts}
    thinking = settings.teacher.enable_thinking and not settings.teacher.close_think
    sampling = settings.sampling.model_copy(update={"enable_thinking": thinking})

    def sample(names: Sequence[str]) -> Iterable[Rollout]:
        for number in range(num_samples):
            seed = derive_seed(settings.seed, "preflight teacher", number)
            own = {name: prompts[name] for name in names}
            made = solver.second_turns(
                [by_id[name] for name in names], own, problems, sampling, adapter=None, seed=seed
            )
            for rollout in made:
                yield replace(rollout, id=f"{rollout.id.removesuffix('/second')}/{number}", source="teacher")

    size = max(1, 2 * settings.sampler.max_num_seqs // num_samples)
    return resumed(path, list(prompts), num_samples, sample, size, advance, timed)


def compare(
    problems: Mapping[str, Problem],
    solver: Mapping[str, Sequence[Rollout]],
    teacher: Mapping[str, Sequence[Rollout]],
    *,
    seed: int,
    names: Collection[str] = tuple(MEASURES),
) -> dict[str, dict[str, Interval]]:
    """Compare two sides, measure by measure, on the problems that both attempted.

    Returns:
        By measure: `solver`, `teacher`, `difference` and, for `length`, `ratio`.
    """
    found = {}
    for name in names:
        sides = [_means(MEASURES[name], problems, side) for side in (solver, teacher)]
        shared = [key for key in sides[0] if key in sides[1]]
        if not shared:
            continue
        values = np.array([[side[key] for side in sides] for key in shared])
        counts = resample(len(shared), resamples=RESAMPLES, seed=derive_seed(seed, "preflight", name))
        means = counts @ values / len(shared)
        own, other = values.mean(axis=0)
        found[name] = {
            "solver": interval(own, means[:, 0], n=len(shared)),
            "teacher": interval(other, means[:, 1], n=len(shared)),
            "difference": interval(other - own, means[:, 1] - means[:, 0], n=len(shared)),
        }
        if name == "length" and own:
            found[name]["ratio"] = interval(other / own, means[:, 1] / means[:, 0], n=len(shared))
    return found


def _means(
    measure: Callable[[Problem, Rollout], float | None],
    problems: Mapping[str, Problem],
    attempts: Mapping[str, Sequence[Rollout]],
) -> dict[str, float]:
    """Return a measure's mean at each problem; problems whose attempts do not allow it are left out."""
    values = {key: [measure(problems[key], rollout) for rollout in rollouts] for key, rollouts in attempts.items()}
    kept = {key: [value for value in some if value is not None] for key, some in values.items()}
    return {key: float(np.mean(some)) for key, some in kept.items() if some}
