"""What the lab's solver can do, alone and behind each context, and what each context's credit says: the card's table.

python -m stepalign.lab.measuring --out lab-solver.json
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

from stepalign import config, contexts, lab
from stepalign import data as problems
from stepalign.algorithms.teacher_prompt import limit_to_context
from stepalign.api import solver_on
from stepalign.chat import Chat, load_chat
from stepalign.console import Console
from stepalign.evaluation.credit_measures import CreditMeasures
from stepalign.evaluation.run import evaluate_policy
from stepalign.evaluation.stats import Interval, interval, resample
from stepalign.io import write_json
from stepalign.lab.corpus import CONTEXTS
from stepalign.lab.habits import HABITS, habits, shown
from stepalign.models import context_limit, load_base
from stepalign.policy import Policy
from stepalign.probing.credit import Crediting
from stepalign.probing.gathering import settled
from stepalign.probing.inputs import Material
from stepalign.probing.measures import measure
from stepalign.records import Problem, Rollout
from stepalign.rollouts import Request
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed

_REGIONS = ("correct", "correct_negative", "before", "at", "at_negative", "after")


def measured(settings: config.Recipe) -> dict[str, Any]:
    """Avg and Pass alone, accuracy and credit with each context in the prompt; every figure with n and an interval.

    Args:
        settings: a lab recipe; its evaluation problems are attempted.
    """
    import torch

    chat, base = load_chat(settings.model), load_base(settings.model, torch.device("cpu"))
    chosen = problems.prepare(settings.problems)[1]
    by_id = {problem.id: problem for problem in chosen}
    with Console() as console, TemporaryDirectory() as folder, solver_on(settings, chat, base) as solver:
        alone, rollouts = evaluate_policy(
            solver, chosen, settings.evaluation, console, adapter=None, seed=settings.seed, step=0
        )
        first = [replace(one, id=f"alone/{one.problem_id}") for one in rollouts if one.sample == 0]
        shown = settled(Material(rollouts=first, problems=by_id), settings, solver, console, Path(folder))
        designs = [contexts.load(f"lab/{name}") for name in CONTEXTS]
        policy = Policy(base).eval()
        crediting = Crediting(
            policy,
            chat,
            solver.prompt.before,
            designs,
            limit_to_context(settings.teacher, context_limit(settings.model)),
        )
        credits = [one for some in crediting.run(shown.rollouts, by_id, shown.critiques, {}) for one in some]
        credit = measure(shown.rollouts, shown.marks, credits, seed=settings.seed)
        bootstrap = {"resamples": settings.evaluation.num_bootstrap, "seed": settings.seed}
        helped = {}
        for design in designs:
            attempts = _attempts(solver, chat, by_id, [one for one in credits if one.context == design.name], settings)
            helped[design.name] = {
                "right": _accuracy(attempts, **bootstrap),
                "habits": habits(attempts, by_id, **bootstrap),
            }
    return {
        "problems": len(chosen),
        "samples": alone.n,
        "alone": alone.measures,
        "habits": habits(rollouts, by_id, **bootstrap),
        "with context": helped,
        "credit": _regions(credit),
    }


def _attempts(
    solver: Solver, chat: Chat, by_id: Mapping[str, Problem], credits: Sequence[Any], settings: config.Recipe
) -> list[Rollout]:
    """What the solver writes with a context in its prompt, one attempt a rollout that has one, graded."""
    from stepalign.prompts.conversation import Turn

    problem_of = {one.rollout_id: by_id[one.rollout_id.removeprefix("alone/")] for one in credits}
    requests = [
        Request(
            id=one.rollout_id,
            prompt_ids=chat.prompt_ids([Turn("user", one.prompt)]),
            seed=derive_seed(settings.seed, one.context, one.rollout_id),
        )
        for one in credits
    ]
    rollouts = []
    for completion in solver.sampler.sample(requests, settings.evaluation.sampling, adapter=None):
        text, starts = chat.decode(completion.ids)
        rollouts.append(
            Rollout(
                id=completion.id,
                problem_id=problem_of[completion.id].id,
                completion_ids=completion.ids,
                text=text,
                token_starts=starts,
                finish=completion.finish,
            )
        )
    return solver.grader.grade(rollouts, by_id)


def _accuracy(attempts: Sequence[Rollout], *, resamples: int, seed: int) -> Interval:
    """Estimate the share of right attempts, of which there is one a problem."""
    right = np.array([float(one.correct) for one in attempts])
    return interval(
        right.mean(), resample(len(right), resamples=resamples, seed=seed) @ right / len(right), n=len(right)
    )


def _regions(credit: CreditMeasures) -> dict[str, dict[str, Interval]]:
    return {
        context: {name: found[name] for name in _REGIONS if name in found} for context, found in credit.contexts.items()
    }


def table(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""

    def share(one: Interval) -> str:
        return f"{one.value:.1%} [{one.low:.1%}, {one.high:.1%}]"

    def nats(one: Interval | None) -> str:
        return "–" if one is None else f"{one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"

    alone = found["alone"]
    lines = [
        f"{found['problems']} problems, {found['samples']} attempts each: Avg {share(alone['avg'])}, "
        f"Maj {share(alone['maj'])}, Pass {share(alone['pass'])}, format {alone['formatted'].value:.1%}, "
        f"{alone['length'].value:.0f} tokens.",
        "",
        f"| context in the prompt | right | {' | '.join(HABITS.values())} |",
        "|---|---|---|---|---|",
        f"| none | {share(alone['avg'])} | {' | '.join(shown(found['habits'][name]) for name in HABITS)} |",
    ]
    for context, one in found["with context"].items():
        cells = " | ".join(shown(one["habits"][name]) for name in HABITS)
        lines.append(f"| {context.removeprefix('lab/')} | {share(one['right'])}, n = {one['right'].n} | {cells} |")
    lines += [
        "",
        "| credit | correct traces | before the error | at it | after it |",
        "|---|---|---|---|---|",
    ]
    for context, credit in found["credit"].items():
        cells = " | ".join(nats(credit.get(name)) for name in ("correct", "before", "at", "after"))
        lines.append(f"| {context.removeprefix('lab/')} | {cells} |")
    counts = next(iter(found["credit"].values()))
    n = {name: counts[name].n for name in ("correct", "at") if name in counts}
    return "\n".join([*lines, "", f"Credit in nats a token (Eq. 4), rollouts: {n}. Intervals: 95 %, over problems."])


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    settings = config.load(
        lab.RECIPES / "base.toml",
        [
            f"problems.evaluation.count={arguments.problems}",
            "problems.evaluation.seed=9",
            "evaluation.num_samples=8",
            *arguments.overrides,
        ],
    )
    found = measured(settings)
    write_json(arguments.out, to_jsonable_python(found))
    print(table(found))


if __name__ == "__main__":
    main()
