"""The tutorials of the documentation: their commands are run, in the order of the page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = (
    "first-run", "own-data", "own-model", "own-critic", "contexts", "rollouts", "code", "one-gpu", "distributed",
    "what-went-wrong",
)  # fmt: skip
"""Pages whose blocks are run: `bash`, `python`, and those with a title, which is a file's name. Others are not."""
STEPALIGN = """#!/bin/sh
case $1 in train|quickstart) set -- "$@" evaluation.num_samples=1 probe.num_rollouts=4;; esac  # for the time
"{python}" -m stepalign.cli "$@"
status=$?
if [ "$1" = preflight ] && [ $status = 1 ]; then exit 0; fi  # a gate failed, which is a result
exit $status
"""


def script(page: Path) -> str:
    """A page's commands and files as one script of bash."""
    lines = ["set -euo pipefail"]
    for language, title, text in re.findall(
        r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', page.read_text(), re.M | re.S
    ):
        if title:
            lines.append(f"cat > {title} <<'END-OF-FILE'\n{text}END-OF-FILE")
        elif language == "python":
            lines.append(f"python - <<'END-OF-FILE'\n{text}END-OF-FILE")
        elif language == "bash":
            lines.append(text)
    return "\n".join(lines)


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_is_a_script(name: str) -> None:
    text = script(ROOT / "docs" / f"{name}.md")
    assert "stepalign" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_the_commands_of_a_tutorial_run(name: str, tmp_path: Path) -> None:
    page = ROOT / "docs" / f"{name}.md"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "stepalign").write_text(STEPALIGN.format(python=sys.executable))
    (tmp_path / "bin" / "stepalign").chmod(0o755)
    (tmp_path / "work").mkdir()
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", script(page)],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
