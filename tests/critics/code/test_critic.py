"""Critiques of programs: the wrong step, the mended program, what stays unsaid. Programs run in the real sandbox."""

import ast
from collections.abc import Iterator
from dataclasses import replace

import pytest

from stepalign import config
from stepalign.critics import schema, splice
from stepalign.critics.checks import Checker, mended
from stepalign.critics.code.critic import UnitTestCritic, reason_of
from stepalign.critics.code.locate import wrong_line
from stepalign.critics.code.mend import renamed
from stepalign.critics.code.units import parse
from stepalign.critics.error_spans import rollout_error_span
from stepalign.records import CriticResult, Critique, CritiqueFailure, FinishReason, Problem, Rollout
from stepalign.rewards.unit_tests import UnitTestGrader
from stepalign.trace import parse_rollout
from stepalign.unit_tests import UnitTestResult, UnitTests

REFERENCE = """def total(numbers, limit):
    result = 0
    for number in numbers:
        if number <= limit:
            result += number
    return result"""
PROBLEM = Problem(
    id="p",
    statement="Add the numbers up to a limit.",
    solution=REFERENCE,
    trace_format="code",
    tests=UnitTests(
        shown=("assert total([1, 2, 3], 2) == 3",), hidden=("assert total([55], 55) == 55",), entry_point="total"
    ),
)
HEAD = "Sure.\n```python\ndef total(xs, m):\n"
LOOP = "    for x in xs:\n        if x {} m:\n            s += x\n"
RETURN = "    return s\n```\nIt adds them."


@pytest.fixture(scope="module")
def grader() -> Iterator[UnitTestGrader]:
    with UnitTestGrader(timeout_s=3) as grader:
        yield grader


def graded(grader: UnitTestGrader, text: str, finish: FinishReason = "stop", problem: Problem = PROBLEM) -> Rollout:
    rollout = Rollout(
        id="r", problem_id="p", completion_ids=(), token_starts=(), text=text, finish=finish, trace_format="code"
    )
    return grader.grade([rollout], {"p": problem})[0]


def criticized(grader: UnitTestGrader, rollout: Rollout, problem: Problem = PROBLEM) -> CriticResult:
    (result,) = UnitTestCritic(grader).critique([(problem, rollout)])
    return result


@pytest.mark.parametrize("program", ["print(3)", "def add(xs, m):\n    return sum(xs)"])
def test_a_program_without_the_function_is_mended_by_a_reference_of_any_layout(
    grader: UnitTestGrader, program: str
) -> None:
    problem = replace(PROBLEM, solution="# The sum of\n# small numbers.\n\n" + REFERENCE.replace("\n", "\n\n"))
    critique = criticized(grader, graded(grader, f"```python\n{program}\n```", problem=problem), problem)
    assert isinstance(critique, Critique)
    assert "def total(numbers, limit):" in critique.corrected_step


def test_the_inside_of_a_docstring_keeps_its_indentation(grader: UnitTestGrader) -> None:
    told = REFERENCE.replace("    result = 0", '    """Add.\n\n      two spaces more\n    """\n    result = 0', 1)
    wrong = graded(grader, "```python\ndef total(numbers, limit):\n  return 0\n```")
    critique = criticized(grader, wrong, replace(PROBLEM, solution=told))
    assert isinstance(critique, Critique)
    written = f"{critique.corrected_step}\n{critique.continuation}"
    assert '  """Add.\n\n      two spaces more\n    """\n  result = 0' in written


@pytest.mark.parametrize("value", ["+".join(["1"] * 900), "0x" + "f" * 5000], ids=["deep", "long"])
@pytest.mark.parametrize("fence", ["\n```", ""])
def test_a_program_that_python_parses_but_cannot_write_is_mended(
    grader: UnitTestGrader, value: str, fence: str
) -> None:
    critique = criticized(grader, graded(grader, f"{HEAD}    return {value}{fence}"))
    assert isinstance(critique, Critique)
    assert critique.case == "D"


@pytest.mark.parametrize(
    ("text", "case", "label", "wrong", "reason"),
    [
        (HEAD + "    s = 0\n" + LOOP.format("<") + RETURN, "D", "3 (lines 3–5)", "if x < m:", "gives 1, expected is 3"),
        (HEAD + "    s = 1\n" + LOOP.format("<=") + RETURN, "D", "2 (line 2)", "s = 1", "gives 4, expected is 3"),
        (
            HEAD + "    s = 0\n" + LOOP.format("<=") + "        return s\n```",
            "D",
            "3 (lines 3–6)",
            "return s",
            "gives 1, expected is 3",
        ),
        (
            HEAD + "    s = 0\n    for i in range(len(xs) + 1):\n        s += xs[i] if xs[i] <= m else 0\n" + RETURN,
            "D",
            "3 (lines 3–4)",
            "for i in range(len(xs) + 1):\n        s += xs[i] if xs[i] <= m else 0",
            "raises IndexError: list index out of range",
        ),
        (HEAD + "    ys = [x for x in xs if x < m]\n    return sum(ys)\n```", "D", "3 (line 3)", "return sum(ys)", "1"),
        (HEAD.replace("total", "add") + "    return sum(xs)\n```", "D", "1 (line 1)", "def add(xs, m):", "NameError"),
        (
            HEAD + "    s = 0\n    for x in xs\n        s += x\n" + RETURN,
            "D",
            "3 (lines 3–5)",
            "for x in xs\n        s += x",
            "SyntaxError",
        ),
        (
            HEAD + "    s = 0\n    while xs:\n        s += 0\n" + RETURN,
            "D",
            "3 (lines 3–4)",
            "while xs:\n        s += 0",
            "does not end",
        ),
        (HEAD + "    s = 0\n" + LOOP.format("<=") + "```", "D", "3 (lines 3–5)", None, "gives None"),
        ((HEAD + "    s = 1\n" + LOOP.format("<=") + RETURN).replace("\n", "\r\n"), "D", "2 (line 2)", "s = 1", "4"),
        (
            (HEAD + "    s = 1\n" + LOOP.format("<=") + RETURN).replace("    ", "\t").replace("\n", "\n  "),
            "D",
            "2 (line 2)",
            "s = 1",
            "gives 4",
        ),
        ("I cannot.", "D", "1", None, "no program"),
    ],
)
def test_the_first_wrong_step_is_the_first_that_the_mended_program_changes(
    grader: UnitTestGrader, text: str, case: str, label: str, wrong: str | None, reason: str
) -> None:
    rollout = graded(grader, text)
    critique = criticized(grader, rollout)
    assert isinstance(critique, Critique)
    assert (critique.case, critique.first_error_label) == (case, label)
    verdict = critique.verdicts[(critique.first_error or 0) - 1]
    assert reason in verdict.reason
    error = rollout_error_span(rollout, critique)
    if wrong is not None:
        assert error is not None
        assert text[error.start : error.end].replace("\r", "") == wrong
        assert error.departure is not None
        assert error.start <= error.departure < error.end
    (solved,) = grader.grade([mended(rollout, critique)], {"p": PROBLEM})
    assert solved.correct
    checks = Checker(config.ChecksConfig(), grader).check(critique, PROBLEM, rollout)
    assert {check.name for check in checks if not check.passed} <= {"reference_overlap"}
    read = schema.parse(critique.text, parse_rollout(rollout))
    assert read.verdicts == critique.verdicts
    assert (read.correct_part, read.corrected_step) == (critique.correct_part, critique.corrected_step)


def test_the_rest_of_the_program_stays_the_solvers_own(grader: UnitTestGrader) -> None:
    rollout = graded(grader, HEAD + "    s = 1  # sum\n\n    # each\n" + LOOP.format("<=") + RETURN)
    critique = criticized(grader, rollout)
    assert isinstance(critique, Critique)
    assert critique.correct_part == HEAD.rstrip()
    assert critique.corrected_step == "    s = 0"
    assert critique.continuation == "    # each\n" + LOOP.format("<=") + "    return s\n```"
    assert [verdict.correct for verdict in critique.verdicts] == [True, False, True, True]
    assert "Step 2 (line 2): Incorrect -- in `assert total([1, 2, 3], 2) == 3`" in critique.text
    assert "# You made an error at Step 2 (line 2). Here is the corrected step:" in critique.text


def test_a_right_program_is_repeated_whole(grader: UnitTestGrader) -> None:
    rollout = graded(grader, f"Sure.\n```python\n{REFERENCE}\n```\nDone.")
    critique = criticized(grader, rollout)
    assert isinstance(critique, Critique)
    assert (critique.case, critique.correct_part) == ("A", rollout.text)
    assert all(verdict.correct for verdict in critique.verdicts)
    assert all(check.passed for check in Checker(config.ChecksConfig(), grader).check(critique, PROBLEM, rollout))


def test_a_program_that_was_cut_off_is_completed(grader: UnitTestGrader) -> None:
    rollout = graded(grader, HEAD + "    s = 0\n    for x in xs:\n        if x <=", "length")
    critique = criticized(grader, rollout)
    assert isinstance(critique, Critique)
    assert (critique.case, critique.first_error, critique.correct_part) == ("C", 3, f"{HEAD}    s = 0")
    assert grader.grade([mended(rollout, critique)], {"p": PROBLEM})[0].correct


def test_hidden_tests_stay_hidden(grader: UnitTestGrader) -> None:
    """The program fails in the hidden test alone."""
    rollout = graded(grader, HEAD + "    return sum(x for x in xs if x <= m and x != 55)\n```")
    critique = criticized(grader, rollout)
    assert isinstance(critique, Critique)
    assert "55" not in critique.text.replace("x != 55", "")
    assert critique.verdicts[1].reason == "a hidden test fails."
    raised = UnitTestResult(outcome="error", hidden=True, exception="KeyError", lines=(2,))
    assert reason_of(raised) == "it raises KeyError in a hidden test."


def test_what_has_no_critique_says_why(grader: UnitTestGrader) -> None:
    wrong = graded(grader, HEAD + "    return 0\n```")
    for problem, rollout, reason in (
        (replace(PROBLEM, solution=""), wrong, "no reference"),
        (replace(PROBLEM, solution="def total(a, b): return 1"), wrong, "reference fails"),
        (PROBLEM, replace(wrong, trace_format="steps"), "no program"),
    ):
        result = criticized(grader, rollout, problem)
        assert isinstance(result, CritiqueFailure)
        assert result.reason == reason


def test_without_a_traceback_values_are_compared_side_by_side(grader: UnitTestGrader) -> None:
    """The loop's own value differs from the reference's in its second turn; `scale` is only used there."""
    reference = "def f(n):\n    a = 0\n    for i in range(n):\n        a = a + i\n    b = a * 2\n    return b"
    problem = replace(
        PROBLEM, solution=reference, tests=UnitTests(shown=("assert f(4) == 12",), hidden=(), entry_point="f")
    )
    for own, line in (
        ("def f(k):\n    s = 0\n    for j in range(k):\n        s = s - j\n    t = s * 2\n    return t", 4),
        ("def f(k):\n    s = 0\n    for j in range(k):\n        s = s + j\n    t = s * 3\n    return t", 5),
        ("def f(k):\n    s = 0\n    for j in range(k):\n        s = s + j\n    t = s * 2\n    return t + 1", 6),
        ("def f(k):\n    if k > 2:\n        return 7\n    return k", 3),
    ):
        rollout = graded(grader, f"```python\n{own}\n```", problem=problem)
        assert wrong_line(problem, rollout, grader) == line


def test_the_reference_takes_the_solvers_names() -> None:
    reference, own = (
        parse(REFERENCE),
        parse("def total(xs, m):\n    s = 0\n    for x in xs:\n        pass\n    return s"),
    )
    assert reference is not None
    assert own is not None
    text = renamed(reference, own, "total")
    assert ast.unparse(text) == (
        "def total(xs, m):\n    s = 0\n    for x in xs:\n        if x <= m:\n            s += x\n    return s"
    )


def test_checks_know_a_program(grader: UnitTestGrader) -> None:
    rollout = graded(grader, HEAD + "    s = 1\n" + LOOP.format("<=") + RETURN)
    critique = criticized(grader, rollout)
    assert isinstance(critique, Critique)
    checker = Checker(config.ChecksConfig(), grader)

    def failed(**changes: object) -> set[str]:
        other = replace(critique, **changes)  # type: ignore[arg-type]
        other = replace(other, text=schema.text_of(other))
        return {check.name for check in checker.check(other, PROBLEM, rollout) if not check.passed}

    verdicts = critique.verdicts
    quoting = replace(verdicts[1], reason="it says `    s = 1`, which is 12 = 2")
    assert failed() == set()
    assert failed(corrected_step="    s = 1") == {"error_not_quoted", "final_answer"}
    assert failed(corrected_step="    s = 2") == {"final_answer"}
    assert failed(correct_part="Sure.\n```python\ndef total(xs, mm):") == {
        "exact_copy",
        "normalized_copy",
        "final_answer",
    }
    assert failed(verdicts=(*verdicts[:1], quoting, *verdicts[2:])) == set()  # shorter than a quotation
    reply = (
        '{"case": "D", "verdicts": [true, false, true, true], "first_wrong_step": 2, "reason": "it counts one more.", '
        '"corrected_step": "    s = 0", "continuation": "'
        + (LOOP.format("<=") + "    return s\n```").replace("\n", "\\n")
        + '"}'
    )
    spliced = splice.parse(reply, parse_rollout(rollout))
    assert (spliced.corrected_step, spliced.continuation.split("\n")[0]) == ("    s = 0", "    for x in xs:")
    assert spliced.verdicts[1].label == "2 (line 2)"
