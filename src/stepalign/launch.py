"""Launch of a run: its folder, its processes, the trainer, the probe and the report."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Unpack, cast

from stepalign import exporting, report
from stepalign.console import Console
from stepalign.distributed.process import MainProcessProxy, init_world
from stepalign.objects import AnyRecipe, Objects, with_objects
from stepalign.probing.callback import ProbeCallback
from stepalign.results import TrainResult
from stepalign.trainer import checks
from stepalign.trainer.build import build_trainer
from stepalign.trainer.loop import TrainerCallback
from stepalign.trainer.run_folder import RunFolder


def train(recipe: AnyRecipe, callbacks: Sequence[TrainerCallback] = (), **objects: Unpack[Objects]) -> TrainResult:
    """Train a run, or resume it where it was stopped.

    Args:
        recipe: the recipe, or its file.
        callbacks: called by the main process after a step, an evaluation and a checkpoint.
        objects: problems, grader, critic and context in place of the recipe's (`objects.Objects`).

    Raises:
        StepalignError: bad input, before any long work where it can be known; or a run that cannot go on. What was
            computed up to then is in the run's folder.
    """
    recipe = with_objects(recipe, **objects)
    world = init_world(recipe.distributed.num_processes)
    world.on_main(lambda: checks.check_recipe(recipe))
    world.on_main(lambda: checks.check_trackers(recipe.tracking))
    with ExitStack() as stack:
        run = cast(
            RunFolder, RunFolder(recipe) if world.size == 1 else MainProcessProxy(world, lambda: RunFolder(recipe))
        )
        stack.callback(run.close)
        probe = [ProbeCallback()] if recipe.probe is not None else []
        build_trainer(recipe, run, stack, world, [*probe, *callbacks]).train()
    world.on_main(lambda: _conclude(recipe.folder))
    world.shutdown()
    return TrainResult(recipe.folder)


def _conclude(folder: Path) -> None:
    """Write a run's report and model cards, and say what failed, fell back or dropped out."""
    exporting.write_cards(folder)
    summary = report.summarize(folder)
    if summary.shortfall:
        Console().say(f"{folder}: {summary.shortfall}")
    report.write(summary)
