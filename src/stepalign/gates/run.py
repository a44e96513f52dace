"""Preflight of a recipe: attempts of solver and teacher, the probe's credit, one optimizer step, and their gates.

    stepalign preflight quickstart

The folder keeps everything: attempts and critiques as they are made, credit in `probe/`, so that a stopped preflight
goes on. Left out: what a second or a hundredth step does, because that is the run.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Unpack

from accelerate import Accelerator
from pydantic import PositiveInt

from stepalign import config, data, models, prompts
from stepalign.algorithms.base import Algorithm, StepExamples
from stepalign.append_log import AppendLog
from stepalign.arguments import checked
from stepalign.chat import CHAT_TEMPLATE, load_chat
from stepalign.config import machine, registry
from stepalign.console import Console
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import CreditMeasures
from stepalign.gates import gates, page
from stepalign.gates.attempts import solver_attempts, teacher_attempts
from stepalign.gates.first_step import FirstStep, try_first_step
from stepalign.gates.gate import Preflight
from stepalign.gates.gates import Attempts, StageTime
from stepalign.io import claim, kept_date, to_json, write_atomically
from stepalign.manifest import manifest
from stepalign.objects import AnyRecipe, Objects, with_objects
from stepalign.probing import inputs
from stepalign.probing.folder import Probe
from stepalign.probing.run import probe
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem, TokenIds
from stepalign.rollouts import sampling_limit
from stepalign.rollouts.generate import open_solver
from stepalign.rollouts.room import with_room
from stepalign.trainer.checks import check_dtype, check_recipe
from stepalign.views import View

MIN_PROBLEMS = 4
"""Training problems of a preflight, at least: one step is tried on each half of them."""


@checked
def preflight(
    recipe: AnyRecipe, out: Path | str = "preflight", *, limit: PositiveInt | None = None, **objects: Unpack[Objects]
) -> Preflight:
    """Measure the gates of a recipe, and write `preflight.json` and `preflight.html` into the folder `out`.

    Args:
        recipe: the recipe, or its file; `[preflight]` has sample size and thresholds.
        out: the folder. A stopped preflight goes on there.
        limit: the number of training problems in place of `preflight.num_problems`.
        objects: problems, grader, critic and context in place of the recipe's (`objects.Objects`).

    Raises:
        StepalignError: the recipe cannot be run, or `out` holds another recipe's preflight.
    """
    settings, out = with_objects(recipe, **objects), Path(out)
    check_dtype(settings)
    kept = out / "settings.json"
    if limit is not None:
        table = settings.preflight.model_copy(update={"num_problems": limit})
        settings = settings.model_copy(update={"preflight": table})
    with prompts.recorded() as texts:
        check_recipe(settings)  # loads grader, critic and contexts that are Python as well
        machine.check(settings, "model", "problems", "sampler", "grader", "critic", "teacher")
        settings = models.with_precision(settings, kept, Accelerator().device)
        prompt, day = SolverPrompt(settings.prompts), kept_date(kept)
        chat, context_limit = load_chat(settings.model, prompt.before, day), models.context_limit(settings.model)
        algorithm: Algorithm[Any] = registry.build(
            settings.algorithm, recipe=settings, chat=chat, prompt=prompt, context_limit=context_limit
        )
    texts[CHAT_TEMPLATE] = str(chat.tokenizer.chat_template)
    _claim(settings, out, prompts.digests(texts), day)
    train, evaluation, _ = data.prepare(settings.problems)
    train = with_room(train, settings.sampling, chat, prompt, sampling_limit(settings.sampler, context_limit))
    problems = train[: settings.preflight.num_problems]
    if len(problems) < MIN_PROBLEMS:
        raise StepalignError(f"problems.train: {len(problems)} problems, a preflight needs {MIN_PROBLEMS} or more")
    algorithm.check_problems(problems)
    made = _sample(settings, algorithm, problems, out, day)
    credit = _credit(settings, out)
    first_step = _first_step(settings, algorithm, made)
    hours = _hours(settings, made, first_step, len(evaluation))
    measured = gates.preflight_of(settings, made, credit, first_step, hours)
    measured = replace(measured, manifest=manifest())
    write_atomically(out / "preflight.json", to_json(measured) + "\n")
    page.write(settings, measured, out / "preflight.html", has_probe=credit is not None)
    return measured


def _claim(settings: config.Recipe, out: Path, words: Mapping[str, str], day: date) -> None:
    """Take the folder for this recipe. Thresholds may change, because only the verdicts follow from them."""
    keys = settings.model_dump(mode="json", exclude={"preflight", "canaries", "output_dir", "tracking", "name"})
    sample = settings.preflight.model_dump(include={"num_problems", "num_samples"})
    claim(
        out / "settings.json",
        {**keys, "preflight": sample, "words": words, "date": str(day)},
        started=(out / "solver.jsonl").exists(),
        refusal="it holds another recipe's preflight (choose another folder with --out, or delete that one)",
        free=tuple(settings.runtime_keys()),
        optional=("words",),  # earlier releases kept fewer
    )


def _sample(
    settings: config.Recipe, algorithm: Algorithm[Any], problems: Sequence[Problem], out: Path, day: date
) -> Attempts:
    """Sample what the folder lacks: attempts of the solver, critiques, attempts of the teacher."""
    log, given = AppendLog(out / "seconds.jsonl", StageTime), out / "inputs"
    group = 1 if algorithm.one_by_one else settings.training.num_generations
    number, by_id = settings.preflight.num_samples, {problem.id: problem for problem in problems}
    with ExitStack() as stack:
        console = stack.enter_context(Console())
        solver = stack.enter_context(open_solver(settings, None, day))

        def timed(tokens: int, seconds: float) -> None:
            log.append(StageTime(stage="sample", units=tokens, seconds=seconds))

        with console.stage("solver", len(problems), "problems") as advance:
            every = solver_attempts(solver, problems, group + number, settings, out / "solver.jsonl", advance, timed)
        attempts = {some[0].problem_id: some[:group] for some in every}
        fresh = {some[0].problem_id: some[group:] for some in every}
        complete = (
            inputs.read(given)
            if (given / "rollouts.jsonl").exists()
            else Probe(problems=tuple(problems), rollouts=tuple(one for some in attempts.values() for one in some))
        )
        critic = settings.critic if algorithm.needs_critique else None
        own = settings.model_copy(update={"critic": critic})
        num_known = len(inputs.answered(complete, given))
        begin = time.perf_counter()
        complete = inputs.prepare(complete, own, solver, console, given)
        if asked := len(complete.critic_results) - num_known:
            log.append(StageTime(stage="critique", units=asked, seconds=time.perf_counter() - begin))
        critiques = {result.rollout_id: result for result in complete.critic_results}
        step = algorithm.build_examples(complete.rollouts, by_id, critiques)
        by_attempt = _teacher_prompts(step)
        teacher = solver
        if settings.teacher.model_of(settings.model) is not settings.model:
            changes = {"model": settings.teacher.model_of(settings.model), "sampler": config.TransformersConfig()}
            teacher = stack.enter_context(open_solver(settings.model_copy(update=changes), None, day))
        known = [rollout for rollout in complete.rollouts if rollout.id in by_attempt]
        with console.stage("teacher", len(by_attempt), "prompts") as advance:
            answered = teacher_attempts(
                teacher, known, by_attempt, by_id, number, settings, out / "teacher.jsonl", advance, timed
            )
    return Attempts(
        problems=by_id,
        attempts=attempts,
        fresh=fresh,
        teacher=answered,
        critiques=critiques,
        step=step,
        seconds=list(log.read()),
    )


def _teacher_prompts(step: StepExamples[Any]) -> dict[str, TokenIds]:
    """Return the teacher's prompt by attempt, where the algorithm's examples have a teacher's view."""
    found = {}
    for example in step.examples:
        views = (getattr(example, "teacher", None), *getattr(example, "teachers", ()))
        if view := next((view for view in views if isinstance(view, View)), None):
            found[example.rollout_id] = view.prompt_ids
    return found


def _credit(settings: config.Recipe, out: Path) -> CreditMeasures | None:
    """Probe the recipe's context on the attempts; None for an algorithm without a teacher."""
    if not settings.algorithm.uses_teacher:
        return None
    return probe(settings, out / "probe", rollouts=out / "inputs").measures


def _first_step(settings: config.Recipe, algorithm: Algorithm[Any], made: Attempts) -> FirstStep | None:
    if algorithm.rollout_source(1) != "policy" or algorithm.second_turn(
        [one for some in made.attempts.values() for one in some], made.problems, made.critiques
    ):
        return None
    device = Accelerator().device
    policy = models.load_policy(settings.model, settings.adapter, settings.seed, device)
    algorithm.begin(policy)
    graded = {name: [*made.attempts[name], *made.fresh[name]] for name in made.problems}
    problems = list(made.problems.values())
    with Console() as console, console.stage("first step", 2, "steps"):
        return try_first_step(
            settings, algorithm, policy.eval(), problems, made.attempts, graded, made.critiques, console, device
        )


def _hours(settings: config.Recipe, made: Attempts, first_step: FirstStep | None, evaluated: int) -> float | None:
    """Estimate the run's hours from the seconds that each stage took here; None where a stage was not timed."""
    times = {stage: [one for one in made.seconds if one.stage == stage] for stage in ("sample", "critique")}
    rates = {s: sum(one.seconds for one in t) / max(sum(one.units for one in t), 1) for s, t in times.items()}
    if not rates["sample"] or (made.critiques and not times["critique"]):
        return None
    attempts = [one for some in made.fresh.values() for one in some]
    sampling = rates["sample"] * sum(len(one.completion_ids) for one in attempts) / len(attempts)
    training = settings.training
    rollout = sampling + rates["critique"] + (first_step.seconds_per_rollout if first_step else 0.0)
    evaluations = 1 + -(-training.max_steps // (training.eval_steps or training.max_steps)) if evaluated else 0
    evaluation = evaluated * settings.evaluation.num_samples * sampling
    return (training.max_steps * training.rollouts_per_step * rollout + evaluations * evaluation) / 3600
