"""Launch of a run: its folder, its processes, the trainer, the probe and the report."""

from collections.abc import Sequence
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Unpack, cast

from stepalign import exporting, report
from stepalign.arguments import checked
from stepalign.config import machine
from stepalign.console import Console
from stepalign.distributed.process import MainProcessProxy, init_world
from stepalign.errors import StepalignError
from stepalign.objects import AnyRecipe, Objects, with_objects
from stepalign.probing.callback import ProbeCallback
from stepalign.results import TrainResult
from stepalign.trainer import checks
from stepalign.trainer.build import build_trainer
from stepalign.trainer.loop import TrainerCallback
from stepalign.trainer.run_folder import RunFolder


@checked
def train(recipe: AnyRecipe, callbacks: Sequence[object] = (), **objects: Unpack[Objects]) -> TrainResult:
    """Train a run, or resume it where it was stopped.

    Args:
        recipe: the recipe, or its file.
        callbacks: objects with some of the hooks of `TrainerCallback`, called by the main process.
        objects: problems, grader, critic and context in place of the recipe's (`objects.Objects`).

    Raises:
        StepalignError: bad input, before any long work where it can be known; or a run that cannot go on. What was
            computed up to then is in the run's folder.
    """
    _check_callbacks(callbacks)
    recipe = with_objects(recipe, **objects)
    world = init_world(recipe.distributed.num_processes)
    world.on_main(lambda: checks.check_dtype(recipe))
    world.on_main(lambda: checks.check_recipe(recipe))
    world.on_main(lambda: machine.check(recipe, *machine.TRAINING))
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


def _check_callbacks(callbacks: Sequence[object]) -> None:
    """Raise a StepalignError for a callback without a hook, or with a hook that takes other arguments."""
    hooks = {name: hook for name, hook in vars(TrainerCallback).items() if name.startswith("on_")}
    for index, callback in enumerate(callbacks):
        if isinstance(callback, type):
            raise StepalignError(f"callbacks[{index}]: {callback!r} is a class: an object of it is wanted")
        found = {name: getattr(callback, name) for name in hooks if callable(getattr(callback, name, None))}
        if not found:
            raise StepalignError(f"callbacks[{index}]: {callback!r:.80} has none of {', '.join(hooks)}")
        for name, hook in found.items():
            wanted, taken = list(signature(hooks[name]).parameters)[1:], signature(hook)
            try:
                taken.bind(*wanted)
            except TypeError:
                raise StepalignError(
                    f"callbacks[{index}]: {type(callback).__name__}.{name} takes ({', '.join(taken.parameters)}), "
                    f"a call has ({', '.join(wanted)})"
                ) from None


def _conclude(folder: Path) -> None:
    """Write a run's report and model cards, and say what failed, fell back or dropped out."""
    exporting.write_cards(folder)
    summary = report.summarize(folder)
    if summary.shortfall:
        Console().say(f"{folder}: {summary.shortfall} {summary.example_failure}".rstrip())
    report.write(summary)
