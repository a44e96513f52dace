"""The second format: what every format must hold, and what is particular to paragraphs."""

import random

import pytest

from stepalign.trace import ParagraphFormat, StepFormat, TraceFormat, paragraphs

TEXT = "First we add:\n20 + 30 = 50.\n\nThen 2 + 3 = 5.\n \n\nSo it is $\\boxed{55}$.\n"


@pytest.fixture
def form() -> ParagraphFormat:
    return ParagraphFormat()


@pytest.mark.parametrize("kind", [StepFormat, ParagraphFormat])
def test_every_format_tiles_any_text_with_its_sections(kind: type[TraceFormat]) -> None:
    assert isinstance(kind(), TraceFormat)
    chance = random.Random(0)
    pieces = ["\n", "\n\n", " ", "a", "### Step 1: b", "---", "\\boxed{5}", "### Final Answer:", "<think>", "</think>"]
    for _ in range(300):
        text = "".join(chance.choices(pieces, k=chance.randrange(12)))
        trace = kind().parse(text)
        assert "".join(trace.content(section) for section in trace.sections) == text
        assert all(section.start < section.end for section in trace.sections)
        assert len(kind().final_answers(trace)) == 0 or text.strip()


def test_paragraphs_are_steps_and_the_boxed_last_one_is_the_answer(form: ParagraphFormat) -> None:
    trace = form.parse(TEXT)
    assert [(section.kind, section.number) for section in trace.sections] == [
        ("step", 1),
        ("step", 2),
        ("answer", None),
    ]
    assert trace.before(2) == "First we add:\n20 + 30 = 50.\n\n"
    assert trace.content(trace.section(2)) == "Then 2 + 3 = 5.\n \n\n"
    assert trace.section(3) == trace.answer_section
    assert trace.formatted
    assert form.final_answers(trace) == ("55",)


def test_without_a_box_the_last_line_is_the_answer_and_every_paragraph_a_step(form: ParagraphFormat) -> None:
    trace = form.parse("2 + 3 = 5\n\nThe answer:\n5\n")
    assert [section.kind for section in trace.sections] == ["step", "step"]
    assert trace.answer_section is None
    assert trace.faults == (paragraphs.NO_BOX,)
    assert form.final_answers(trace) == ("5",)


def test_thinking_is_the_preamble_and_gives_no_answer(form: ParagraphFormat) -> None:
    trace = form.parse("<think>\\boxed{1}\n\nno</think>\n\nIt is 2.\n\n\\boxed{2}")
    assert [section.kind for section in trace.sections] == ["preamble", "step", "answer"]
    assert trace.before(1) == "<think>\\boxed{1}\n\nno</think>\n\n"
    assert form.final_answers(trace) == ("2",)
    unfinished = form.parse("<think>\\boxed{1}")
    assert unfinished.faults == (paragraphs.NO_TEXT, paragraphs.NO_BOX)
    assert form.final_answers(unfinished) == ()


def test_reading_is_linear_in_the_length(form: ParagraphFormat) -> None:
    for text in ("\n" * 200_000, " " * 200_000, "a\n" * 100_000, "a\n\n" * 50_000, "a\n \t" * 50_000):
        assert form.parse(text).text == text
