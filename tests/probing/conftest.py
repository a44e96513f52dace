"""A planted set for the tiny model: real slips in short written solutions."""

import json
from pathlib import Path

import pytest

from stepalign import recipe
from stepalign.slips.sets import plant_set


@pytest.fixture(scope="session")
def planted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: four correct solutions, each also with a slip. To be read only."""
    folder = tmp_path_factory.mktemp("planted")
    rows = [
        {
            "question": f"Two boxes of {n} pens and {n + 1} more?",
            "ground_truth": f"2*{n} = {2 * n}\n{2 * n}+{n + 1} = {3 * n + 1}\nA: {3 * n + 1}",
            "model": {
                "is_correct": True,
                "solution": f"2*{n} = {2 * n} pens\n{2 * n}+{n + 1} = {3 * n + 1}\nA: {3 * n + 1}",
            },
        }
        for n in (17, 30, 52, 71)
    ]
    file = folder / "solutions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plant_set(str(file), folder / "set", model=recipe.Model(path=str(tiny_llama)))
    return folder / "set"
