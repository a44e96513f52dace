"""Each check on a critique that passes all of them, changed so that this one alone fails."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepalign import config
from stepalign.critics import schema
from stepalign.critics.checks import NAMES, Checker, normalize
from stepalign.critics.fidelity import fidelity
from stepalign.records import Check, Critique, FinishReason, Grade, Problem, Rollout, Verdict
from stepalign.rewards.math import MathGrader
from stepalign.trace import parse

APPENDIX_B = Path(__file__).parents[2] / "../shared/paper/appendix-b"
GRADER = MathGrader(num_workers=1)


@pytest.fixture(autouse=True, scope="module")
def grader_closed() -> Iterator[None]:
    yield
    GRADER.close()


PROBLEM = Problem(
    id="p",
    statement="A box holds 47 red, 38 blue and 12 green balls. How many?",
    answer="97",
    solution="There are 85 balls that are red or blue. With the green ones there are 97 balls in all of the box.",
)
TEXT = """We add.

### Step 1: Red and blue
Together these are 47 + 38 = 85 balls.

---

### Step 2: Green
The green ones come next.
85 + 12 = 98

---

### Final Answer:
\\boxed{98}"""
TRACE = parse(TEXT)


def rollout(text: str = TEXT, *, correct: bool = False, finish: FinishReason = "stop") -> Rollout:
    grade = Grade(correct=correct, outcome="correct" if correct else "wrong")
    return Rollout(id="r", problem_id="p", completion_ids=(), token_starts=(), text=text, finish=finish, grade=grade)


def critique(**changed: Any) -> Critique:
    """Case D with its first error at step 2, and the text that its parts make."""
    parts: dict[str, Any] = {
        "case": "D",
        "verdicts": (
            Verdict(step=1, correct=True),
            Verdict(step=2, correct=False, reason="the sum is 97."),
            Verdict(step=3, correct=False),
        ),
        "correct_part": schema.original(TRACE, 2),
        "corrected_step": "### Step 2: Green\nThe green ones come next.\n85 + 12 = 97",
        "continuation": "### Final Answer:\n\\boxed{97}",
    }
    made = Critique(rollout_id="r", critic="c", text="?", **parts | changed)
    return replace(made, text=schema.text_of(made))


def check(
    made: Critique, given: Rollout | None = None, problem: Problem = PROBLEM, **allowed: float
) -> dict[str, Check]:
    found = Checker(config.ChecksConfig(**allowed), GRADER).check(made, problem, given or rollout())
    assert tuple(one.name for one in found) == NAMES
    assert all(one.passed == (not one.detail) for one in found)
    return {one.name: one for one in found}


def failed(made: Critique, given: Rollout | None = None, problem: Problem = PROBLEM) -> set[str]:
    return {name for name, one in check(made, given, problem).items() if not one.passed}


def test_a_critique_that_keeps_the_convention_passes_every_check() -> None:
    found = check(critique())
    assert {name for name, one in found.items() if not one.passed} == set()
    assert (found["exact_copy"].measure, found["error_not_quoted"].measure, found["reference_overlap"].measure) == (
        1.0,
        round(21 / 29, 4),
        0.0,
    )


@pytest.mark.parametrize("name", ["correct", "incorrect"])
@pytest.mark.skipif(not APPENDIX_B.is_dir(), reason="the paper's examples are not beside the repository")
def test_the_papers_critiques_pass_every_check(name: str) -> None:
    texts = {
        part: (APPENDIX_B / name / f"{part}.md").read_text().removesuffix("\n").removesuffix("<|im_end|>")
        for part in ("problem", "reference", "student", "critique")
    }
    right = name == "correct"
    trace = parse(texts["student"])
    found = schema.parse(texts["critique"], trace)
    made = Critique(
        rollout_id="r",
        critic="QwQ-32B",
        case=found.case,
        verdicts=found.verdicts,
        correct_part=found.correct_part,
        corrected_step=found.corrected_step,
        continuation=found.continuation,
        text=texts["critique"],
    )
    problem = Problem(id="p", statement=texts["problem"], answer="1" if right else "127", solution=texts["reference"])
    checks = check(made, rollout(texts["student"], correct=right), problem)
    assert [one.name for one in checks.values() if one.passed] == list(NAMES)
    assert checks["exact_copy"].measure == 1.0
    assert fidelity(found.correct_part, schema.original(trace, found.first_error)) == 1.0


def test_layout_fails_where_the_text_says_more_than_its_parts() -> None:
    made = critique()
    assert failed(replace(made, text=made.text + "\nBy the way, 85 + 12 = 98.")) == {"layout"}


@pytest.mark.parametrize(
    ("case", "given", "passes"),
    [
        ("D", rollout(), True),
        ("D", rollout(correct=True), False),
        ("C", rollout(), False),
        ("C", rollout(finish="length"), True),
        ("B", rollout(), False),
        ("B", rollout(correct=True), True),
        ("D", replace(rollout(), grade=None), False),
    ],
)
def test_the_case_fits_the_grade(case: str, given: Rollout, passes: bool) -> None:
    assert check(critique(case=case), given)["case"].passed == passes


def test_fully_correct_on_a_wrong_answer_is_a_lie() -> None:
    right = tuple(Verdict(step=k, correct=True) for k in (1, 2, 3))
    lie = critique(case="A", verdicts=right, correct_part=TEXT, corrected_step="", continuation="")
    assert failed(lie) == {"case", "true_equations", "final_answer"}
    assert failed(lie, rollout(correct=True)) == {"true_equations"}  # a grader has the last word on the answer alone


def test_a_case_needs_its_wrong_step_among_the_trace() -> None:
    late = tuple(Verdict(step=k, correct=k < 5) for k in range(1, 6))
    assert "case" in failed(critique(verdicts=late, correct_part=""))


def test_every_step_needs_a_verdict_and_the_final_answer_may_have_one() -> None:
    verdicts = critique().verdicts
    assert failed(critique(verdicts=verdicts[:2])) == set()
    longer = rollout(TEXT.replace("### Final", "### Step 3: More\nand more\n\n### Final"))
    found = check(critique(verdicts=verdicts[:2]), longer)["verdicts"]
    assert (found.passed, found.measure) == (False, 0.6667)
    assert "verdicts" in failed(critique(verdicts=(verdicts[0], verdicts[1], verdicts[1])))


def test_one_rewritten_step_of_many_fails_though_most_of_the_copy_is_verbatim() -> None:
    many = "\n\n".join(f"### Step {k}: Part {k}\nThis is what part {k} says, word for word." for k in range(1, 30))
    given = rollout(f"{many}\n\n### Step 30: Wrong\n85 + 12 = 98\n\n### Final Answer:\n\\boxed{{98}}")
    rewritten = many.replace("This is what part 7 says", "In its part seven he claims")
    verdicts = tuple(Verdict(step=k, correct=k != 30) for k in range(1, 32))
    made = critique(verdicts=verdicts, correct_part=rewritten, corrected_step="### Step 30: Right\n85 + 12 = 97")
    found = check(made, given)
    assert fidelity(rewritten, many) > 0.98
    assert not found["exact_copy"].passed
    assert not found["normalized_copy"].passed
    assert "of step 7 is copied" in found["exact_copy"].detail


def test_white_space_and_markup_are_verbatim_only_where_they_are_exact() -> None:
    part = critique().correct_part.replace("### Step 1: Red and blue\n", "**Step 1: Red and blue**\n\n  ")
    found = check(critique(correct_part=part))
    assert (found["exact_copy"].passed, found["normalized_copy"].passed) == (False, True)
    assert normalize("## **Step 1:** $x$\n- \\(y\\)\n---\n`z` 2*3") == "Step1:xyz2*3"


def test_what_is_added_to_the_copy_counts_as_much_as_what_is_missing() -> None:
    part = critique().correct_part
    assert {"exact_copy", "normalized_copy"} <= failed(
        critique(correct_part=f"{part}\nNote that this is quite right so far.")
    )
    assert {"exact_copy", "normalized_copy"} <= failed(critique(correct_part=part[:60]))
    assert {"exact_copy", "normalized_copy"} <= failed(critique(correct_part=""))


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"corrected_step": "### Step 2: Green\nThe green ones come next.\n85 + 12 = 98"}, "step 2 is quoted"),
        ({"continuation": "Not $85+12 = 98$.\n\n### Final Answer:\n\\boxed{97}"}, "step 2 is quoted"),
        ({"corrected_step": "### Step 2: Green\nNot 85 + 12 = 98, it is 97."}, "its false equation"),
    ],
)
def test_the_wrong_step_is_withheld_from_the_correction(changed: dict[str, Any], detail: str) -> None:
    found = check(critique(**changed))["error_not_quoted"]
    assert not found.passed
    assert detail in found.detail


def test_the_wrong_step_is_withheld_from_the_reasons() -> None:
    text = TEXT.replace("85 + 12 = 98", "The sum is ninety-eight")
    verdicts = (
        Verdict(step=1, correct=True),
        Verdict(step=2, correct=False, reason="you wrote **the sum is ninety-eight**"),
        Verdict(step=3, correct=False, reason="The sum is ninety-eight, you say"),
    )
    made = critique(corrected_step="### Step 2: Green\n85 + 12 = 97")
    assert check(made, rollout(text))["error_not_quoted"].passed
    found = check(replace(made, verdicts=verdicts), rollout(text))["error_not_quoted"]
    assert (found.passed, found.detail) == (False, "the wrong step 2 is quoted in a reason")


def test_a_number_that_only_contains_the_false_equation_is_no_quote() -> None:
    assert check(critique(corrected_step="### Step 2: Green\n185 + 12 = 981, no: 85 + 12 = 97"))[
        "error_not_quoted"
    ].passed


def test_what_the_solver_did_not_finish_is_no_error_to_withhold() -> None:
    given = rollout(TEXT[: TEXT.index(" = 98")], finish="length")
    verdicts = (Verdict(step=1, correct=True), Verdict(step=2, correct=False, reason="it is unfinished."))
    assert failed(critique(case="C", verdicts=verdicts), given) == set()


@pytest.mark.parametrize(
    ("end", "reference", "passes"),
    [
        ("\\boxed{97}", "97", True),
        ("\\boxed{97.0}", "97", True),
        ("\\boxed{98}", "97", False),
        ("The answer is 97.", "97", False),
        ("\\boxed{\\frac{194}{2}}", "97", True),
        ("\\boxed{x = 97}", "97", True),  # only computer algebra can tell
        ("\\boxed{(y+1)^2}", "y^2+2y+1", True),
        ("\\boxed{(y+1)^3}", "y^2+2y+1", False),
    ],
)
def test_the_correction_ends_in_the_reference_answer(end: str, reference: str, passes: bool) -> None:
    made = critique(continuation=f"### Final Answer:\n{end}")
    assert check(made, problem=replace(PROBLEM, answer=reference))["final_answer"].passed == passes


def test_an_echo_of_the_reference_is_told_from_the_solvers_own_way() -> None:
    echo = critique(
        corrected_step="### Step 2: Go on\nThere are 85 balls that are red or blue.",
        continuation="With the green ones there are 97 balls in all of the box.\n\n### Final Answer:\n\\boxed{97}",
    )
    found = check(echo)["reference_overlap"]
    assert not found.passed
    assert found.measure > 0.9
    own = rollout(TEXT.replace("The green ones come next.", PROBLEM.solution))  # then these are the solver's words
    assert check(echo, own)["reference_overlap"].measure == 0
    assert check(echo, problem=replace(PROBLEM, solution=""))["reference_overlap"].passed


def test_a_critique_far_longer_than_its_rollout_fails() -> None:
    long = critique(continuation="So it is. " * 1000 + "\n\n### Final Answer:\n\\boxed{97}")
    assert failed(long) == {"length"}
    assert check(long, max_length=20.0)["length"].passed
