"""Paths of files that ship with the package."""

from pathlib import Path

_HERE = Path(__file__).parent

SOLVER = _HERE / "lab" / "solver"
"""Folder of the embedded solver: weights, tokenizer, model card."""

LAB_RECIPES = _HERE / "lab" / "recipes"
"""The lab's conditions, one recipe each; they share `base.toml`."""

PROMPTS = _HERE / "prompts"
"""Folder of the templates."""

RECIPES = next(folder for folder in (_HERE / "recipes", _HERE.parents[1] / "recipes") if folder.is_dir())
"""The other recipes: beside the modules in a wheel, in the root of a clone."""
