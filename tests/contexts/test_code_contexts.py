"""Templates for programs: the general ones with the format of programs, held whole by golden files."""

from pathlib import Path

import pytest

from stepalign import contexts, prompts
from stepalign.config import PromptsConfig
from stepalign.critics.llm import VARIABLES
from stepalign.critics.schema import compose
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, Grade, Problem, Rollout, Verdict
from stepalign.unit_tests import UnitTests

GOLDEN = Path(__file__).parents[1] / "golden" / "code"
PROBLEM = Problem(
    id="p",
    statement="Write a function to add two numbers.\n\nYour code should pass these tests:\n\nassert add(1, 2) == 3",
    solution="def add(x, y):\n    return x + y",
    trace_format="code",
    tests=UnitTests(shown=("assert add(1, 2) == 3",), entry_point="add"),
)
ATTEMPT = "```python\ndef add(a, b):\n    return a - b\n```"
FEEDBACK = "The program passes 0 of 1 tests.\nassert add(1, 2) == 3\nfails: the program gives -1, expected is 3."
ROLLOUT = Rollout(
    id="r",
    problem_id="p",
    completion_ids=(),
    token_starts=(),
    text=ATTEMPT,
    finish="stop",
    trace_format="code",
    grade=Grade(correct=False, outcome="wrong", feedback=FEEDBACK),
)
SIBLING = Rollout(
    id="s",
    problem_id="p",
    completion_ids=(),
    token_starts=(),
    text="```python\ndef add(*both):\n    return sum(both)\n```",
    finish="stop",
    trace_format="code",
    grade=Grade(correct=True, outcome="correct"),
)
VERDICTS = (
    Verdict(step=1, correct=True, place="line 1"),
    Verdict(step=2, correct=False, reason="it takes away.", place="line 2"),
)
PARTS = "```python\ndef add(a, b):", "    return a + b", "```"
CRITIQUE = Critique(
    rollout_id="r",
    critic="unit-tests",
    case="D",
    verdicts=VERDICTS,
    correct_part=PARTS[0],
    corrected_step=PARTS[1],
    continuation=PARTS[2],
    text=compose("D", VERDICTS, *PARTS),
)


@pytest.mark.parametrize("name", ["refsol", "stepalign", "quoted", "verdicts", "feedback", "sibling", "sdpo"])
def test_a_teachers_message_on_a_program_reads_as_it_did(name: str) -> None:
    source = contexts.ContextInput(problem=PROBLEM, rollout=ROLLOUT, critique=CRITIQUE, sibling=SIBLING)
    message = contexts.load(f"code/{name}").render(source)
    assert message + "\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_the_solvers_prompt_reads_as_it_did() -> None:
    (turn,) = SolverPrompt(PromptsConfig(solver="code/solver")).turns(PROBLEM)
    assert turn.content + "\n" == (GOLDEN / "solver.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["critic", "critic-splice"])
def test_the_critics_prompt_on_a_program_reads_as_it_did(name: str) -> None:
    steps = [{"label": "1 (line 1)", "text": "def add(a, b):"}, {"label": "2 (line 2)", "text": "    return a - b"}]
    values = {"problem": PROBLEM.statement, "solution": PROBLEM.solution, "answer": "", "attempt": ATTEMPT}
    template, _ = prompts.load(f"code/{name}", VARIABLES)
    values |= {"truncated": False, "feedback": FEEDBACK, "steps": steps, "num_judged": 2, "cases": "D"}
    message = prompts.render(template, values)
    assert message + "\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_a_template_of_a_folder_records_the_words_of_both() -> None:
    with prompts.recorded() as texts:
        contexts.load("code/refsol")
    assert set(texts) == {"code/refsol.txt", "code/format.txt"}
    assert "```python" in texts["code/format.txt"]
