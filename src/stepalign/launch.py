"""Launch of a run: its folder, its processes, the trainer, the probe and the report."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from stepalign import config, report
from stepalign.algorithms.teacher_prompt import limit_to_context
from stepalign.distributed.process import MainProcessProxy, init_world
from stepalign.errors import StepalignError
from stepalign.models import context_limit
from stepalign.probing.callback import ProbeCallback
from stepalign.trainer.build import build_trainer
from stepalign.trainer.loop import Trainer, TrainerCallback
from stepalign.trainer.run_folder import RunFolder


class ProbeAtCheckpoints(TrainerCallback):
    """The recipe's probe, measured before the first step and at every checkpoint."""

    def on_train_begin(self, trainer: Trainer) -> None:
        """Gather the probe's rollouts and measure the first policy."""
        self._probe = ProbeCallback(
            trainer.recipe,
            trainer.policy,
            trainer.solver,
            limit_to_context(trainer.recipe.teacher, context_limit(trainer.recipe.model)),
            trainer.console,
            trainer.train_problems,
            trainer.run.folder / "probe",
        )
        self.on_save(trainer)

    def on_save(self, trainer: Trainer) -> None:
        """Measure the policy of a checkpoint and send the figures to the trackers."""
        for context, measures in self._probe.at(trainer.step).contexts.items():
            values = {name: measures[name].value for name in ("correct", "at") if name in measures}
            trainer.accelerator.log({f"probe/{context}/{name}": v for name, v in values.items()}, step=trainer.step)


def train(recipe: config.Recipe, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train a run, or resume it where it was stopped, and return its report. The main process calls the callbacks.

    Raises:
        StepalignError: bad input, before any long work where it can be known; or a run that cannot go on. What was
            computed up to then is in the run's folder.
    """
    world = init_world(recipe.distributed.num_processes)
    if recipe.probe is not None and world.size > 1:
        raise StepalignError(
            "[probe] measures the policy in one process: leave it out, and measure the checkpoints with "
            "`stepalign probe`"
        )
    with ExitStack() as stack:
        run = cast(
            RunFolder, RunFolder(recipe) if world.size == 1 else MainProcessProxy(world, lambda: RunFolder(recipe))
        )
        stack.callback(run.close)
        probe = [ProbeAtCheckpoints()] if recipe.probe is not None else []
        build_trainer(recipe, run, stack, world, [*probe, *callbacks]).train()
    page = world.on_main(lambda: report.write(recipe.folder))
    world.shutdown()
    return page
