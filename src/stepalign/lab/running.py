"""Run the lab: each condition and seed as a run of its own, and the comparison of all.

Each run is one recipe with another seed, in a process with one thread, because so small a model gains nothing from a
second. Finished runs are not repeated, so a stopped lab resumes where it was.

    stepalign lab --seeds 5 --out runs/lab
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pydantic import PositiveInt

from stepalign import config, report
from stepalign.arguments import checked
from stepalign.assets import LAB_RECIPES
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl
from stepalign.lab.behaviour import BEHAVIOURS, behaviours
from stepalign.lab.side_effects import side_effects_table
from stepalign.records import Problem, Rollout
from stepalign.report.comparison import Comparison
from stepalign.report.display import Cell, Table
from stepalign.report.run import RunFiles, read_run

DEFAULT = ("stepalign", "refsol", "grpo", "stepalign-reverse", "refsol-reverse")
"""The paper's three-way comparison, and the other direction of the divergence."""


TEACHER = "trained-teacher"
"""The condition whose first seed teaches those with a `teacher.kind = "model"`."""


def conditions(folder: Path = LAB_RECIPES) -> list[str]:
    """List the names of the conditions in a folder and those below it."""
    return sorted(path.stem for path in folder.rglob("*.toml") if path.stem != "base")


def related() -> list[str]:
    """List the names of the related systems, the one that teaches others first."""
    return sorted(conditions(LAB_RECIPES / "related"), key=lambda name: (name != TEACHER, name))


def settings_of(condition: str, seed: int, out: Path, overrides: Sequence[str] = ()) -> config.Recipe:
    """Load a condition's recipe for one seed. The weights of `trained-teacher` are those that it has in this lab."""
    own = [f"seed={seed}", f"name={condition}-{seed}", f"output_dir={out}"]
    if _is_taught(condition, overrides):
        trained = settings_of(TEACHER, 0, out, overrides)
        weights = trained.folder / "checkpoints" / f"step-{trained.training.max_steps:06d}"
        own.append(f"teacher.model.name_or_path={weights}")
    return config.load(_path(condition), [*overrides, *own])


def _path(condition: str) -> Path:
    if condition not in conditions():
        raise StepalignError(f"no condition {condition!r}; allowed: {', '.join(conditions())}")
    return next(LAB_RECIPES.rglob(f"{condition}.toml"))


def _is_taught(condition: str, overrides: Sequence[str]) -> bool:
    """Return whether a condition's teacher is `trained-teacher`, the overrides considered."""
    teacher = config.load(_path(condition), overrides).teacher
    return isinstance(teacher, config.ModelTeacherConfig) and teacher.model.name_or_path == TEACHER


def plan(
    names: Sequence[str], *, seeds: int, out: Path, overrides: Sequence[str] = ()
) -> tuple[list[config.Recipe], list[config.Recipe]]:
    """Return the run of `trained-teacher`, where a condition learns from it, and the runs of the conditions."""
    taught = any(_is_taught(name, overrides) for name in names)
    # Seeds are the outer loop, so that a stopped lab is balanced.
    runs = [settings_of(name, seed, out, overrides) for seed in range(seeds) for name in names]
    return [settings_of(TEACHER, 0, out, overrides)] if taught else [], runs


def _behaviour_table(comparison: Comparison) -> Table:
    def cells(runs: Sequence[RunFiles], at: int) -> list[Cell]:
        problems = {p.id: p for p in read_jsonl(runs[0].folder / "problems" / "evaluation.jsonl", Problem)}
        if not all("terms" in problem.meta for problem in problems.values()):
            return []  # an override may replace the sums by other problems
        name = f"step-{runs[0].evaluations[at].step:06d}.jsonl"
        attempts = [read_jsonl(run.folder / "evaluations" / name, Rollout) for run in runs]
        estimates = behaviours(attempts, problems, resamples=2000, seed=0)
        return [Cell(f"{estimate:.0%}") for estimate in estimates.values()]

    rows = [("before", cells(comparison.runs[comparison.baseline], 0))]
    rows += [(condition, cells(runs, -1)) for condition, runs in comparison.runs.items()]
    return Table("Attempts at the last evaluation", list(BEHAVIOURS), [row for row in rows if row[1]])


@checked
def run_lab(
    conditions: Sequence[str] = (),
    *,
    seeds: PositiveInt = 1,
    out: Path | str = Path("runs/lab"),
    jobs: PositiveInt = 1,
    overrides: Sequence[str] = (),
) -> Path:
    """Train the lab's conditions, and write `comparison.html`, `comparison.md` and the figures that compare them.

    Args:
        conditions: names of the lab's recipes; none means the paper's comparison.
        seeds: the number of runs of each condition, with the seeds `0 … seeds − 1`.
        out: the folder of the runs and their comparison.
        jobs: the number of runs at a time, one core each.
        overrides: laid over every recipe.
    """
    out = Path(out)
    # All recipes are checked before the first run.
    batches = plan(conditions or DEFAULT, seeds=seeds, out=out, overrides=overrides)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_begin_worker) as pool:
        for recipes in batches:
            with _ignoring_interrupts():  # inherited, so that a process that starts or waits has no traceback to print
                results = pool.map(_train, recipes, itertools.count(1), itertools.repeat(len(recipes)))
            try:
                list(results)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                # A shell's Ctrl-C has reached them already, a kill has not.
                for process in multiprocessing.active_children():
                    os.kill(process.pid or os.getpid(), signal.SIGINT)
                raise
    comparison = Comparison(
        {name: [read_run(out / f"{name}-{seed}") for seed in range(seeds)] for name in conditions or DEFAULT}
    )
    tables = [side_effects_table(comparison), _behaviour_table(comparison)]
    return report.write_conditions(comparison, out / "comparison.html", over=comparison.costs, others=tables)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others cannot set handlers, and get no interrupts
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _train(settings: config.Recipe, number: int, count: int) -> None:
    """Train in a process of the pool. The first SIGINT ends the run, and later ones do not disturb its end."""
    from stepalign import launch
    from stepalign.trainer.loop import Trainer, TrainerCallback

    class Label(TrainerCallback):
        def on_train_begin(self, trainer: Trainer) -> None:
            trainer.console.set_label(settings.name)
            trainer.console.say(f"run {number} of {count}")

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        launch.train(settings, [Label()])
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _begin_worker() -> None:
    """Take one thread, and end with the lab's process: a killed one would leave runs that nobody waits for."""
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)  # the run goes on from its last checkpoint
