"""The lab: the paper's comparison on a laptop, with a solver that ships in the package and a task it finds hard.

stepalign lab --seeds 5
"""

from pathlib import Path

from stepalign.assets import SOLVER

__all__ = ["RECIPES", "SOLVER"]

RECIPES = Path(__file__).parent / "recipes"
"""The lab's conditions, one recipe each; `base.toml` is what they share."""
