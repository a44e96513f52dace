"""Critiques outside of training: a file of rollouts answered, a file of critiques verified, a critic measured.

    stepalign critique recipes/quickstart.toml rollouts.jsonl --problems problems.jsonl
    stepalign critique recipes/quickstart.toml rollouts.jsonl --check critiques.jsonl
    stepalign critic-bench recipes/quickstart.toml planted

All three need only the recipe's `[critic]`, and its problems where no file of problems is named.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from stepalign import api as stages
from stepalign import config, critics
from stepalign import data as problems
from stepalign.console import Console
from stepalign.critics import stats as fidelity
from stepalign.critics.benchmark import Trial, accuracies, by_kind, judged_outcome, judged_step
from stepalign.critics.journal import answer_all
from stepalign.critics.replay import ReplayCritic
from stepalign.critics.stats import FidelityReport, Prices
from stepalign.critics.validation import CheckedCritic, Rules
from stepalign.errors import StepalignError
from stepalign.evaluation.stats import Interval
from stepalign.io import read_jsonl, to_json, write_atomically
from stepalign.models import context_limit
from stepalign.records import Critique, CritiqueFailure, PlantedSlip, Problem, Rollout
from stepalign.rewards.math import Grader

Attempts = list[tuple[Problem, Rollout]]
T = TypeVar("T")


def critique(
    settings: config.Recipe,
    rollouts: Path,
    out: Path,
    *,
    problems_file: Path | None = None,
    prices: Prices | None = None,
) -> list[Critique | CritiqueFailure]:
    """Have a recipe's critic answer a file of graded rollouts, in `out`, with a report beside it.

    Answers are appended as they come; a second start asks only for what is missing.

    Args:
        settings: its `[critic]` is used, and its training problems without `problems_file`.
        rollouts: graded rollouts (JSONL).
        out: the answers (JSONL); the report is `STEM-report.json` beside it.
        problems_file: the rollouts' problems (JSONL).
        prices: of a million tokens; the report then has the cost.

    Raises:
        StepalignError: the recipe has no critic, or a rollout has no grade or no problem.
    """
    attempts = _attempts(settings, rollouts, problems_file)
    answers = _asked(settings, attempts, out)
    write_atomically(report_of(out), to_json(fidelity.summarize(answers, prices)) + "\n")
    return answers


def verify(
    settings: config.Recipe, rollouts: Path, critiques: Path, *, problems_file: Path | None = None
) -> list[Critique | CritiqueFailure]:
    """Check a file of critiques as the recipe would, without asking any critic; nothing is written.

    Returns:
        What the recipe's policy makes of each: the critique, mended or as it is, or why it may not teach.
    """
    attempts = _attempts(settings, rollouts, problems_file)
    answers = []
    with Grader(settings.grader) as grader, Console() as console, console.stage("check", len(attempts)) as advance:
        checked = CheckedCritic(ReplayCritic(critiques), Rules(settings.critic or config.ProgramCriticConfig(), grader))
        for answer in checked.critique(attempts):
            answers.append(answer)
            advance(1)
    return answers


def sound(report: FidelityReport) -> bool:
    """Whether every rollout has a critique, and no check failed that the recipe's policy does not ignore."""
    outcomes = {name for counted in report.checks.values() for name in counted}
    return report.answers == report.critiques and outcomes <= {"passed", "ignored"}


def report_of(out: Path) -> Path:
    """Where the report on a file of answers is."""
    return out.with_name(f"{out.stem}-report.json")


# ── the benchmark ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class CriticBenchmark:
    """How a critic did on traces whose first error is known, and on natural ones."""

    critic: str
    planted: dict[str, Interval]
    """`wrong`: first-error accuracy; `right`: accuracy on the correct traces; `F1`: their harmonic mean."""
    kinds: dict[str, Interval]
    """First-error accuracy by kind of slip."""
    natural: dict[str, Interval] = Field(default_factory=dict)
    """The same with labels by final answer only: a hit is any error in a wrong one."""
    answers: FidelityReport
    seconds: float | None
    """By the clock, with everything that ran at once; None where a second start went on with the answers of a first."""


def benchmark(
    settings: config.Recipe, folder: Path, out: Path, *, limit: int | None = None, prices: Prices | None = None
) -> CriticBenchmark:
    """Measure a recipe's critic on a folder that `stepalign plant` wrote.

    Args:
        settings: its `[critic]` is measured.
        folder: planted slips with their correct traces, and natural solutions.
        out: a folder for the critic's answers (`critiques.jsonl`, resumable) and `benchmark.json`.
        limit: take at most this many slips, their correct traces, and as many natural solutions, evenly spaced.
        prices: of a million tokens.
    """
    by_id = {problem.id: problem for problem in read_jsonl(folder / "problems.jsonl", Problem)}
    slips = _spaced(read_jsonl(folder / "slips.jsonl", PlantedSlip), limit)
    natural = _spaced(read_jsonl(folder / "natural.jsonl", Rollout), limit)
    planted = read_jsonl(folder / "rollouts.jsonl", Rollout)
    wrong = {rollout.id: rollout for rollout in planted}
    right = {(rollout.problem_id, rollout.text): rollout for rollout in planted}
    pairs = [(slip, wrong[slip.rollout_id], right[slip.problem_id, slip.correct_text]) for slip in slips]
    # A correct trace is a natural solution as well: it is asked about once.
    rollouts = {rollout.id: rollout for rollout in [*(r for _, *two in pairs for r in two), *natural]}
    path = out / "critiques.jsonl"
    goes_on, start = path.exists(), time.perf_counter()
    answers = _asked(settings, [(by_id[r.problem_id], r) for r in rollouts.values()], path)
    seconds = None if goes_on else round(time.perf_counter() - start, 3)

    answered = {answer.rollout_id: answer for answer in answers}
    found_slip = [
        (slip.kind, Trial(slip.problem_id, wrong=True, hit=judged_step(answered[bad.id], slip.step)))
        for slip, bad, _ in pairs
    ]
    found_none = [
        Trial(slip.problem_id, wrong=False, hit=judged_step(answered[good.id], None)) for slip, _, good in pairs
    ]
    outcomes = [
        Trial(r.problem_id, wrong=not r.correct, hit=judged_outcome(answered[r.id], wrong=not r.correct))
        for r in natural
    ]
    found = CriticBenchmark(
        critic=_critic_of(settings).kind,
        planted=accuracies([*(trial for _, trial in found_slip), *found_none]),
        kinds=by_kind(found_slip),
        natural=accuracies(outcomes),
        answers=fidelity.summarize(answers, prices),
        seconds=seconds,
    )
    write_atomically(out / "benchmark.json", to_json(found) + "\n")
    return found


def table(found: CriticBenchmark) -> str:
    """A benchmark as lines to read."""
    rows = [(f"planted, {name}", estimate) for name, estimate in found.planted.items()]
    rows += [(f"planted, wrong: {kind}", estimate) for kind, estimate in found.kinds.items()]
    rows += [(f"natural, {name}", estimate) for name, estimate in found.natural.items()]
    lines = [f"{name:<32}{e.value:>7.1%}   [{e.low:.1%}, {e.high:.1%}]   n {e.n}" for name, e in rows]
    if found.seconds is not None:
        lines.append(f"{'seconds':<32}{found.seconds:>7.1f}")
    return "\n".join([*lines, "", fidelity.table(found.answers)])


def _spaced(records: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of them, evenly spaced."""
    if limit is None or limit >= len(records):
        return list(records)
    return [records[place * len(records) // limit] for place in range(limit)]


def _critic_of(settings: config.Recipe) -> config.CriticConfig:
    if settings.critic is None:
        raise StepalignError("the recipe has no [critic]")
    return settings.critic


def _attempts(settings: config.Recipe, rollouts: Path, problems_file: Path | None) -> Attempts:
    """A file of graded rollouts, each with its problem."""
    if problems_file is None:
        known, where = problems.prepare(settings.problems)[0], "the recipe"
    else:
        known, where = read_jsonl(problems_file, Problem), str(problems_file)
    by_id = {problem.id: problem for problem in known}
    attempts: dict[str, tuple[Problem, Rollout]] = {}
    for rollout in read_jsonl(rollouts, Rollout):
        if rollout.problem_id not in by_id:
            raise StepalignError(f"{rollouts}: rollout {rollout.id}: no problem {rollout.problem_id!r} in {where}")
        if rollout.grade is None:
            raise StepalignError(f"{rollouts}: rollout {rollout.id} is not graded")
        if rollout.id in attempts:
            raise StepalignError(f"{rollouts}: rollout {rollout.id} is there twice")
        attempts[rollout.id] = by_id[rollout.problem_id], rollout
    return list(attempts.values())


def _asked(settings: config.Recipe, attempts: Attempts, out: Path) -> list[Critique | CritiqueFailure]:
    """The critic's answers to all attempts, kept in `out`."""
    chosen = _critic_of(settings)
    with ExitStack() as stack:
        grader = stack.enter_context(Grader(settings.grader))

        def own_model() -> critics.OwnModel:
            solver = stack.enter_context(stages.solver(settings, None))
            return critics.OwnModel(solver.chat, solver.sampler, context_limit(settings.model))

        critic = critics.make(chosen, grader, out.parent, own_model)
        console = stack.enter_context(Console())
        with console.stage("critique", len(attempts)) as advance:
            return answer_all(critic, attempts, out, advance)
