"""Boxes, and the tokens of a span."""

import random

import pytest

from stepalign.records import Rollout
from stepalign.trace import boxed, parse_rollout, step_spans, token_span


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("no box", ()),
        ("\\boxed{5} and \\boxed{\\frac{1}{2}}", ("5", "\\frac{1}{2}")),
        ("\\boxed {5}", ("5",)),
        ("\\boxed{\\{1, 2\\}}", ("\\{1, 2\\}",)),
        ("\\boxed{a \\} b}", ("a \\} b",)),
        ("\\boxed{\\boxed{5}}", ("\\boxed{5}",)),
        ("\\boxed{x \\boxed{5}", ("5",)),
        ("} { \\boxed{5}", ("5",)),
        ("\\boxed{5", ()),
        ("\\boxed5", ()),
        ("\\\\boxed{5}", ("5",)),
        ("a \\\\ \\boxed{5}", ("5",)),
        ("\\boxed{}", ("",)),
    ],
)
def test_boxes_are_found_with_their_braces_balanced(text, contents):
    assert boxed(text) == contents


def rollout(*tokens: str | tuple[str, int]) -> Rollout:
    """A rollout of these tokens; ("é", 2) is a character that two tokens make up."""
    text, starts = "", []
    for token in tokens:
        piece, count = token if isinstance(token, tuple) else (token, 1)
        starts += [len(text)] * count
        text += piece
    return Rollout(
        id="r",
        problem_id="p",
        completion_ids=tuple(range(len(starts))),
        text=text,
        token_starts=tuple(starts),
        finish="stop",
    )


def test_a_span_holds_the_tokens_whose_text_it_overlaps():
    abc = rollout("ab", "c", "def", "")  # the last one is an EOS
    assert token_span(abc, 0, 6) == (0, 3)
    assert token_span(abc, 0, 2) == (0, 1)
    assert token_span(abc, 1, 3) == (0, 2)
    assert token_span(abc, 2, 3) == (1, 2)
    assert token_span(abc, 3, 4) == (2, 3)
    assert token_span(abc, 5, 6) == (2, 3)
    assert token_span(abc, 3, 3) == (2, 2)


def test_every_token_of_a_split_character_is_in_its_span():
    smile = rollout("a", ("🙂", 3), "b")
    assert token_span(smile, 1, 2) == (1, 4)
    assert token_span(smile, 0, 1) == (0, 1)
    assert token_span(smile, 2, 3) == (4, 5)
    assert token_span(smile, 0, 3) == (0, 5)


def test_spans_agree_with_their_definition():
    chance = random.Random(1)
    for _ in range(300):
        pieces = [chance.choice(["a", "bc", "def", ("🙂", 2), ("é", 3)]) for _ in range(chance.randrange(1, 8))]
        sample = rollout(*pieces, "")
        starts = sample.token_starts
        ends = [*starts[1:], len(sample.text)]
        for start in range(len(sample.text)):
            for end in range(start + 1, len(sample.text) + 1):
                overlapping = [
                    i for i in range(len(starts)) if (ends[i] > start and starts[i] < end) or start <= starts[i] < end
                ]
                assert token_span(sample, start, end) == (overlapping[0], overlapping[-1] + 1)


def test_a_step_behind_the_final_answer_ends_with_the_text():
    text = "### Step 1: a\nx\n### Final Answer\n\\boxed{5}\n### Step 2: b\ny"
    sample = rollout(*text, "")
    second, answer = text.index("### Step 2"), text.index("### Final")
    assert step_spans(sample, parse_rollout(sample)) == ((0, answer), (second, len(text) + 1), (answer, second))


@pytest.mark.parametrize("span", [(-1, 1), (2, 1), (0, 7)])
def test_a_span_outside_the_text_is_refused(span):
    with pytest.raises(ValueError, match="of a text with 6"):
        token_span(rollout("ab", "cdef"), *span)
