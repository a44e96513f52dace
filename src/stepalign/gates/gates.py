"""The gates of a preflight, from what was measured: values, thresholds, and the keys to change."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepalign import config
from stepalign.algorithms.base import StepExamples
from stepalign.evaluation.metrics import CreditMeasures
from stepalign.evaluation.stats import Interval, pooled_mean
from stepalign.gates.attempts import RESAMPLES, compare
from stepalign.gates.first_step import FirstStep
from stepalign.gates.gate import Gate, Preflight
from stepalign.records import CriticResult, Problem, Rollout
from stepalign.seeding import derive_seed
from stepalign.trainer.checks import count_reasons, failed


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Seconds that a number of units took: tokens of `sample`, rollouts of `critique`."""

    stage: str
    units: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """All that a preflight sampled, and what the algorithm builds of it."""

    problems: Mapping[str, Problem]
    attempts: Mapping[str, Sequence[Rollout]]
    """Those that a step would train on, by problem."""
    fresh: Mapping[str, Sequence[Rollout]]
    """The solver's other attempts, by problem."""
    teacher: Mapping[str, Sequence[Rollout]]
    """The teacher's, by the id of the attempt whose prompt it answers."""
    critiques: Mapping[str, CriticResult]
    step: StepExamples[Any]
    seconds: Sequence[StageTime]


def preflight_of(
    settings: config.Recipe,
    made: Attempts,
    credit: CreditMeasures | None,
    first_step: FirstStep | None,
    hours: float | None,
) -> Preflight:
    """Judge a recipe by its gates.

    Args:
        settings: the recipe, whose `[preflight]` has the thresholds.
        made: attempts and the examples built of them.
        credit: the probe's measures under the recipe's context; None without a teacher.
        first_step: None where no first step could be tried.
        hours: of the whole run on this machine; None where they are not known.
    """
    sides = _sides(settings, made)
    gates = [
        *_of_teacher(settings, sides),
        *_of_credit(settings.preflight, credit),
        *_of_step(settings, made),
        *_of_first_step(settings.preflight, first_step),
    ]
    missing = {name: reason for name, reason in _REASONS.items() if all(gate.name != name for gate in gates)}
    if hours is None:
        missing["hours"] = "no stage was timed"
    elif settings.preflight.max_hours:
        gates.append(_hours(settings.preflight, hours, len(made.problems)))
    else:
        missing["hours"] = "preflight.max_hours = 0 sets no bound"
    return Preflight(
        name=settings.name, gates=tuple(gates), not_measured=missing, sides=sides, reasons=+made.step.failures,
        hours=hours,
    )  # fmt: skip


_REASONS = {
    "solve gain": "no teacher answers a prompt of its own",
    "right numbers": "nothing is computed, or the loss is not forward KL (algorithm.beta below 0.5)",
    "format": "no teacher answers a prompt of its own",
    "length": "no teacher answers a prompt of its own",
    "correct suppressed": "no attempt is correct, or there is no teacher",
    "error contrast": "no attempt has a known first error, or there is no teacher",
    "first token": "the algorithm measures no KL",
    "cut": "no example was built",
    "dropped": "no example was built",
    "critic": "the algorithm needs no critique",
    "first step": "no attempt carries a gradient, or the first step is not on the policy's own attempts",
}


def _sides(settings: config.Recipe, made: Attempts) -> dict[str, dict[str, Interval]]:
    """Compare solver and teacher on all problems, and the solved share where the attempt was right or wrong."""
    by_id = {rollout.id: rollout for some in made.attempts.values() for rollout in some}
    answered = [(by_id[name], rollouts) for name, rollouts in made.teacher.items() if name in by_id]

    def side(wanted: Sequence[bool]) -> dict[str, list[Rollout]]:
        by_problem: dict[str, list[Rollout]] = {}
        for attempt, rollouts in answered:
            if attempt.correct in wanted:
                by_problem.setdefault(attempt.problem_id, []).extend(rollouts)
        return by_problem

    found = compare(made.problems, made.fresh, side((True, False)), seed=settings.seed)
    for title, wanted in (("solved, attempt right", True), ("solved, attempt wrong", False)):
        part = compare(made.problems, made.fresh, side((wanted,)), seed=settings.seed, names=["solved"])
        if part:
            found[title] = part["solved"]
    return found


def _of_teacher(settings: config.Recipe, sides: Mapping[str, Mapping[str, Interval]]) -> Iterator[Gate]:
    table = settings.preflight
    if "solved" in sides:
        yield _difference(
            sides["solved"],
            name="solve gain",
            title="The teacher solves more problems than the solver",
            threshold=table.min_solve_gain,
            remedy="another context.template, or a critic whose critiques help; teacher.jsonl has the attempts",
        )
    if "right numbers" in sides and _is_forward(settings.algorithm):
        yield _difference(
            sides["right numbers"],
            name="right numbers",
            title="The context leaves the teacher its right numbers",
            threshold=-table.max_numbers_drop,
            remedy="algorithm.beta = 1.0 (reverse KL), which takes up less of what distracts; another context.template",
        )
    if "format" in sides:
        yield _difference(
            sides["format"],
            name="format",
            title="The context leaves the teacher the solver's format",
            threshold=-table.max_format_drop,
            remedy="the format's words in context.template, or prompts.examples, which the teacher reads as well",
        )
    if "ratio" in sides.get("length", {}):
        yield _length(table, sides["length"])


def _difference(one: Mapping[str, Interval], *, name: str, title: str, threshold: float, remedy: str) -> Gate:
    """Judge a share of the attempts, teacher minus solver."""
    return Gate(
        name=name,
        title=title,
        measured=one["difference"],
        threshold=threshold,
        at_least=True,
        unit="points",
        detail=f"teacher {one['teacher'].value:.0%}, solver {one['solver'].value:.0%}",
        remedy=remedy,
    )


def _is_forward(algorithm: config.AlgorithmConfig) -> bool:
    """Return whether the loss makes the student cover what its teacher finds possible."""
    return isinstance(algorithm, config.DistillationConfig) and algorithm.beta < 0.5


def _length(table: config.PreflightConfig, one: Mapping[str, Interval]) -> Gate:
    """Judge the factor between the lengths, of whichever side is longer."""
    ratio, relation = one["ratio"], "longer"
    if ratio.value < 1:
        relation = "shorter"
        ratio = Interval(value=1 / ratio.value, low=1 / ratio.high, high=1 / max(ratio.low, 1e-9), n=ratio.n)
    return Gate(
        name="length",
        title="The teacher writes about as much as the solver",
        measured=ratio,
        threshold=table.max_length_ratio,
        at_least=False,
        unit="times",
        detail=f"{relation}: teacher {one['teacher'].value:.0f}, solver {one['solver'].value:.0f} tokens",
        remedy="teacher.enable_thinking, sampling.max_new_tokens, or a context.template that asks for a whole solution",
    )


def _of_credit(table: config.PreflightConfig, credit: CreditMeasures | None) -> Iterator[Gate]:
    measures = next(iter(credit.contexts.values()), {}) if credit else {}
    if "correct_negative" in measures:
        yield Gate(
            name="correct suppressed",
            title="Credit leaves correct solutions their probability",
            measured=measures["correct_negative"],
            threshold=table.max_correct_suppressed,
            at_least=False,
            unit="%",
            detail=f"of the tokens of correct solutions pushed down; mean {_nats(measures['correct'])}",
            remedy='context.template = "stepalign" with a [critic], which shows the solver\'s own steps',
        )
    if "contrast" in measures:
        first_wrong = measures.get("departure")
        yield Gate(
            name="error contrast",
            title="Credit is lower at the error than elsewhere",
            measured=measures["contrast"],
            threshold=table.min_error_contrast,
            at_least=True,
            unit="nats",
            detail=f"first wrong token {_nats(first_wrong)}" if first_wrong else "",
            remedy="a context.template that shows the corrected step; a [critic] that finds the first error",
        )


def _nats(interval: Interval) -> str:
    return f"{interval.value:+.2f} nats".replace("-", "−")


def _of_step(settings: config.Recipe, made: Attempts) -> Iterator[Gate]:
    table, seed = settings.preflight, derive_seed(settings.seed, "preflight", "step")
    problem_of = {rollout.id: name for name, some in made.attempts.items() for rollout in some}

    def share(values: Mapping[str, bool]) -> Interval:
        pairs = [(problem_of.get(rollout_id, rollout_id), float(value)) for rollout_id, value in values.items()]
        return pooled_mean(pairs, resamples=RESAMPLES, seed=seed)

    trained = {example.rollout_id: _has_cut_prompt(example) for example in made.step.examples}
    if trained and settings.algorithm.uses_teacher:
        yield Gate(
            name="cut",
            title="Teacher prompts are whole",
            measured=share(trained),
            threshold=table.max_cut,
            at_least=False,
            unit="%",
            detail=f"{sum(trained.values())} of {len(trained)} shortened",
            remedy="teacher.max_length, or a shorter context.template",
        )
    if problem_of:
        dropped = {rollout_id: rollout_id not in trained for rollout_id in problem_of}
        yield Gate(
            name="dropped",
            title="Rollouts carry a gradient",
            measured=share(dropped),
            threshold=table.max_dropped,
            at_least=False,
            unit="%",
            detail=f"{sum(dropped.values())} of {len(dropped)} dropped",
            remedy="training.num_generations, context.fallback_template, critic.on_failure, teacher.max_length",
        )
    if made.critiques and settings.critic is not None:
        failures = {failure.rollout_id: failure for failure in failed(made.critiques.values())}
        passed = {rollout_id: rollout_id not in failures for rollout_id in made.critiques}
        yield Gate(
            name="critic",
            title="The critic's critiques pass the checks",
            measured=share(passed),
            threshold=1 - settings.critic.max_failure_share,
            at_least=True,
            unit="%",
            detail=f"{sum(passed.values())} of {len(passed)}"
            + (f" ({count_reasons(failures.values())})" if failures else ""),
            remedy="critic.kind, critic.mode, critic.max_attempts, critic.validation; `stepalign critique`",
        )


def _has_cut_prompt(example: Any) -> bool:
    taught = getattr(example, "distilled", None) or example
    return bool(getattr(taught, "cut", False))


def _of_first_step(table: config.PreflightConfig, first_step: FirstStep | None) -> Iterator[Gate]:
    if first_step is None:
        return
    yield Gate(
        name="first step",
        title="The first optimizer step raises right attempts above wrong ones",
        measured=first_step.gain,
        threshold=table.min_first_step,
        at_least=True,
        unit="points",
        detail="first-order change of the accuracy by one step",
        remedy="algorithm.beta, algorithm.clip_mode and clip_value, algorithm.loss_span, context.template",
    )
    if (kl := first_step.first_token_kl) is not None:
        yield Gate(
            name="first token",
            title="Teacher and student begin alike",
            measured=Interval(value=kl, low=kl, high=kl, n=first_step.gain.n),
            threshold=table.max_first_token_kl,
            at_least=False,
            unit="nats",
            detail="mean KL(teacher‖student) of the first loss token",
            remedy="teacher.close_think = true, teacher.enable_thinking, or algorithm.num_loss_tokens_to_skip",
        )


def _hours(table: config.PreflightConfig, hours: float, n: int) -> Gate:
    return Gate(
        name="hours",
        title="The run takes the time that there is",
        measured=Interval(value=hours, low=hours, high=hours, n=n),
        threshold=table.max_hours,
        at_least=False,
        unit="hours",
        remedy="training.max_steps, training.rollouts_per_step, sampling.max_new_tokens, evaluation.num_samples",
    )
