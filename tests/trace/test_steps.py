import random
import time
from pathlib import Path

import pytest

from stepalign.trace import StepFormat, boxed, parse, response_start, steps, write_steps

APPENDIX_B = Path(__file__).parents[2] / "../shared/paper/appendix-b"

PAPER = """We add the numbers.
---
### Step 1: Add the tens
20 + 30 = 50
#### Try: something
---
### Step 2: Add the ones
2 + 3 = 5
---
### Final Answer:
$$
\\boxed{55}
$$"""


def headings(text: str) -> list[tuple[str, int | None, str]]:
    return [(section.kind, section.number, section.title) for section in parse(text).sections]


def answered(steps: str) -> str:
    return steps + "\n### Final Answer:\n\\boxed{1}"


def test_the_papers_format_is_read_into_preamble_steps_and_answer():
    trace = parse(PAPER)
    assert headings(PAPER) == [
        ("preamble", None, ""),
        ("step", 1, "Add the tens"),
        ("step", 2, "Add the ones"),
        ("answer", None, ""),
    ]
    assert trace.faults == ()
    assert trace.formatted
    assert trace.content(trace.steps[0]) == ("### Step 1: Add the tens\n20 + 30 = 50\n#### Try: something\n---\n")
    assert trace.answer_section is not None
    assert trace.content(trace.answer_section) == "### Final Answer:\n$$\n\\boxed{55}\n$$"


def test_sections_are_counted_as_a_critique_counts_them():
    trace = parse(PAPER)
    assert [trace.section(k).number for k in (1, 2)] == [1, 2]
    assert trace.section(3) == trace.answer_section
    for k in (0, 4, -1):
        with pytest.raises(IndexError, match=f"section {k} of a trace with 3"):
            trace.section(k)


def test_the_text_before_a_section_is_verbatim_and_ends_with_the_separator():
    trace = parse(PAPER)
    assert trace.before(1) == "We add the numbers.\n---\n"
    for k in (1, 2, 3):
        assert trace.before(k) + trace.text[trace.section(k).start :] == PAPER
        assert trace.before(k).endswith("---\n")


@pytest.mark.parametrize("case", ["correct", "incorrect"])
def test_the_papers_own_rollouts_keep_the_format(case):
    student = APPENDIX_B / case / "student.md"
    if not student.exists():
        pytest.skip("the paper's examples are not beside this repository")
    trace = parse(student.read_text())
    critique = (APPENDIX_B / case / "critique.md").read_text()
    assert trace.faults == ()
    assert trace.sections[0].kind == "preamble"
    counted = critique.count("\nStep ")
    assert counted in (len(trace.steps), len(trace.steps) + 1)
    first_wrong = {"correct": 5, "incorrect": 4}[case]
    assert trace.before(first_wrong) in critique


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        ("### Step 1: a", ("step", 1, "a")),
        ("# Step 1", ("step", 1, "")),
        ("## Step 1.", ("step", 1, "")),
        ("#### Step 2", ("step", 2, "")),
        ("### Step 1 - a", ("step", 1, "a")),
        ("### Step 1 — a", ("step", 1, "a")),
        ("### STEP 1) a", ("step", 1, "a")),
        ("### Step 1 ###", ("step", 1, "")),
        ("### **Step 1: a**", ("step", 1, "a")),
        ("### Step 1: a\r", ("step", 1, "a")),
        ("### Step: a", ("step", None, "a")),
        ("**Step 1:**", ("step", 1, "")),
        ("**Step 1**", ("step", 1, "")),
        ("**Step 1**: a", ("step", 1, "a")),
        ("**Step 1: a**", ("step", 1, "a")),
        ("**Step 1:** a $x*y$", ("step", 1, "a $x*y$")),
        ("Step 3:", ("step", 3, "")),
        ("### Final Answer:", ("answer", None, "")),
        ("### Final Answer", ("answer", None, "")),
        ("## Final answer", ("answer", None, "")),
        ("**Final Answer**", ("answer", None, "")),
        ("**Final Answer:** 5", ("answer", None, "5")),
        ("### Final Answer: $\\boxed{5}$", ("answer", None, "$\\boxed{5}$")),
        ("Final Answer: 5", ("answer", None, "5")),
    ],
)
def test_what_real_models_write_as_a_heading_is_one(heading, section):
    assert headings(heading) == [section]


@pytest.mark.parametrize(
    "line",
    [
        "Step 1 gives 3",
        "**Step 1** gave us 3",
        "### Steps",
        "### Step by step",
        "### Step 2.1: a part of step 2",
        "### Step 1b",
        "### Step 12345678901234567890",
        "the Final Answer: 5",
        "### Final Answers",
        "    ### Step 1: indented code",
        "see ### Step 1: a",
        "####### Step 1: a",
    ],
)
def test_what_only_looks_like_a_heading_is_text(line):
    assert headings(line) == [("preamble", None, "")]


@pytest.mark.parametrize("fence", ["```", "~~~", "````"])
def test_headings_in_a_code_fence_are_text(fence):
    text = f"### Step 1: code\n{fence}python\n### Step 2: no\n{fence}\n### Step 2: yes"
    assert headings(text) == [("step", 1, "code"), ("step", 2, "yes")]


def test_only_a_bare_fence_closes_a_fence():
    assert headings("```\n```python\n### Step 1: no\n```") == [("preamble", None, "")]


def test_a_fence_that_never_closes_hides_nothing():
    assert headings("```\n### Step 1: a\n### Step 2: b") == [
        ("preamble", None, ""),
        ("step", 1, "a"),
        ("step", 2, "b"),
    ]


def test_a_plan_in_another_style_does_not_tear_the_steps():
    text = "Step 1: plan\nStep 2: plan\n### Step 1: do\nStep 1: recall\n### Step 2: do"
    assert [section.number for section in parse(text).steps] == [1, 2]


def test_thinking_belongs_to_what_comes_before_step_1():
    thought = "<think>\n### Step 1: maybe\n### Final Answer:\n\\boxed{7}\n</think>\n\n"
    trace = parse(thought + PAPER)
    assert trace.formatted
    assert trace.before(1) == thought + "We add the numbers.\n---\n"
    assert response_start(thought + PAPER) == len(thought) - 2
    assert headings("<think>\n### Step 1: cut off") == [("preamble", None, "")]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", (steps.NO_STEPS, steps.NO_ANSWER)),
        ("Just 5.", (steps.NO_STEPS, steps.NO_ANSWER)),
        (answered(""), (steps.NO_STEPS,)),
        (answered("### Step 1: a\n### Step 3: b"), (steps.MISNUMBERED,)),
        (answered("### Step 1: a\n### Step 1: b"), (steps.MISNUMBERED,)),
        (answered("### Step 2: a\n### Step 1: b"), (steps.MISNUMBERED,)),
        (answered("### Step 0: a\n### Step 1: b"), (steps.MISNUMBERED,)),
        (answered("### Step: a"), (steps.MISNUMBERED,)),
        ("### Step 1: a\n### Step 2: cut", (steps.NO_ANSWER,)),
        ("### Step 1: a\n### Final Answer:\n5", (steps.NO_BOX,)),
        ("### Step 1: \\boxed{5}\n### Final Answer:\n\\boxed{5", (steps.NO_BOX,)),
        (answered(answered("### Step 1: a")), (steps.SEVERAL_ANSWERS,)),
        (answered("### Step 1: a") + "\n### Step 2: b", (steps.STEP_AFTER_ANSWER,)),
        (answered("**Step 1:** a"), (steps.OTHER_STYLE,)),
        ("### Step 1: a\n**Final Answer:** \\boxed{5}", (steps.OTHER_STYLE,)),
        (answered("## Step 1. a\n#### Step 2"), ()),
    ],
)
def test_every_departure_from_the_format_is_named(text, faults):
    trace = parse(text)
    assert trace.faults == faults
    assert trace.formatted == (not faults)


def test_the_last_of_several_final_answers_is_the_answer():
    text = answered("### Step 1: a") + "\n### Final Answer:\n\\boxed{2}"
    trace = parse(text)
    assert trace.answer_section is not None
    assert trace.content(trace.answer_section) == "### Final Answer:\n\\boxed{2}"


PIECES = [
    "### Step 1: a", "### Step 2", "## Step 3.", "**Step 1:**", "Step 2:", "### Final Answer:",
    "**Final Answer**", "\\boxed{", "}", "{", "\\", "\n", "\n\n", "---", "```", "~~~", "#### Try:", " ", "\t",
    "\r\n", "x", "é", "🙂", "#", "*", "<think>", "</think>", "\u2028", "\x00", "\ud800",
]  # fmt: skip


def test_sections_tile_any_text():
    chance = random.Random(0)
    kinds = set()
    for _ in range(3000):
        text = "".join(chance.choices(PIECES, k=chance.randrange(40)))
        trace = parse(text)
        assert "".join(map(trace.content, trace.sections)) == text
        assert all(section.start < section.end for section in trace.sections)
        assert [section.kind == "preamble" for section in trace.sections[1:]] == [False] * len(trace.sections[1:])
        kinds.update(section.kind for section in trace.sections)
    assert kinds == {"preamble", "step", "answer"}


@pytest.mark.parametrize(
    "unit",
    [
        "#", "*", "\n", "{", "}", " ", "\\", "\\boxed{", "\\boxed", "\\boxed{}", "```\n", "~~~x\n", "# ",
        "**", "### ", "### Step 1:\n", "**Step 1:**\n", "Step 1:", "Step\t ", "Final  ", "Final Answer:\n",
        "9", "</think>",
    ],
)  # fmt: skip
def test_a_megabyte_of_anything_is_read_in_linear_time(unit):
    part = unit * (333_333 // len(unit))
    text = f"{part}\n#{part}\n### Step {part}"
    began = time.perf_counter()
    parse(text)
    boxed(text)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (PAPER, ("55",)),
        ("### Final Answer:\n\\boxed{1} \\boxed{ 2 }", ("2",)),
        ("\\boxed{1}\n### Final Answer:\n2", ("1",)),
        ("\\boxed{1} or \\boxed{2} or \\boxed{1}", ("1", "2")),
        ("<think>\\boxed{1}</think>", ()),
        ("### Final Answer: \\boxed{}", ()),
    ],
)
def test_the_final_answer_is_the_final_sections_last_box_or_else_every_different_one(text, answers):
    assert StepFormat().final_answers(parse(text)) == answers


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("### Step 1: Add\nx\n\n### Final Answer:\n\\boxed{9}", None),
        ("### Step 1: Add\nx", "### Step 1: Add\nx\n\n### Final Answer:\n\n\\boxed{9}"),
        ("a = 4\nb = 9\n", "### Step 1:\na = 4\n\n### Step 2:\nb = 9\n\n### Final Answer:\n\n\\boxed{9}"),
        ("One.\nTwo.\n \nThree.", "### Step 1:\nOne.\nTwo.\n\n### Step 2:\nThree.\n\n### Final Answer:\n\n\\boxed{9}"),
        (
            "**Step 1:** x\n\nSo \\boxed{9}.",
            "### Step 1:\n**Step 1:** x\n\n### Step 2:\nSo \\boxed{9}.\n\n### Final Answer:\n\n\\boxed{9}",
        ),
    ],
)  # fmt: skip
def test_a_solution_is_written_in_the_format(solution, expected):
    written = write_steps(solution, "9")
    assert written == (solution if expected is None else expected)
    assert parse(written).formatted
    assert StepFormat().final_answers(parse(written)) == ("9",)


def test_headings_of_its_own_that_break_the_format_are_not_written_over():
    assert write_steps("### Step 4: x\n\\boxed{9}", "9") is None
