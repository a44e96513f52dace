"""Measure the lab's solver, alone and with each context in its prompt, and each context's credit: the card's tables.

python -m tools.lab_solver.measure --out measured.json --problems 100
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

from stepalign import config, contexts
from stepalign import data as problems
from stepalign.algorithms.teacher_prompt import limit_to_context
from stepalign.assets import LAB_RECIPES
from stepalign.chat import Chat, load_chat
from stepalign.console import Console
from stepalign.evaluation.run import evaluate_policy
from stepalign.evaluation.stats import Interval, interval, resample
from stepalign.io import write_json
from stepalign.lab.behaviour import BEHAVIOURS, behaviours
from stepalign.models import context_limit, load_base
from stepalign.policy import Policy
from stepalign.probing.credit import CreditScorer
from stepalign.probing.folder import Probe
from stepalign.probing.inputs import prepare
from stepalign.probing.measures import measure as credit_measures
from stepalign.prompts.conversation import Turn
from stepalign.records import Problem, Rollout
from stepalign.rollouts import Request
from stepalign.rollouts.generate import Solver, solver_on
from stepalign.seeding import derive_seed
from stepalign.teachers.stateless import BaseTeacher
from tools.lab_solver.corpus import CONTEXTS

_REGIONS = {"correct": "correct traces", "before": "before the error", "at": "at it", "after": "after it"}


def measure(settings: config.Recipe) -> dict[str, Any]:
    """Measure accuracy alone, accuracy with each context in the prompt, and credit, each with its interval.

    Args:
        settings: a lab recipe; its evaluation problems are attempted.
    """
    import torch

    chat, base = load_chat(settings.model), load_base(settings.model, torch.device("cpu"))
    _, evaluation_problems, _ = problems.prepare(settings.problems)
    by_id = {problem.id: problem for problem in evaluation_problems}
    bootstrap = {"resamples": settings.evaluation.num_bootstrap, "seed": settings.seed}
    with Console() as console, TemporaryDirectory() as folder, solver_on(settings, chat, base) as solver:
        alone, rollouts = evaluate_policy(
            solver, evaluation_problems, settings.evaluation, console, adapter=None, seed=settings.seed, step=0
        )
        first = [replace(rollout, id=f"alone/{rollout.problem_id}") for rollout in rollouts if rollout.sample == 0]
        given = Probe(problems=tuple(evaluation_problems), rollouts=tuple(first))
        inputs = prepare(given, settings, solver, console, Path(folder))
        designs = [contexts.load(f"lab/{name}") for name in CONTEXTS]
        prompt, policy = limit_to_context(settings.teacher, context_limit(settings.model)), Policy(base).eval()
        scorer = CreditScorer(policy, chat, solver.prompt.before, designs, BaseTeacher(policy), prompt)
        credits = [credit for batch in scorer.run(inputs, {}) for credit in batch]
        with_context = {}
        for design in designs:
            prompts = {credit.rollout_id: credit.prompt for credit in credits if credit.context == design.name}
            attempts = _attempt(solver, chat, by_id, prompts, design.name, settings)
            right = np.array([float(attempt.correct) for attempt in attempts])
            means = resample(len(right), **bootstrap) @ right / len(right)
            with_context[design.name] = {
                "right": interval(right.mean(), means, n=len(right)),
                "behaviours": behaviours([attempts], by_id, **bootstrap),
            }
    return {
        "problems": len(evaluation_problems),
        "samples": alone.n,
        "alone": alone.measures,
        "behaviours": behaviours([rollouts], by_id, **bootstrap),
        "with context": with_context,
        "credit": credit_measures(inputs.rollouts, inputs.marks, credits, seed=settings.seed).contexts,
    }


def _attempt(
    solver: Solver,
    chat: Chat,
    by_id: Mapping[str, Problem],
    prompts: Mapping[str, str],
    context: str,
    settings: config.Recipe,
) -> list[Rollout]:
    """Sample one graded attempt a prompt; prompts are by the rollout whose context they show."""
    requests = [
        Request(
            id=name, prompt_ids=chat.prompt_ids([Turn("user", prompt)]), seed=derive_seed(settings.seed, context, name)
        )
        for name, prompt in prompts.items()
    ]
    rollouts = []
    for completion in solver.sampler.sample(requests, settings.evaluation.sampling, adapter=None):
        text, starts = chat.decode(completion.ids)
        rollouts.append(
            Rollout(
                id=completion.id,
                problem_id=completion.id.removeprefix("alone/"),
                completion_ids=completion.ids,
                text=text,
                token_starts=starts,
                finish=completion.finish,
            )
        )
    return solver.grader.grade(rollouts, by_id)


def table(measured: Mapping[str, Any]) -> str:
    """Lay the figures out as Markdown."""

    def row(title: str, right: str, shares: Mapping[str, Interval]) -> str:
        return f"| {title} | {right} | {' | '.join(f'{shares[name]:.0%}' for name in BEHAVIOURS)} |"

    alone = measured["alone"]
    lines = [
        f"{measured['problems']} problems, {measured['samples']} attempts each: Avg {alone['avg']:.1%}, "
        f"Maj {alone['maj']:.1%}, Pass {alone['pass']:.1%}, format {alone['formatted'].value:.1%}, "
        f"{alone['length'].value:.0f} tokens.",
        "",
        f"| context in the prompt | right | {' | '.join(BEHAVIOURS)} |",
        "|---|---|---|---|---|",
        row("none", f"{alone['avg']:.1%}", measured["behaviours"]),
    ]
    for context, shares in measured["with context"].items():
        right = f"{shares['right']:.1%}, n = {shares['right'].n}"
        lines.append(row(context.removeprefix("lab/"), right, shares["behaviours"]))
    lines += ["", f"| credit | {' | '.join(_REGIONS.values())} |", "|---|---|---|---|---|"]
    for context, credit in measured["credit"].items():
        cells = " | ".join(f"{credit[name]:+.2f}" if name in credit else "–" for name in _REGIONS)
        lines.append(f"| {context.removeprefix('lab/')} | {cells} |")
    first = next(iter(measured["credit"].values()))
    n = {name: first[name].n for name in ("correct", "at") if name in first}
    return "\n".join([*lines, "", f"Credit in nats a token (Eq. 4), rollouts: {n}. Intervals: 95 %, over problems."])


def main() -> None:
    """Measure, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    evaluation = f"problems.evaluation.count={arguments.problems}", "problems.evaluation.seed=9"
    settings = config.load(LAB_RECIPES / "base.toml", [*evaluation, "evaluation.num_samples=8", *arguments.overrides])
    measured = measure(settings)
    write_json(arguments.out, to_jsonable_python(measured))
    print(table(measured))


if __name__ == "__main__":
    main()
