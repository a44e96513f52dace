"""Optional packages that are not installed: the error names the extra that brings them."""

import runpy
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stepalign import config, data, models
from stepalign.config import Recipe
from stepalign.distributed.process import World
from stepalign.distributed.strategy import build_strategy
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.rollouts.generate import make_sampler

ROOT = Path(__file__).parents[1]
MakeRecipe = Callable[..., Recipe]


def track(tracker: str, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(f'tracking.report_to=["{tracker}"]')
    try:
        train(recipe)
    finally:
        assert not recipe.folder.exists(), "it is known before the run"


def load_in_4bit(recipe: Recipe) -> None:
    models.load_model(recipe.model, None, torch.device("cpu"))


def sample_by_vllm(recipe: Recipe) -> None:
    make_sampler(recipe, lambda: pytest.fail("the sampler has weights of its own"), None, eos_ids=frozenset())


def fetch_smollm2(recipe: Recipe) -> None:
    runpy.run_path(str(ROOT / "scripts" / "smollm2.py"))["main"](recipe.folder)


NEEDS: dict[str, tuple[str, Callable[[MakeRecipe], object]]] = {
    "reasoning-gym": ("reasoning_gym", lambda _: data.load(config.GsmSymbolicConfig())),
    "smollm2": ("gguf", lambda make: fetch_smollm2(make())),
    "tensorboard": ("tensorboard", lambda make: track("tensorboard", make)),
    "wandb": ("wandb", lambda make: track("wandb", make)),
    "trackio": ("trackio", lambda make: track("trackio", make)),
    "vllm": ("vllm", lambda make: sample_by_vllm(make("sampler={ kind = 'vllm' }"))),
    "qlora": ("bitsandbytes", lambda make: load_in_4bit(make("model.load_in_4bit=true"))),
    "deepspeed": (
        "deepspeed",
        lambda _: build_strategy(config.DistributedConfig(strategy="zero2"), World(0, 2), torch.device("cpu")),
    ),
}
"""Of each extra: a module that it brings, and what needs it."""


@pytest.mark.parametrize("extra", NEEDS)
def test_an_extra_that_is_not_installed_is_named(
    extra: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, use = NEEDS[extra]
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(StepalignError) as raised:
        use(make_recipe)
    assert str(raised.value).endswith(f': pip install "stepalign[{extra}]"')


def test_every_extra_of_the_package_is_tried() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras.keys() == NEEDS.keys() | {"docs", "dev"}
