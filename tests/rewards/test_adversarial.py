"""Programs that try to earn a reward without solving the problem, or to harm the machine or a neighbour."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from stepalign.records import Grade, Problem, Rollout
from stepalign.rewards.unit_tests import UnitTestGrader
from stepalign.unit_tests import UnitTests

TEXT = Path(__file__).with_name("adversarial_programs.txt").read_text()
TESTS = (
    "assert f([1, 2]) == 5",
    "import math\nassert math.isclose(f([3]), 9)",
    "assert [f(values) for values in ([1], [2])] == [1, 4]",
    "assert f([2]) in (4, 4.0)",
    "for value, expected in zip(map(f, [[1], [2]]), [1, 4]):\n    assert value == expected",
    "assert list(map(f, [[1], [2]])) == [1, 4]",
    "def check(candidate):\n    assert abs(candidate([1.5]) - 2.25) < 1e-6\n\ncheck(f)",
    "assert {f([2])} == {4}",
    "assert not f([1, 2]) != 5",
)
PROBLEM = Problem(id="squares", statement="Sum the squares.", tests=UnitTests(hidden=TESTS, entry_point="f"))
RIGHT = "def f(values):\n    return sum(value * value for value in values)"
TIMEOUT_S = 3.0
SECTIONS = re.findall(r"^=== (.+)\n((?:(?!=== ).*\n)*)", TEXT, re.MULTILINE)
FAST = {name: program for name, program in SECTIONS if not name.endswith(" slow")}
SLOW = {name: program for name, program in SECTIONS if name.endswith(" slow")}


class Graded(NamedTuple):
    programs: dict[str, Grade]
    neighbours: list[Grade]
    canary: Path


def rollout(name: str, program: str) -> Rollout:
    text = f"So:\n\n```python\n{program}\n```"
    return Rollout(id=name, problem_id="squares", completion_ids=(1,), text=text, token_starts=(0,), finish="stop")


def graded(sandbox: str, programs: dict[str, str]) -> Graded:
    """Grade the programs, each with a right one behind it, and a file that they try to change."""
    folder = Path(tempfile.mkdtemp())
    canary = folder / "canary"
    canary.write_text("alive")
    rollouts = []
    for number, (name, program) in enumerate(programs.items()):
        rollouts += [
            rollout(name, program.replace("CANARY", str(canary))),
            rollout(f"neighbour {number}", f"{RIGHT}  # {number}"),
        ]
    with UnitTestGrader(sandbox=sandbox, timeout_s=TIMEOUT_S, reward="share") as grader:  # type: ignore[arg-type]
        grades = [one.grade for one in grader.grade(rollouts, {"squares": PROBLEM}) if one.grade]
    return Graded(dict(zip(programs, grades[::2], strict=True)), grades[1::2], canary)


def processes() -> set[str]:
    """The sandboxes' processes that this process has started, or that have lost their parent."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
            status = (entry / "status").read_text() if "stepalign.sandbox" in arguments else ""
        except OSError:
            continue
        if re.search(rf"^PPid:\t(?:1|{os.getpid()})$", status, re.MULTILINE):
            found.add(entry.name)
    return found


needs_bubblewrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")


@pytest.fixture(
    scope="module",
    params=[pytest.param("bubblewrap", marks=needs_bubblewrap), pytest.param("limits", marks=pytest.mark.slow)],
)
def sandbox(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def fast(sandbox: str) -> Iterator[Graded]:
    result = graded(sandbox, FAST)
    yield result
    shutil.rmtree(result.canary.parent)


@pytest.fixture(scope="module")
def slow(sandbox: str) -> Iterator[Graded]:
    result = graded(sandbox, SLOW)
    yield result
    shutil.rmtree(result.canary.parent)


def test_there_are_many_programs() -> None:
    assert len(FAST) + len(SLOW) >= 100
    assert TEXT.count("\n=== ") == len(FAST) + len(SLOW)


@pytest.mark.parametrize("name", FAST)
def test_no_test_passes(name: str, fast: Graded) -> None:
    grade = fast.programs[name]
    assert (grade.correct, grade.score) == (False, 0), [result.outcome for result in grade.tests]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_no_test_passes_of_a_program_that_hangs(name: str, slow: Graded) -> None:
    grade = slow.programs[name]
    assert (grade.correct, grade.score) == (False, 0), [result.outcome for result in grade.tests]


def test_neighbours_are_graded_as_if_alone_and_nothing_is_harmed(fast: Graded) -> None:
    assert [grade.outcome for grade in fast.neighbours] == ["correct"] * len(FAST)
    assert fast.canary.read_text() == "alive"
    assert [path.name for path in fast.canary.parent.iterdir()] == ["canary"]
    assert not processes()


@pytest.mark.slow
def test_neighbours_of_programs_that_hang_are_graded(slow: Graded) -> None:
    assert [grade.outcome for grade in slow.neighbours] == ["correct"] * len(SLOW)
    assert not processes()
