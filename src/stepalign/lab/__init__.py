"""The paper's comparison on a laptop, with a small solver and a task that is hard for it.

stepalign lab --seeds 5
"""

from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"
"""The lab's conditions, one recipe each; they share `base.toml`."""
