"""Python functions of the commands that belong to no single room: sample, evaluate, select, report, lab.

Each reads and writes the records that training does, so that any stage runs alone on a file. `stepalign` itself exports
them beside the functions of the rooms (`stepalign.train`, `stepalign.probe`, …).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepalign import config
from stepalign.console import Console
from stepalign.errors import StepalignError
from stepalign.io import to_json, write_atomically, write_jsonl
from stepalign.records import Problem, Rollout
from stepalign.seeding import derive_seed

if TYPE_CHECKING:
    from stepalign.evaluation.metrics import Evaluation


def sample(settings: config.Recipe, out: Path, *, adapter: Path | None = None, samples: int = 1) -> list[Rollout]:
    """Sample and grade `samples` rollouts of every training problem of a recipe, and write them to `out`."""
    from stepalign.data import prepare
    from stepalign.policy import ADAPTER
    from stepalign.rollouts.build import open_solver

    train_problems, _, _ = prepare(settings.problems)
    with (
        open_solver(settings, adapter) as solver,
        Console() as console,
        console.stage("sample", len(train_problems) * samples) as advance,
    ):
        rollouts = solver.generate_rollouts(
            train_problems,
            samples,
            settings.sampling,
            adapter=ADAPTER if adapter else None,
            policy_step=0,
            seed=derive_seed(settings.seed, "rollouts", 0),
            prefix="sample",
            on_rollout=lambda _: advance(1),
        )
    write_jsonl(out, rollouts)
    return rollouts


def evaluate(settings: config.Recipe, out: Path, *, adapter: Path | None = None) -> "Evaluation":
    """Evaluate an adapter (None: the base) on a recipe's evaluation problems.

    Writes the evaluation to `out`, and its rollouts to `STEM-rollouts.jsonl` beside it.

    Raises:
        StepalignError: the recipe has no evaluation problems.
    """
    from stepalign.data import prepare
    from stepalign.evaluation.run import judge
    from stepalign.policy import ADAPTER
    from stepalign.rollouts.build import open_solver

    _, evaluation_problems, _ = prepare(settings.problems)
    if not evaluation_problems:
        raise StepalignError("problems.holdout = 0 and no problems.evaluation: there is nothing to evaluate on")
    with open_solver(settings, adapter) as solver, Console() as console:
        evaluation, rollouts = judge(
            solver, evaluation_problems, settings, console, adapter=ADAPTER if adapter else None, step=0
        )
    write_jsonl(out.with_name(f"{out.stem}-rollouts.jsonl"), rollouts)
    write_atomically(out, to_json(evaluation) + "\n")
    return evaluation


def select(settings: config.Recipe, out: Path) -> Path:
    """Select the training problems that the base solver rarely solves but writes in the format (the paper's filter).

    Writes `train.jsonl`, `evaluation.jsonl` and `manifest.json` into the folder `out`. A stopped selection resumes. A
    recipe trains on the selected problems with `source = "file"`.
    """
    from stepalign.data import load, selection
    from stepalign.rollouts.build import open_solver

    loaded = load(settings.problems.train)
    seed = derive_seed(settings.seed, "selection")
    fingerprint = {
        "seed": settings.seed,
        **settings.model_dump(mode="json", include={"model", "prompts", "sampling", "grader"}),
    }
    with (
        open_solver(settings, None) as solver,
        Console() as console,
        console.stage("select", len(loaded.problems), "problems") as advance,
    ):

        def attempt(batch: Sequence[Problem]) -> Iterable[Rollout]:
            return solver.generate_rollouts(
                batch,
                settings.selection.num_attempts,
                settings.sampling,
                adapter=None,
                policy_step=0,
                seed=seed,
                prefix="select",
            )

        finished = 0

        def progress(done: int, _: int) -> None:
            nonlocal finished
            advance(done - finished)
            finished = done

        selection.select(
            loaded,
            attempt,
            settings.selection,
            folder=out,
            holdout=settings.problems.holdout,
            seed=settings.problems.seed,
            batch=max(1, 4 * settings.sampler.max_num_seqs // settings.selection.num_attempts),
            fingerprint=fingerprint,
            progress=progress,
        )
    return out


def write_report(folders: Sequence[Path], out: Path = Path("comparison.html")) -> Path:
    """Write the report of one run into its folder, or a page that compares several to `out`. Return its path."""
    from stepalign import report

    return report.write(folders[0]) if len(folders) == 1 else report.write_comparison(folders, out)


def run_lab(
    conditions: Sequence[str] = (),
    *,
    seeds: int = 1,
    out: Path = Path("runs/lab"),
    jobs: int = 1,
    overrides: Sequence[str] = (),
) -> Path:
    """Train the lab's conditions over seeds `0 … seeds − 1`, and write the page that compares them.

    Args:
        conditions: names of the lab's recipes; none means the paper's comparison.
        seeds: the number of runs of each condition.
        out: the folder of the runs and their comparison.
        jobs: the number of runs at a time, one core each.
        overrides: laid over every recipe.
    """
    from stepalign.lab import comparing, running

    folders = running.run(conditions or running.DEFAULT, seeds=seeds, out=out, jobs=jobs, overrides=overrides)
    return comparing.write(folders, out)
