"""Step values of a file of rollouts.

stepalign step-values recipes/process-bench/gsm8k.toml rollouts.jsonl --problems problems.jsonl
"""

from pathlib import Path
from typing import Unpack

from stepalign.console import Console
from stepalign.critics.files import read_attempts
from stepalign.io import claim, kept_date, sha256
from stepalign.objects import AnyRecipe, Objects, with_objects
from stepalign.policy import ADAPTER
from stepalign.process_supervision.step_values import sample_step_values, step_ends
from stepalign.records import StepValues
from stepalign.rollouts.generate import open_solver


def step_values(
    recipe: AnyRecipe,
    rollouts: Path | str,
    out: Path | str,
    *,
    problems_file: Path | str | None = None,
    adapter: Path | str | None = None,
    num_rollouts: int = 8,
    **objects: Unpack[Objects],
) -> list[StepValues]:
    """Value every step of graded rollouts by continuations from it (Math-Shepherd), with a recipe's solver.

    Values are appended to `out` (JSONL) as they come; a second start samples only what is missing.

    Args:
        recipe: its model, prompt, sampling and grader are used, and its training problems without `problems_file`.
        rollouts: graded rollouts (JSONL).
        out: the values; `STEM-settings.json` beside it keeps what they depend on.
        problems_file: the rollouts' problems (JSONL).
        adapter: the solver's; None is the base.
        num_rollouts: continuations of each step.
        objects: problems and grader in place of the recipe's (`objects.Objects`).
    """
    settings, rollouts, out = with_objects(recipe, **objects), Path(rollouts), Path(out)
    adapter = Path(adapter) if adapter else None
    attempts = read_attempts(rollouts, problems_file or settings.problems)
    kept = out.with_name(f"{out.stem}-settings.json")
    date = kept_date(kept)
    claim(
        kept,
        {
            **settings.model_dump(mode="json", include={"model", "prompts", "sampling", "grader", "seed"}),
            "adapter": adapter and str(adapter),
            "rollouts": sha256(rollouts),
            "num_rollouts": num_rollouts,
            "date": str(date),
        },
        started=out.exists(),
        refusal="its values were sampled otherwise (choose another file with --out, or delete that one)",
    )
    with (
        open_solver(settings, adapter, date) as solver,
        Console() as console,
        console.stage("step values", len(attempts)) as advance,
    ):
        return sample_step_values(
            solver,
            attempts,
            {rollout.id: step_ends(rollout) for _, rollout in attempts},
            settings.sampling,
            out,
            num_rollouts=num_rollouts,
            seed=settings.seed,
            adapter=ADAPTER if adapter else None,
            advance=advance,
        )
