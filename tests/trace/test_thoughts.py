"""Thoughts: their marks, from text and from templates, and no answer inside one."""

import pytest

from stepalign.trace import ParagraphFormat, StepFormat
from stepalign.trace.thoughts import THOUGHT_MARKS, ends_in_thought, response_start, thought_marks


@pytest.mark.parametrize(("opening", "closing"), THOUGHT_MARKS)
@pytest.mark.parametrize("before", ["", " \n", "Well.\n"])
def test_a_box_in_an_unfinished_thought_is_no_answer(opening: str, closing: str, before: str) -> None:
    for form in (StepFormat(), ParagraphFormat()):
        unfinished = f"{before}{opening}\n### Final Answer:\nso \\boxed{{42}} hmm"
        assert form.final_answers(form.parse(unfinished)) == ()
        assert form.final_answers(form.parse(f"{unfinished}{closing}\n\\boxed{{5}}")) == ("5",)
        assert form.final_answers(form.parse(f"\\boxed{{1}}{closing} \\boxed{{5}} {opening} \\boxed{{6}}")) == ("5",)


def test_a_thought_ends_at_the_last_closing_mark() -> None:
    text = "<think>The tag </think> ends it: \\boxed{1}</THINK>\n"
    assert response_start(text + "\\boxed{42}") == len(text) - 1
    assert response_start("\\boxed{42}") == 0


def test_a_thought_that_the_prompt_opened_lasts_until_it_is_closed() -> None:
    assert response_start("so \\boxed{42}", opened=True) == len("so \\boxed{42}")
    assert response_start("so</think>\\boxed{42}", opened=True) == len("so</think>")
    trace = StepFormat().parse("### Final Answer:\n\\boxed{42}", response_start=len("### Final Answer:\n\\boxed{42}"))
    assert StepFormat().final_answers(trace) == ()


@pytest.mark.parametrize(
    ("template", "tokens", "marks"),
    [
        ("{{ '<deep_think>' }} … </deep_think>", [], ("<deep_think>", "</deep_think>")),
        ("", ["[reason]", "[/reason]"], ("[reason]", "[/reason]")),
        ("", ["<|begin_of_reasoning|>", "<|end_of_reasoning|>"], ("<|begin_of_reasoning|>", "<|end_of_reasoning|>")),
        (
            "Write 'Here is my thought process:' and then 'Here is my response:'",
            [],
            ("Here is my thought process:", "Here is my response:"),
        ),
    ],
)
def test_marks_come_from_the_template_and_the_added_tokens(template: str, tokens: list[str], marks: tuple) -> None:
    found = thought_marks(template, tokens)
    assert marks in found
    assert marks not in THOUGHT_MARKS
    assert ends_in_thought(f"<|assistant|>{marks[0]}\n", found)
    assert not ends_in_thought(f"<|assistant|>{marks[0]}\n{marks[1]}", found)
    assert not ends_in_thought("<|assistant|>", found)


def test_a_template_without_thoughts_has_the_known_marks() -> None:
    assert thought_marks("{{ messages }} </p> [/INST]", ["<|im_end|>"]) == THOUGHT_MARKS
