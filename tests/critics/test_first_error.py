"""The place of the first error does not follow the wording of the correction."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from stepalign.critics import schema
from stepalign.critics.error_spans import rollout_error_span
from stepalign.critics.first_error import ErrorSpan, first_error_span
from stepalign.records import Critique, Rollout, Verdict
from stepalign.trace import parse

APPENDIX_B = Path(__file__).parents[2] / "../shared/paper/appendix-b"

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


def critique(first_error: int | None, corrected: str = "") -> Critique:
    verdicts = [Verdict(step=k, correct=k != first_error) for k in range(1, (first_error or 3) + 1)]
    return Critique(
        rollout_id="r",
        critic="c",
        case="D",
        verdicts=tuple(verdicts),
        correct_part="",
        corrected_step=corrected,
        text="t",
    )


def error_in(wrong: str, corrected: str) -> tuple[str, str]:
    """The text of the first wrong token, and from the first wrong character on."""
    text = f"### Step 1: Count\n{wrong}\n"
    found = first_error_span(parse(text), critique(1, f"### Step 1: Count again\n{corrected}"))
    assert found is not None
    assert found.departure is not None
    return text[found.start : found.end], text[found.departure : found.end]


@pytest.mark.parametrize(
    "corrected",
    [
        "### Step 2: Green\nThe green ones come next.\n85 + 12 = 97",
        "### Step 2: Green balls\nThe green ones come next.\n85 + 12 = 97",
        "### Step 2: Add the green ones\nNow we add the green balls:\n$$85 + 12 = 97.$$",
        "**Step 2:** Adding 12 to 85 gives \\(97\\).",
        "The sum of 85 and 12 is 97.",
        "97 is the sum of 85 and 12",
        "### Step 2: Green\nTogether we get 97.",
        "### Step 2: Green\n85 + 12 = 85 + 10 + 2 = 97",
        "### Step 2: Green\n12 + 85 = 97",
        "### Step 2: Green\n85 plus 12 makes 97, and there are no more.",
    ],
)
def test_one_error_has_one_place_however_its_correction_is_phrased(corrected: str) -> None:
    start = TEXT.index("98")
    assert first_error_span(parse(TEXT), critique(2, corrected)) == ErrorSpan(2, start, start + 2, start + 1)


@pytest.mark.skipif(not APPENDIX_B.is_dir(), reason="the paper's examples are not beside the repository")
def test_the_papers_own_critique_marks_the_claim_that_is_wrong_and_not_the_whole_step() -> None:
    student = (APPENDIX_B / "incorrect" / "student.md").read_text().removesuffix("\n").removesuffix("<|im_end|>")
    corrected = schema.parse((APPENDIX_B / "incorrect" / "critique.md").read_text(), parse(student)).corrected_step
    found = first_error_span(parse(student), critique(4, corrected))
    assert found is not None
    assert student[found.start :].startswith("no restrictions on $k$, so $k$ can be any integer.")


@pytest.mark.parametrize(
    ("wrong", "corrected", "token", "departs"),
    [
        ("3 + 4 = 7", "3 + 4 + 5 = 12", "=", "="),
        ("3 + 4 + 5 = 12", "3 + 4 = 7", "+", "+"),
        ("12 - 5 = 7", "12 + 5 = 17", "-", "-"),
        ("So $x < 5$.", "Then $x \\le 5$.", "<", "<"),
        ("2x + 3y = 7", "2x + 3z = 7", "y", "y"),
        ("12 \\times 3 is \\sin 3", "12 * 3 is \\cos 3", "\\sin", "\\sin"),
        ("He gets 12 of them", "He gets 126 of them", "12 ", " "),
        ("47 + 38 = 85, 85 + 12 = 98.", "In all 97.", "98", "8"),
        ("85 + 12 = 98. So he has 98, and twice that is 196", "The sum is 97.", "98", "8"),
        ("Thus the number is **even**.", "Hence the number is odd.", "even", "even"),
        ("\\boxed{\\text{Infinitely many}}", "\\boxed{127}", "Infinitely", "Infinitely"),
    ],
)
def test_it_is_the_first_departure_that_changes_what_is_claimed(
    wrong: str, corrected: str, token: str, departs: str
) -> None:
    assert error_in(wrong, corrected) == (token, departs)


@pytest.mark.parametrize(
    "corrected",
    [
        "",
        "### Step 2: In other words\nNext come the green ones, so that 85 plus 12 = **98**.",
        "### Step 2: Green\nThe green ones come next.\n$85 + 12 = 98$\nand so on",
    ],
    ids=["no correction", "other words", "only more"],
)
def test_where_no_claim_differs_it_is_the_whole_step(corrected: str) -> None:
    section = parse(TEXT).section(2)
    assert first_error_span(parse(TEXT), critique(2, corrected)) == ErrorSpan(2, section.start, section.end, None)


def test_a_step_that_is_all_heading_departs_in_its_heading() -> None:
    text = "Step 1: 47 + 38 = 86\nStep 2: so"
    found = first_error_span(parse(text), critique(1, "Step 1: 47 + 38 = 85"))
    assert found is not None
    assert text[found.start : found.end] == "86"


def test_what_is_right_or_missing_has_no_place() -> None:
    assert first_error_span(parse(TEXT), critique(None)) is None
    assert first_error_span(parse(TEXT), critique(4, "### Step 4: More\n1 + 1 = 2")) is None
    assert first_error_span(parse("no steps"), critique(1, "### Step 1: A step\n2")) is None


def test_hostile_text_is_aligned_in_bounded_time() -> None:
    draw = random.Random(0)
    for symbols in (["1 "], ["1 ", "+ "], ["a ", "b ", "2 ", "= "]):
        wrong, corrected = ("".join(draw.choices(symbols, k=20_000)) for _ in range(2))
        start = time.perf_counter()
        first_error_span(parse(f"### Step 1: a\n{wrong}"), critique(1, f"### Step 1: a\n{corrected}"))
        assert time.perf_counter() - start < 4


def rollout(text: str, **fields: Any) -> Rollout:
    return Rollout(id="r", problem_id="p", completion_ids=(), token_starts=(), text=text, finish="stop", **fields)


@pytest.mark.parametrize("thought", ["### Step 1: Perhaps\n85 + 12 = 98?\n[/REASONING]\n", ""])
def test_the_thought_ends_where_the_rollout_says(thought: str) -> None:
    text = f"{thought}### Step 1: Sum\n47 + 38 = 85 </think>\n\n### Step 2: Green\n85 + 12 = 98\n"
    found = rollout_error_span(
        rollout(text, response_start=len(thought)), critique(2, "### Step 2: Green\n85 + 12 = 97")
    )
    assert found is not None
    assert (found.start, found.end) == (text.rindex("98"), text.rindex("98") + 2)


def test_a_paragraph_is_a_step_where_the_rollout_says_so() -> None:
    text = "47 + 38 = 85\n\n85 + 12 = 98\n\n\\boxed{98}"
    found = rollout_error_span(rollout(text, trace_format="paragraphs"), critique(2, "85 + 12 = 97"))
    assert found is not None
    assert (found.start, found.departure) == (text.index("98"), text.index("98") + 1)
