"""Locators of the first wrong step, each a function that its table in `config/locators.py` names.

A table whose `is_stage` is true names a step locator of a critic instead (`critics/location.py`). A locator decides by
itself, or scores every step, the lower the worse. Scores become a decision by a rule (`benchmark.decide`). Each finding
says what its locator was told.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from stepalign import config, models
from stepalign.append_log import AppendLog
from stepalign.config import registry
from stepalign.console import Console
from stepalign.contexts import load
from stepalign.critics import verdicts
from stepalign.critics.location import Location, ScoredLocator, StepLocator
from stepalign.critics.own_model import OwnModel
from stepalign.errors import StepalignError
from stepalign.io import kept_date
from stepalign.probing.run import probe
from stepalign.process_supervision.credit import REDUCTIONS, context_of, told
from stepalign.process_supervision.step_values import sample_step_values
from stepalign.process_supervision.traces import LabelledTrace, LabelledTraces
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rollouts import sampling_limit
from stepalign.rollouts.generate import open_solver

_AT_A_TIME = 8
"""Traces between two writes of what was found."""
RESULTS = ("critiques.jsonl", "locations.jsonl", "step-values.jsonl", "probe/rollouts.jsonl")
"""Files of results in a benchmark's folder."""
Critiques = Callable[[Sequence[tuple[Problem, Rollout]], Path], list[Critique | CritiqueFailure]]
"""A recipe's critic: critiques attempts, and keeps its results in a file."""


@dataclass(frozen=True)
class Rule:
    """A rule that turns scores into the first wrong step."""

    step: Literal["lowest", "first"]
    """The step that is asked about: the lowest, or each in turn."""
    wrong: Literal["grade", "zero", "threshold", "both"]
    """It is wrong where the grade is, where its score is at most zero, or below a threshold. `both`: in a solution
    that the grade calls wrong the first step below a threshold, else the lowest."""

    @property
    def has_threshold(self) -> bool:
        """True where a threshold decides."""
        return self.wrong in ("threshold", "both")

    @property
    def knows_grade(self) -> bool:
        """True where the grade decides."""
        return self.wrong in ("grade", "both")

    def __str__(self) -> str:
        """Return the rule in words."""
        words = {"grade": ", the grade known", "zero": " at zero", "both": ", a threshold, the grade known"}
        return f"{self.step} step" + words.get(self.wrong, ", a threshold")


SCORE_RULES = (Rule("lowest", "grade"), Rule("lowest", "threshold"), Rule("first", "threshold"), Rule("first", "both"))
"""The rules for scores of steps."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A locator's answer for each trace, by rollout id. A trace that is absent counts as a miss."""

    name: str
    told: tuple[str, ...]
    """Facts that the locator was told: `grade`, `answer`, `solution`, `critique`; empty for none."""
    traces: tuple[LabelledTrace, ...]
    """The traces that it was asked for."""
    steps: Mapping[str, int | None] = field(default_factory=dict)
    """The first wrong step, or None for no error."""
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Each step's score."""
    rules: tuple[Rule, ...] = ()
    """The rules that turn scores into a step."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """A locator's findings and cost."""

    findings: tuple[Finding, ...]
    tokens: int = 0
    """Tokens read and written by models."""
    seconds: float | None = None
    """Wall time; None where a second start went on with the results of a first."""


def locate(
    recipe: config.Recipe, traces: LabelledTraces, out: Path, critique: Critiques, own: Callable[[], OwnModel]
) -> Located:
    """Run a recipe's locator on labelled traces. What it found is kept in the folder `out`, so that it resumes.

    Args:
        recipe: names the locator.
        traces: the labelled traces.
        out: the benchmark's folder.
        critique: the recipe's critic.
        own: returns the solver's base.
    """
    if isinstance(recipe.locator, config.CreditLocatorConfig):
        return by_credit(recipe.locator, recipe, traces, out)  # a probe compares contexts, some of them with critiques
    built: Located | StepLocator = registry.build(
        recipe.locator, recipe=recipe, traces=traces, out=out, folder=out, critique=critique, own=own
    )
    return built if isinstance(built, Located) else by_stage(built, traces, out)


def by_critic(
    settings: config.CriticLocatorConfig,
    *,
    recipe: config.Recipe,
    traces: LabelledTraces,
    out: Path,
    critique: Critiques,
    **_: object,
) -> Located:
    """Take the first step that the recipe's critic calls incorrect. It knows the grade and the reference answer."""
    path, asked = out / "critiques.jsonl", traces.with_answer
    resumed, start = path.exists(), time.perf_counter()
    attempts = [
        (trace.problem if settings.show_solution else replace(trace.problem, solution=""), trace.rollout)
        for trace in asked
    ]
    results = {result.rollout_id: result for result in critique(attempts, path)}
    steps = {}
    for trace in asked:
        result = results[trace.rollout.id]
        if isinstance(result, Critique):
            error = result.first_error
            steps[trace.rollout.id] = error and trace.labelled_step(error)
    solved = any(problem.solution for problem, _ in attempts)
    finding = Finding(
        name=f"critic, {recipe.critic.kind if recipe.critic else ''}",
        told=("grade", "answer", "solution") if solved else ("grade", "answer"),
        traces=asked,
        steps=steps,
    )
    return Located(
        findings=(finding,),
        tokens=sum(result.prompt_tokens + result.completion_tokens for result in results.values()),
        seconds=None if resumed else time.perf_counter() - start,
    )


def by_stage(locator: StepLocator, traces: LabelledTraces, out: Path) -> Located:
    """Ask a step locator, which a critic can use as well. Locations are appended to a file as they come."""
    asked = traces.with_answer if set(locator.told) - {"grade"} else traces.traces
    by_id = {trace.rollout.id: trace for trace in asked}
    log = AppendLog(out / "locations.jsonl", Location)
    found = {one.rollout_id: one for one in log.read() if not one.unanswered}
    log.truncate()
    pending = [trace for trace in asked if trace.rollout.id not in found]
    with Console() as console, console.stage("locate", len(asked)) as advance:
        advance(len(found))
        for first in range(0, len(pending), _AT_A_TIME):
            start, batch = time.perf_counter(), pending[first : first + _AT_A_TIME]
            new = list(locator.locate([(trace.problem, trace.rollout) for trace in batch]))
            seconds = (time.perf_counter() - start) / len(batch)
            log.append(*(timed := [replace(one, seconds=seconds) for one in new]))
            found |= {one.rollout_id: one for one in timed}
            advance(len(batch))
    answered = {name: one for name, one in found.items() if one.scores or one.step is not None or not one.reason}
    steps = {name: one.step and by_id[name].labelled_step(one.step) for name, one in answered.items()}
    findings = [Finding(name=locator.name, told=locator.told, traces=asked, steps=steps)]
    if isinstance(locator, ScoredLocator):
        scores = {name: by_id[name].by_step(one.scores) for name, one in answered.items() if one.scores}
        findings += [replace(findings[0], told=locator.facts, steps={}, scores=scores, rules=SCORE_RULES)]
    return Located(
        findings=tuple(findings),
        tokens=sum(one.prompt_tokens + one.completion_tokens for one in found.values()),
        seconds=sum(one.seconds for one in found.values()),
    )


def by_credit(
    settings: config.CreditLocatorConfig, recipe: config.Recipe, traces: LabelledTraces, out: Path
) -> Located:
    """Score each step by the lowest, or by the mean, credit of its tokens under each context."""
    designs = settings.contexts or (recipe.context.design,)
    probed = probe(recipe, out / "probe", rollouts=out / "traces", contexts=designs)
    asked = traces.with_answer
    spans = {trace.rollout.id: trace.token_spans for trace in asked}
    findings = []
    for name in (load(design).name for design in designs):
        credits = {credit.rollout_id: credit.values for credit in probed.credits if credit.context == name}
        for label, reduce in REDUCTIONS.items():
            scores = {
                rollout_id: [reduce(values[first:stop]) for first, stop in spans[rollout_id]]
                for rollout_id, values in credits.items()
            }
            findings.append(
                Finding(
                    name=f"{label} credit, {name}",
                    told=told(load(name)),
                    traces=asked,
                    scores=scores,
                    rules=SCORE_RULES,
                )
            )
    cost = probed.manifest["cost"]
    return Located(findings=tuple(findings), tokens=int(cost["tokens"]), seconds=float(cost["seconds"]))


def by_step_values(
    settings: config.StepValuesLocatorConfig, *, recipe: config.Recipe, traces: LabelledTraces, out: Path, **_: object
) -> Located:
    """Score each step by the share of its continuations that reach the answer."""
    path, asked = out / "step-values.jsonl", traces.with_answer
    resumed, start = path.exists(), time.perf_counter()
    with (
        open_solver(recipe, None, kept_date(out / "settings.json")) as solver,
        Console() as console,
        console.stage("step values", len(asked)) as advance,
    ):
        values = sample_step_values(
            solver,
            [(trace.problem, trace.rollout) for trace in asked],
            {trace.rollout.id: [first for first, _ in trace.token_spans[1:]] for trace in asked},
            recipe.sampling,
            path,
            num_rollouts=settings.num_rollouts,
            seed=recipe.seed,
            context_limit=sampling_limit(recipe.sampler, models.context_limit(recipe.model)),
            advance=advance,
        )
    finding = Finding(
        name=f"step values, {settings.num_rollouts} rollouts",
        told=("grade", "answer"),
        traces=asked,
        scores={one.rollout_id: one.soft for one in values},
        rules=(Rule("first", "zero"), Rule("first", "threshold")),
    )
    return Located(
        findings=(finding,),
        tokens=sum(one.prompt_tokens + one.completion_tokens for one in values),
        seconds=None if resumed else time.perf_counter() - start,
    )


def check(settings: config.LocatorConfig, recipe: config.Recipe) -> None:
    """Raise a StepalignError where a locator lacks something in the recipe, before long work."""
    if isinstance(settings, config.CriticLocatorConfig) and recipe.critic is None:
        raise StepalignError("locator.kind = 'critic', but the recipe has no [critic]")
    for part in settings.parts:
        if isinstance(part, config.VerdictsConfig):
            verdicts.load_template(part)
        if isinstance(part, config.CreditLocatorConfig) and part is not settings:
            context_of(part)
    if isinstance(settings, config.CreditLocatorConfig):
        for design in settings.contexts or (recipe.context.design,):
            context = load(design)
            if context.needs_siblings:
                raise StepalignError(
                    f"locator.contexts: {context.name!r} shows another rollout of the problem, and ProcessBench has one"
                )
            if context.needs_critique and recipe.critic is None:
                raise StepalignError(
                    f"locator.contexts: {context.name!r} shows a critique, but the recipe has no [critic]"
                )
