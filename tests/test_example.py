"""The example notebook, its cells run in order as a script."""

import json
import time
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_run.ipynb"


@pytest.mark.slow
def test_the_notebook_goes_from_a_table_to_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    start, names = time.process_time(), {"__name__": "first_run"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert time.process_time() - start < 120
    result = names["result"]
    assert (result.adapter / "adapter_config.json").exists()  # type: ignore[attr-defined]
    assert result.differences["avg"].value > 0  # type: ignore[attr-defined]
    assert len(names["probed"].measures.contexts) == 2  # type: ignore[attr-defined]
