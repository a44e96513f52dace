"""Every condition and seed of the lab as a run of its own, and the comparison of them all.

Each run is one recipe with another seed, in a process with one thread: so small a model gains nothing from a second.
What is finished stays finished, so a stopped lab goes on where it was.

    stepalign lab --seeds 5 --out runs/lab
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.lab import RECIPES

DEFAULT = ("stepalign", "refsol", "grpo", "stepalign-reverse", "refsol-reverse")
"""The paper's three-way comparison, and the other direction of the divergence."""


def conditions() -> list[str]:
    """The lab's conditions, by their recipes' names."""
    return sorted(path.stem for path in RECIPES.glob("*.toml") if path.stem != "base")


def settings_of(condition: str, seed: int, out: Path, overrides: Sequence[str] = ()) -> config.Recipe:
    """A condition's recipe for one seed.

    Raises:
        StepalignError: there is no such condition, or an override does not fit it.
    """
    if condition not in conditions():
        raise StepalignError(f"no condition {condition!r}; allowed: {', '.join(conditions())}")
    own = [f"seed={seed}", f"name={condition}-{seed}", f"output_dir={out}"]
    return config.load(RECIPES / f"{condition}.toml", [*overrides, *own])


def run(
    chosen: Sequence[str], *, seeds: int, out: Path, jobs: int = 1, overrides: Sequence[str] = ()
) -> dict[str, list[Path]]:
    """Train every condition over the seeds `0 … seeds − 1`; the runs' folders by condition.

    Args:
        chosen: conditions.
        seeds: how many.
        out: the runs' folder.
        jobs: runs at a time, one core each.
        overrides: laid over every recipe, like `training.max_steps=10`.
    """
    # All that can be wrong with a recipe shows before the first run. Seeds go round, so that a stopped lab is balanced.
    planned = [settings_of(condition, seed, out, overrides) for seed in range(seeds) for condition in chosen]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        list(pool.map(_train, planned))
    return {condition: [out / f"{condition}-{seed}" for seed in range(seeds)] for condition in chosen}


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _train(settings: config.Recipe) -> None:
    from stepalign.launch import train

    train(settings)
