"""The package as it is installed: a wheel made from the source distribution, in an environment of its own."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = [
    "training.max_steps=1",
    "evaluation.num_samples=1",
    "problems.evaluation.limit=4",
    "training.rollouts_per_step=4",
]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_installed_package_trains_without_a_clone(tmp_path: Path) -> None:
    """The dependencies are those of this environment, and what is installed is the wheel alone."""
    venv.create(tmp_path / "build", with_pip=True)
    run(tmp_path / "build/bin/pip", "install", "-q", "build", cwd=tmp_path)
    run(tmp_path / "build/bin/python", "-m", "build", "-o", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean/bin/python"
    run(tmp_path / "clean/bin/pip", "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    where = run(python, "-c", "import stepalign; print(stepalign.__file__)", cwd=tmp_path)
    assert where.startswith(site), where
    command = tmp_path / "clean/bin/stepalign"
    assert "paper/refsol" in run(command, "recipes", cwd=tmp_path)
    report = run(command, "quickstart", *SHORT, cwd=tmp_path).strip()
    assert (tmp_path / report).is_file()
    assert f"python{sys.version_info.major}.{sys.version_info.minor}" in site
