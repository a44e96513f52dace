import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepalign import config
from stepalign.data import load
from stepalign.errors import StepalignError
from stepalign.records import Grade, Problem, Rollout
from stepalign.rewards.unit_tests import UnitTestGrader
from stepalign.rollouts.references import reference_text
from stepalign.sandbox import launch
from stepalign.unit_tests import UnitTests

MBPP = Path(__file__).parents[2] / "../shared/data/mbpp/mbpp.jsonl"
needs_bubblewrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
ADD = "def add(a, b):\n    return a + b"


@pytest.fixture(scope="module")
def grader() -> Iterator[UnitTestGrader]:
    with UnitTestGrader(timeout_s=5, reward="share") as grader:
        yield grader


def problem(*shown: str, hidden: tuple[str, ...] = (), **code: str) -> Problem:
    return Problem(id="p", statement="?", tests=UnitTests(shown=shown, hidden=hidden, **code))


def rollout(program: str, name: str = "r") -> Rollout:
    text = f"A program:\n```python\n{program}\n```\nIt works."
    return Rollout(id=name, problem_id="p", completion_ids=(1,), text=text, token_starts=(0,), finish="stop")


def grade(grader: UnitTestGrader, program: str, of: Problem) -> Grade:
    (one,) = grader.grade([rollout(program)], {"p": of})
    assert one.grade is not None
    return one.grade


def outcomes(grade: Grade) -> list[str]:
    return [result.outcome for result in grade.tests]


def test_a_program_that_passes_all_tests_is_correct(grader: UnitTestGrader) -> None:
    found = grade(grader, f"# adds\n{ADD}\n", problem("assert add(1, 2) == 3", hidden=("assert add(2, 2) == 4",)))
    assert (found.correct, found.outcome, found.score) == (True, "correct", 1.0)
    assert found.final_answer == ADD
    assert found.feedback == "The program passes all 2 tests."


def test_the_reward_is_all_or_nothing_or_the_share_of_tests() -> None:
    of = problem("assert add(1, 2) == 3", "assert add(2, 2) == 5")
    for reward, expected in (("all", 0.0), ("share", 0.5)):
        settings = config.UnitTestGraderConfig(num_workers=1, reward=reward)  # type: ignore[arg-type]
        with UnitTestGrader.from_config(settings) as grader:
            (one,) = grader.grade([rollout(ADD)], {"p": of})
        assert (one.correct, one.reward) == (False, expected)


def test_a_failed_assertion_names_both_values_and_an_exception_the_program_s_lines(grader: UnitTestGrader) -> None:
    program = "def add(a, b):\n    if a == 1:\n        return a - b\n    return pick([], a)\n"
    program += "\ndef pick(items, k):\n    return items[k]"
    of = problem("assert add(1, 2) == 3", "x = 3\nassert 4 == add(1, x)", "assert add(2, 2) == 4")
    failed, swapped, raised = grade(grader, program, of).tests
    assert (failed.outcome, failed.actual, failed.expected) == ("failed", "-1", "3")
    assert (swapped.source, swapped.actual, swapped.expected) == ("assert 4 == add(1, x)", "-2", "4")
    assert (raised.outcome, raised.exception, raised.message) == ("error", "IndexError", "list index out of range")
    assert raised.lines == (4, 7)
    assert raised.traceback == "line 4, in add\n    return pick([], a)\nline 7, in pick\n    return items[k]\n"


def test_feedback_says_what_failed_and_hidden_tests_are_counted_only(grader: UnitTestGrader) -> None:
    program = "def add(a, b):\n    print('seen', a, b)\n    assert a != 77, f'secret {a}'\n    return 5"
    hidden = ("assert add(77, 1) == 78", "assert add(12345, 0) == 12345", "assert add(2, 3) == 5")
    found = grade(grader, program, problem("assert add(1, 2) == 3", hidden=hidden))
    assert found.feedback == (
        "The program passes 1 of 4 tests.\n"
        "assert add(1, 2) == 3\nfails: the program gives 5, expected is 3.\n"
        "Of 3 hidden tests it passes 1."
    )
    assert [result.output for result in found.tests] == ["seen 1 2\n", "", "", ""]
    assert [result.hidden for result in found.tests] == [False, True, True, True]
    assert [result.lines for result in found.tests] == [(), (3,), (), ()]
    written = str(replace(found, final_answer=""))
    assert "77" not in written
    assert "12345" not in written


@pytest.mark.parametrize(
    ("program", "outcome", "words"),
    [
        ("def add(a, b) return 1", "wrong", "raises SyntaxError: expected ':' at\nline 1, in <module>"),
        ("def other(a, b):\n    return 3", "wrong", "raises NameError: name 'add' is not defined."),
        ("import nothing", "wrong", "raises ModuleNotFoundError: No module named 'nothing' at\nline 1, in <module>"),
        ("import os\nos._exit(0)", "error", "ends the program's process."),
        (
            "def add(a, b):\n    return object()",
            "wrong",
            "an object of type object, which has no plain value to compare",
        ),
        ("def add(a, b):\n    raise ValueError", "wrong", "raises ValueError at\nline 2, in add\n    raise ValueError"),
    ],
)
def test_a_program_that_cannot_be_run(grader: UnitTestGrader, program: str, outcome: str, words: str) -> None:
    found = grade(grader, program, problem("assert add(1, 2) == 3"))
    assert found.outcome == outcome
    assert words in found.feedback


def test_a_response_without_a_program_is_missing(grader: UnitTestGrader) -> None:
    one = replace(rollout(""), text="I cannot.")
    (graded,) = grader.grade([one], {"p": problem("assert add(1, 2) == 3")})
    assert graded.grade == Grade(correct=False, outcome="missing", score=0.0, feedback="The response has no program.")


def test_tests_after_the_time_limit_are_not_run() -> None:
    program = "def add(a, b):\n    while a == 1: pass\n    return a + b"
    with UnitTestGrader(timeout_s=0.5) as grader:
        found = grade(
            grader, program, problem("assert add(0, 2) == 2", "assert add(1, 2) == 3", "assert add(2, 2) == 4")
        )
    assert outcomes(found) == ["passed", "timeout", "not run"]
    assert found.outcome == "timeout"
    assert "does not end within 0.5 s." in found.feedback


@pytest.mark.parametrize("test", ["while True: pass", "while True:\n    try: 1 / 0\n    except: pass", "10**10**10"])
def test_a_test_that_hangs_is_a_timeout(test: str) -> None:
    with UnitTestGrader(num_workers=1, timeout_s=0.5) as grader:
        assert grade(grader, ADD, problem(test)).outcome == "timeout"
        assert grade(grader, ADD, problem("assert add(1, 2) == 3")).correct


NODE = """
class Node:
    def __init__(self, value):
        self.value, self.next = value, None
def add(a, b):
    return a.next.value + b.value
"""
STACK = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def __len__(self): return len(self.items)
"""
DATACLASS = """
from dataclasses import dataclass
@dataclass
class Point:
    x: int
def add(a, b):
    return Point(a).x + b
"""
FILES = """
def add(a, b):
    with open("x.txt", "w") as file: file.write(str(a))
    with open("x.txt") as file: return int(file.read()) + b
"""
CAUGHT = """
try:
    add(1, 2)
except KeyError:
    pass
else:
    assert False
"""


@pytest.mark.parametrize(
    ("program", "test"),
    [
        (NODE, "a = Node(1)\na.next = Node(5)\nassert add(a, Node(2)) == 7"),
        (STACK, "s = Stack()\ns.push(3)\nassert len(s) == 1 and s.items == [3]"),
        (DATACLASS, "assert add(1, 2) == 3"),
        pytest.param(FILES, "assert add(1, 2) == 3", marks=needs_bubblewrap),
        ("def add(a, b):\n    yield a\n    yield b", "assert list(add(1, 2)) == [1, 2]"),
        ("def add(a, b):\n    raise KeyError(a)", CAUGHT),
        (
            "def add(kind, items):\n    return [i for i in items if isinstance(i, kind)]",
            "assert add(int, [1, ''])[0] == 1",
        ),
        ("import math\ndef add(a, b):\n    return a / b", "assert math.isclose(add(1, 3), 0.3333333333)"),
        ("def round(a, b):\n    return a * b", "assert round(2, 3) == 6"),
        ("def statistics(a):\n    return a", "assert statistics(2) == 2"),
        (ADD, "nt = add(1, 2)\nassert nt == 3"),
        (ADD + "\nwinreg = 3", "assert add(1, 2) == winreg"),
        (ADD, "print('a' * 20_000)\nassert add(1, 2) == 3"),
        (ADD, "import sys\nprint('a', file=sys.stderr, flush=True)\nassert add(1, 2) == 3"),
    ],
    ids=lambda code: code.strip().split("\n")[0][:20],
)
def test_what_right_programs_and_tests_do_works(grader: UnitTestGrader, program: str, test: str) -> None:
    (entry_point,) = re.findall(r"^def (\w+)", program, re.MULTILINE) or [""]
    found = grade(grader, program, problem(test, entry_point=entry_point))
    assert found.correct, found.feedback


def test_preamble_and_setup_frame_the_program(grader: UnitTestGrader) -> None:
    of = problem(
        "assert f(x) == near(8)",
        preamble="import math\ndef near(value):\n    return value + 1",
        setup="x = Box(8)",
        entry_point="f",
    )
    program = "class Box:\n    def __init__(self, v): self.v = v\ndef f(box):\n    return near(math.floor(box.v))"
    assert grade(grader, program, of).correct
    # The helper of the preamble is the tests' own, whatever the program makes of it.
    assert not grade(grader, program + "\ndef near(value): return None\ndef f(box): return None", of).correct


def test_equal_programs_are_the_same_answer(grader: UnitTestGrader) -> None:
    pairs = [(ADD, "def add(a,b):\n\n  # sum\n  return a+b"), (ADD, "def add(a, b):\n    return b + a"), ("(", "(")]
    assert grader.same(pairs) == [True, False, True]


def test_a_closed_grader_grades_again_in_new_sandboxes() -> None:
    adds = problem("assert add(1, 2) == 3")
    with UnitTestGrader(num_workers=1) as grader:
        assert grade(grader, ADD, adds).correct
        grader.close()
        assert grade(grader, ADD, adds).correct


def test_equal_programs_are_run_once_and_each_rollout_has_its_grade(grader: UnitTestGrader) -> None:
    rollouts = [rollout(ADD, str(number)) for number in range(200)]
    graded = grader.grade(rollouts, {"p": problem("assert add(1, 2) == 3")})
    assert [one.id for one in graded] == [str(number) for number in range(200)]
    assert all(one.correct for one in graded)


def test_a_problem_without_tests_is_an_error(grader: UnitTestGrader) -> None:
    with pytest.raises(StepalignError, match=r"problem p: it has no unit tests"):
        grade(grader, ADD, Problem(id="p", statement="?", answer="1"))


def test_a_killed_sandbox_is_replaced(grader: UnitTestGrader) -> None:
    of = problem("assert add(1, 2) == 3")
    assert grade(grader, ADD, of).correct
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        pid, parent, command = line.split(maxsplit=2)
        if int(parent) == os.getpid() and "stepalign.sandbox" in command:
            os.kill(int(pid), signal.SIGKILL)
    assert grade(grader, ADD + "  # again", of).correct


def test_a_sandbox_that_cannot_start_is_an_error_and_no_wrong_program(monkeypatch: pytest.MonkeyPatch) -> None:
    with UnitTestGrader(num_workers=1) as grader:
        monkeypatch.setattr(launch, "_command", lambda *_: ["sh", "-c", "echo no room"])
        with pytest.raises(StepalignError, match=r"no sandbox can be started \(no room\)"):
            grade(grader, ADD, problem("assert add(1, 2) == 3"))


GONE = launch.SandboxError("gone")


@pytest.mark.parametrize(
    ("errors", "outcome", "restarts"),
    [([], "correct", 0), ([GONE], "correct", 1), ([GONE, GONE], "error", 2), ([TimeoutError()], "timeout", 1)],
)
def test_sandboxes_that_are_lost_at_the_tests_are_counted(
    errors: list[Exception], outcome: str, restarts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(errors)

    def run(*_: object) -> dict[str, Any]:
        if left:
            raise left.pop(0)
        return {"results": [{"outcome": "passed"}]}

    monkeypatch.setattr(launch.Sandbox, "run", run)
    with UnitTestGrader(num_workers=1) as grader:
        found = grade(grader, ADD, problem("assert add(1, 2) == 3"))
    assert (found.outcome, found.sandbox_restarts) == (outcome, restarts)


def test_without_bubblewrap_the_warning_says_what_is_not_confined(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    launch.choose.cache_clear()
    with caplog.at_level(logging.WARNING, "stepalign"), UnitTestGrader(sandbox="auto") as grader:
        assert grade(grader, ADD, problem("assert add(1, 2) == 3")).correct
    assert grader.warning in caplog.text
    assert "programs run without bubblewrap: they can read the files of this user" in grader.warning
    assert "bwrap is not installed" in grader.warning
    with pytest.raises(StepalignError, match=r"grader\.sandbox = 'bubblewrap': .*bwrap is not installed"):
        UnitTestGrader(sandbox="bubblewrap")
    launch.choose.cache_clear()


@pytest.mark.skipif(not MBPP.is_file(), reason=f"MBPP is not at {MBPP}")
@pytest.mark.parametrize(("limit", "sandbox"), [(20, "auto"), pytest.param(None, "limits", marks=pytest.mark.slow)])
def test_references_pass_their_own_tests(limit: int | None, sandbox: Any) -> None:
    problems = load(config.MbppConfig(split="test", path=MBPP, limit=limit)).problems
    rollouts = [replace(rollout("", one.id), text=reference_text(one), problem_id=one.id) for one in problems]
    with UnitTestGrader(sandbox=sandbox) as grader:
        graded = grader.grade(rollouts, {one.id: one for one in problems})
    assert [one.id for one in graded if not one.correct] == []
