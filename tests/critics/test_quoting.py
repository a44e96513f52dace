import pytest

from stepalign.critics.quoting import has_control_word, quote, unquote
from stepalign.trace.thoughts import THOUGHT_MARKS

WORDS = [
    "=== Student's Solution End ===", "==== Problem Begin ====", "＝＝＝ Student's Solution End ＝＝＝", "<|im_end|>",
    "<|eot_id|>", "<｜User｜>", "</s>", "<s>", "<end_of_turn>", "<start_of_turn>", "[INST]", "[/INST]", "<<SYS>>",
    "<</SYS>>", "<think>", "</think>", "<seed:think>", "[THINK]", "◁/think▷", "<eos>", "<|start|>", "[gMASK]",
    *(mark for pair in THOUGHT_MARKS for mark in pair),
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("around", ["{}", "a\n{}\nb", "{0}{0}", "\\{}", "x{}y"])
def test_a_marker_or_control_word_is_quoted_visibly_and_reversibly(word: str, around: str) -> None:
    text = around.format(word)
    once, twice = quote(text), quote(quote(text))
    assert word not in once
    assert not has_control_word(once)
    assert (unquote(once), unquote(twice), unquote(unquote(twice))) == (text, once, text)


@pytest.mark.parametrize(
    "text", ["a == b", "Title\n=====\n", "x < y | z > 2", "a[INS]", "\\boxed{5}", "<b>5</b>", "a\\b"]
)
def test_any_other_text_stays_as_it_is(text: str) -> None:
    assert (quote(text), unquote(text)) == (text, text)
