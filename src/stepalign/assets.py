"""Paths of files that ship with the package."""

from pathlib import Path

SOLVER = Path(__file__).parent / "lab" / "solver"
"""Folder of the embedded solver: weights, tokenizer, model card."""
