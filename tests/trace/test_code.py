"""Programs as solutions: which block is the program, where its steps begin, and what else there is."""

import random
from time import perf_counter

import pytest

from stepalign.records import Rollout
from stepalign.trace import CodeFormat, Trace, parse_rollout, step_spans
from stepalign.trace.code import (
    NO_PROGRAM,
    SEVERAL_PROGRAMS,
    SYNTAX_ERROR,
    UNCLOSED,
    line_starts,
    lines_of,
    program_of,
    step_at,
)

FORM = CodeFormat()


def _steps(trace: Trace) -> list[str]:
    return [trace.content(step) for step in trace.steps]


def _of(program: str) -> Trace:
    return FORM.parse(f"Text.\n```python\n{program}```\nMore text.\n")


PROGRAM = '''import math

# Adds what is odd.
@cache
def f(n, *,
      k=1):
    """Sum.

    >>> f(3)
    """
    total = 0; count = 1
    # every number
    for i in range(n):
        if i % 2:
            # odd
            total += i
            count += k
        else:
            total -= 1
    def inner(x): return x
    return total

class Empty: pass
print(f(3))
'''


def test_statements_of_functions_are_steps_with_their_comments_and_decorators() -> None:
    trace = _of(PROGRAM)
    assert [step.title for step in trace.steps] == [
        "line 1", "lines 3–10", "line 11", "lines 12–13", "line 14", "lines 15–16", "line 17", "lines 18–19", "line 20",
        "line 21", "line 23", "line 24",
    ]  # fmt: skip
    assert [section.kind for section in trace.sections] == ["prose", *["step"] * 12, "prose"]
    assert "".join(map(trace.content, trace.sections)) == trace.text
    assert (trace.faults, FORM.final_answers(trace)) == ((), (PROGRAM.rstrip(),))
    assert trace.before(3).endswith('"""\n')
    assert [lines_of(trace, step) for step in trace.steps[:3]] == [(1, 1), (3, 10), (11, 11)]
    assert [step_at(trace, line) for line in (1, 2, 3, 10, 16, 24, 99)] == [1, 1, 2, 2, 6, 12, 12]
    assert trace.text[line_starts(trace)[10] :].startswith("    total = 0;")


@pytest.mark.parametrize(
    ("program", "steps"),
    [
        ("print(1)\n", ["print(1)\n"]),
        ("a = 1; b = 2\n", ["a = 1; b = 2\n"]),
        ("def f(a,\n  b): return a\n", ["def f(a,\n  b): return a\n"]),
        ("x = '''a\nb'''; y = 1\nz = 2\n", ["x = '''a\nb'''; y = 1\n", "z = 2\n"]),
        ("def f():\r\n\tx = 1\r\n\r\n\treturn x\r\n", ["def f():\r\n", "\tx = 1\r\n\r\n", "\treturn x\r\n"]),
        ("ä = 'é\u2028\x0c'; b = 1\nπ = 2  # ü\n", ["ä = 'é\u2028\x0c'; b = 1\n", "π = 2  # ü\n"]),
        ("if a:\n  b\nelse:\n  c\n", ["if a:\n  b\nelse:\n  c\n"]),
        (
            "if a:\n  b\n# or\nelif c:\n  d\n  e\nelse: f\n",
            ["if a:\n", "  b\n", "# or\nelif c:\n  d\n", "  e\n", "else: f\n"],
        ),
        (
            "try:\n  a\nexcept E:\n  b\nelse:\n  c\nfinally:\n  d\n",
            ["try:\n", "  a\n", "except E:\n  b\n", "else:\n  c\n", "finally:\n  d\n"],
        ),
        (
            "match a:\n  case 1:\n    b\n    e\n  case _:\n    c\n",
            ["match a:\n", "  case 1:\n    b\n", "    e\n", "  case _:\n    c\n"],
        ),
        ("# only\n# comments\n", ["# only\n# comments\n"]),
        ("\n\nx = 1\n", ["\n\nx = 1\n"]),
        ("x = '\\d'\n", ["x = '\\d'\n"]),
        ("async def f():\n  '''d'''\n  await x\n", ["async def f():\n  '''d'''\n", "  await x\n"]),
    ],
)
def test_steps_are_whole_lines(program: str, steps: list[str]) -> None:
    trace = _of(program)
    assert _steps(trace) == steps
    assert not trace.faults


@pytest.mark.parametrize(
    ("program", "steps"),
    [
        (
            "def f(x):\n  a = 1\n  for i in x:\n    a += (1,",
            ["def f(x):\n", "  a = 1\n", "  for i in x:\n    a += (1,"],
        ),
        ("a = 1\nb = = 2\nc = 3", ["a = 1\n", "b = = 2\nc = 3"]),
        ("def f(:\n  pass", ["def f(:\n  pass"]),
        ("if a:\n  try:\n    b\n", ["if a:\n  try:\n    b\n"]),
        ("a\n\n\n  b", ["a\n\n\n", "  b"]),
        ("a = 1\nb = '\0'", ["a = 1\nb = '\0'"]),
        ("x = " + "(" * 3000, ["x = " + "(" * 3000]),
    ],
)
def test_a_program_that_does_not_parse_keeps_the_beginning_that_does(program: str, steps: list[str]) -> None:
    trace = FORM.parse(f"```python\n{program}")
    assert _steps(trace) == steps
    assert trace.faults == (UNCLOSED, SYNTAX_ERROR)


@pytest.mark.parametrize(
    ("text", "program", "faults"),
    [
        ("```python\na = 1\n```\nBetter:\n```py\na = 2\n```", "a = 2", (SEVERAL_PROGRAMS,)),
        ("```python\na = 1\n```\nIt prints:\n```text\n7\n```\n```bash\nls\n```", "a = 1", ()),
        ("```\na = 1\n```", "a = 1", ()),
        ("~~~ Python\na = 1\n~~~", "a = 1", ()),
        ("````python\na = '''\n```\n'''\n````", "a = '''\n```\n'''", ()),
        ("```python\na = '''\n```\n'''\n```\nEnd.", "a = '''\n```\n'''", ()),
        ("```python\na = = 1\n```\nText.\n```\n1\n```", "1", (SEVERAL_PROGRAMS,)),
        ("1. It:\n   ```python\n   def f():\n     return 1\n   ```", "def f():\n  return 1", ()),
        ("- It:\n\n\t```python\n\ta = 1\n\n\tb = 2\n\t```", "a = 1\n\nb = 2", ()),
        ("<think>```python\nno\n```</think>\n```python\na\n```", "a", ()),
        ("```python\n```\n", "", (NO_PROGRAM,)),
        ("a = 1", "", (NO_PROGRAM,)),
        ("", "", (NO_PROGRAM,)),
    ],
)
def test_the_last_python_block_is_the_program(text: str, program: str, faults: tuple[str, ...]) -> None:
    trace = FORM.parse(text)
    assert "".join(map(trace.content, trace.sections)) == text
    assert (program_of(trace), trace.faults) == (program, faults)
    assert FORM.final_answers(trace) == ((program,) if program else ())


def test_any_text_is_tiled_and_read_in_bounded_time() -> None:
    chance = random.Random(0)
    pieces = ["\n", "\r\n", " ", "```", "~~~", "python", "def f():", "  x = 1", "'''", "# c", "else:", "é", "<think>"]
    for _ in range(500):
        text = "".join(chance.choices(pieces, k=chance.randrange(16)))
        trace = FORM.parse(text)
        assert "".join(map(trace.content, trace.sections)) == text
        assert all(section.start < section.end for section in trace.sections)
        assert sum(program_of(trace).count(mark) for mark in "\n") < max(len(line_starts(trace)), 1)
    for text in ("```\n" * 5_000, "```\n" + "@a\n" * 1_000, "```\n" + "-" * 50_000 + "1", "```\nx" + ".a" * 20_000):
        begin = perf_counter()
        FORM.parse(text)
        assert perf_counter() - begin < 10


def test_a_reference_is_written_with_the_fence_that_it_is_read_from() -> None:
    text = FORM.write("a = 1\n", "")
    assert text == "```python\na = 1\n```"
    assert FORM.parse(text).formatted
    assert FORM.write("a = = 1\n```\nb", "") is None


def test_prose_belongs_to_no_step() -> None:
    text = "So:\n```python\na = 1\nb = 2\n```\nDone."
    starts = tuple(range(len(text)))
    rollout = Rollout(
        id="r", problem_id="p", completion_ids=(*starts, 0), text=text, token_starts=(*starts, len(text)),
        finish="stop", trace_format="code",
    )  # fmt: skip
    assert step_spans(rollout, parse_rollout(rollout)) == ((14, 20), (20, 26))
