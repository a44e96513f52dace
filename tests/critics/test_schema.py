import time
from pathlib import Path

import pytest

from stepalign.critics.fidelity import fidelity
from stepalign.critics.schema import HEADINGS, CritiqueFormatError, compose, original, parse, trim
from stepalign.records import Verdict
from stepalign.trace import Trace
from stepalign.trace import parse as read

APPENDIX_B = Path(__file__).parents[2] / "../shared/paper/appendix-b"

TRACE = read("""We add.

### Step 1: Add 38
47 + 38 = 85

---

### Step 2: Add 12
85 + 12 = 98

---

### Final Answer:
\\boxed{98}""")

RIGHT = tuple(Verdict(step=k, correct=True) for k in (1, 2, 3))
WRONG = (RIGHT[0], Verdict(step=2, correct=False, reason="85 + 12 is 97."), RIGHT[2])

CASE_D = """### Summary
Step 1: Correct.
Step 2: Incorrect -- 85 + 12 is 97.
Step 3: Correct.
# Your solution has an error at Step 2. Below is your correct work, the corrected step, and the remainder of the solution.
# This is the correct part of your solution:
---
We add.

### Step 1: Add 38
47 + 38 = 85
---
# You made an error at Step 2. Here is the corrected step:
---
### Step 2: Add 12
85 + 12 = 97
---
# Continuing the solution from the corrected step:
---
### Final Answer:
\\boxed{97}"""  # noqa: E501


def rejection(text: str, trace: Trace = TRACE) -> str:
    with pytest.raises(CritiqueFormatError) as error:
        parse(text, trace)
    return str(error.value)


def appendix(name: str) -> tuple[Trace, str]:
    folder = APPENDIX_B / name
    if not folder.is_dir():
        pytest.skip("the paper's Appendix B is not beside the repository")
    student = (folder / "student.md").read_text().removesuffix("\n").removesuffix("<|im_end|>")
    return read(student), (folder / "critique.md").read_text().removesuffix("\n")


def test_the_papers_correct_critique_copies_its_student_verbatim() -> None:
    trace, text = appendix("correct")
    found = parse(text, trace)
    assert (found.case, found.first_error, len(found.verdicts)) == ("A", None, 5)
    assert found.correct_part == trace.text
    assert fidelity(found.correct_part, trace.text) == 1.0


def test_the_papers_incorrect_critique_copies_its_student_up_to_step_4() -> None:
    trace, text = appendix("incorrect")
    found = parse(text, trace)
    assert (found.case, found.first_error, len(found.verdicts)) == ("D", 4, 5)
    assert found.verdicts[3].reason == "failed to consider non-negative constraints on x and y."
    assert found.correct_part == original(trace, 4)
    assert found.corrected_step.startswith("### Step 4: Find all integer values")
    assert found.continuation.startswith("### Step 5: Count")
    assert "\\boxed{127}" in found.continuation


@pytest.mark.parametrize("name", ["correct", "incorrect"])
def test_composing_what_was_read_from_the_papers_critiques_gives_them_back(name: str) -> None:
    trace, text = appendix(name)
    found = parse(text, trace)
    assert compose(found.case, found.verdicts, found.correct_part, found.corrected_step, found.continuation) == text


def test_a_critique_of_a_wrong_answer_is_laid_out_as_in_the_paper() -> None:
    corrected, rest = "### Step 2: Add 12\n85 + 12 = 97\n\n---\n", "### Final Answer:\n\\boxed{97}\n"
    assert compose("D", WRONG, original(TRACE, 2), corrected, rest) == CASE_D


def test_case_a_repeats_the_whole_solution() -> None:
    text = compose("A", RIGHT, TRACE.text)
    assert text == (
        "### Summary\nStep 1: Correct.\nStep 2: Correct.\nStep 3: Correct.\n"
        f"# Your solution is fully correct.\n---\n{TRACE.text}"
    )
    assert parse(text, TRACE).correct_part == TRACE.text


@pytest.mark.parametrize("case", ["B", "C", "D"])
def test_what_was_composed_is_read_back(case: str) -> None:
    parts = (original(TRACE, 2), "### Step 2: Add 12\n85 + 12 = 97", "### Final Answer:\n\\boxed{97}")
    found = parse(compose(case, WRONG, *parts), TRACE)  # type: ignore[arg-type]
    assert (found.case, found.verdicts) == (case, WRONG)
    assert (found.correct_part, found.corrected_step, found.continuation) == parts


def test_the_solvers_own_lines_that_look_like_headings_do_not_tear_its_part_apart() -> None:
    headings = HEADINGS["D"]
    text = TRACE.text.replace("We add.", f"{headings.corrected_step.format(k=2)}\n---\n{headings.continuation}")
    trace = read(text)
    found = parse(compose("D", WRONG, original(trace, 2), "### Step 2: so", "end"), trace)
    assert (found.correct_part, found.corrected_step, found.continuation) == (
        original(trace, 2), "### Step 2: so", "end",
    )  # fmt: skip


def test_other_levels_spacing_capitals_and_missing_rules_are_forgiven() -> None:
    text = CASE_D.replace("\n# ", "\n\n##  ").replace("\n---\n", "\n\n").replace("### Summary", "**Summary**")
    text = text.replace("Step 1: Correct.", "- **Step 1:** correct").replace(" -- 85", ": 85")
    found = parse(text.replace("Here is the corrected step:", "here is the  corrected step"), TRACE)
    assert (found.first_error, found.verdicts[1].reason) == (2, "85 + 12 is 97.")
    assert found.correct_part == original(TRACE, 2)
    assert found.corrected_step == "### Step 2: Add 12\n85 + 12 = 97"


def test_the_opening_may_be_cut_to_its_first_sentence() -> None:
    opening = HEADINGS["D"].opening.format(k=2)
    assert parse(CASE_D.replace(opening, "# Your solution has an error at Step 2."), TRACE).case == "D"


@pytest.mark.parametrize(
    ("found", "put", "message"),
    [
        ("# Your solution has an error", "# Your solution has a flaw", "none of the headings"),
        ("at Step 2. Below", "at Step 1. Below", "puts the error at step 1, its summary at step 2"),
        ("Step 2: Incorrect -- 85 + 12 is 97.", "Step 2: Correct.", "finds no step incorrect"),
        ("Step 2: Incorrect -- 85 + 12 is 97.\n", "", "judges step 3 where step 2 is due"),
        ("Step 3: Correct.", "Step 3: Correct.\nStep 4: Correct.", "judges step 4 of a solution that has 2"),
        (
            "# You made an error at Step 2. Here is",
            "# Here is",
            "has no heading '# You made an error at Step K",
        ),
        (
            "# You made an error at Step 2",
            "# You made an error at Step 1",
            "corrects step 1, but finds the error at",
        ),
        ("# Continuing the solution", "# The solution", "has no heading '# Continuing the solution"),
        ("### Step 2: Add 12\n85 + 12 = 97", "", "has no corrected step 2"),
    ],
)
def test_what_cannot_be_accepted_is_said(found: str, put: str, message: str) -> None:
    assert found in CASE_D
    assert message in rejection(CASE_D.replace(found, put))


def test_full_correctness_must_fit_the_summary() -> None:
    right = compose("A", RIGHT, TRACE.text)
    assert "finds step 2 incorrect" in rejection(right.replace("Step 2: Correct.", "Step 2: Incorrect."))
    assert "does not repeat the solution" in rejection(right[: right.index("---")])
    assert parse(right.replace("Step 2: Correct.\nStep 3: Correct.\n", ""), TRACE).verdicts == RIGHT[:1]  # a check's
    assert "has no verdicts" in rejection(right[right.index("# Your") :])


def test_a_case_and_its_verdicts_must_fit_when_composing() -> None:
    with pytest.raises(ValueError, match="case A with the first error at step 2"):
        compose("A", WRONG, "x")
    with pytest.raises(ValueError, match="case D with the first error at step None"):
        compose("D", RIGHT, "x")


def test_the_quoted_part_ends_before_the_rule_and_is_everything_where_the_answer_is_missing() -> None:
    assert original(TRACE, 2) == "We add.\n\n### Step 1: Add 38\n47 + 38 = 85"
    assert TRACE.text.startswith(original(TRACE, 3))
    unfinished = read("### Step 1: a\n1 + 1 = 2\n")
    assert original(unfinished, 2) == "### Step 1: a\n1 + 1 = 2"
    assert original(read("no steps"), 1) == ""


def test_only_rules_of_their_own_line_are_trimmed() -> None:
    assert trim("a\n\n---\n----  \n") == "a"
    assert trim("a ---") == "a ---"
    assert trim("| a |\n|---") == "| a |\n|---"
    assert trim("---") == ""


@pytest.mark.parametrize(
    "lines",
    [
        ["Step 1: Correct.", "Step 2: Incorrect -- 85 + 12 is 97.", "Step 3: Correct."],
        ["- Step 1: ✅ Correct", "- Step 2: ❌ Incorrect: 85 + 12 is 97.", "- Final Answer: ✅ Correct"],
        ["* **Step 1:** Correct ✔️", "* **Step 2:** Incorrect ✗ – 85 + 12 is 97.", "* **Final Answer:** correct"],
        ["1. Step 1 (Add 38): correct", "2. Step 2 (Add 12): incorrect - 85 + 12 is 97."],
        ["**Step 1: Correct.**", "**Step 2: Incorrect.** 85 + 12 is 97.", "**Step 3: Correct.**"],
        ["#### Step 1 — Correct", "#### Step 2 — Incorrect — 85 + 12 is 97."],
        ["| Step 1 | Correct | |", "| Step 2 | Incorrect | 85 + 12 is 97. |"],
        ["STEP 1: CORRECT", "", "STEP 2: INCORRECT (85 + 12 is 97.", "", "STEP 3: CORRECT"],
    ],
)
def test_verdicts_as_models_write_them(lines: list[str]) -> None:
    summary = CASE_D[: CASE_D.index("# Your")]
    found = parse(CASE_D.replace(summary, "### Summary\n" + "\n".join(lines) + "\n\n"), TRACE)
    assert found.first_error == 2
    assert found.verdicts[1].reason.lstrip("(") == "85 + 12 is 97."
    assert [verdict.correct for verdict in found.verdicts] == [True, False, True][: len(found.verdicts)]


def test_a_final_answer_is_judged_behind_the_steps_alone() -> None:
    text = CASE_D.replace("Step 1: Correct.\nStep 2", "Step 1: Correct.\nFinal Answer: Correct.\nStep 2", 1)
    assert "judges the final answer where step 2 is due" in rejection(text)


def test_what_comes_before_the_summary_and_around_the_critique_is_left_out() -> None:
    preface = "Let me look at it.\nStep 1: Incorrect, or so I thought.\n\n"
    assert parse(preface + CASE_D, TRACE) == parse(CASE_D, TRACE)
    assert parse(f"```markdown\n{CASE_D}\n```\n", TRACE) == parse(CASE_D, TRACE)


@pytest.mark.parametrize(
    "chatter", ["\n\nI hope this helps!", "\n---\n**Note:** always add twice.\n\nGood luck!", "\n\n"]
)
def test_what_is_said_behind_the_end_is_left_out(chatter: str) -> None:
    assert parse(CASE_D + chatter, TRACE) == parse(CASE_D, TRACE)
    right = compose("A", RIGHT, TRACE.text)
    assert parse(right + chatter, TRACE).correct_part == TRACE.text
    displayed = CASE_D.replace("\\boxed{97}", "\\[\n\\boxed{97}\n\\]\nis the sum.")
    assert parse(displayed + chatter, TRACE).continuation.endswith("\\boxed{97}\n\\]\nis the sum.")


def test_a_solution_that_goes_on_behind_a_box_is_no_chatter() -> None:
    more = "### Step 3: Check\n\\boxed{97} it is.\n\n### Step 4: Again\nYes.\n\n### Final Answer:"
    assert parse(CASE_D.replace("### Final Answer:\n\\boxed{97}", more), TRACE).continuation == more


def test_a_heading_may_be_cut_to_its_first_sentence() -> None:
    cut = CASE_D.replace(" Here is the corrected step:", "")
    assert parse(cut, TRACE) == parse(CASE_D, TRACE)


@pytest.mark.parametrize(
    "text",
    [
        "Step 1: Correct.\n" * 20_000,
        "Step 1:" * 50_000,
        " \n" * 100_000,
        "# Your solution has an error at Step " * 10_000,
        "# Your solution is fully correct.\n" + "---\n" * 20_000,
        "\t" * 200_000 + "---",
    ],
)
def test_hostile_text_is_read_in_linear_time(text: str) -> None:
    start = time.perf_counter()
    for critique in (text, f"Step 1: Correct.\n# Your solution is fully correct.\n{text}"):
        try:
            found = parse(critique, TRACE)
            fidelity(found.correct_part, TRACE.text)
        except CritiqueFormatError:
            pass
    assert time.perf_counter() - start < 2
