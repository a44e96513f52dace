"""The lab's tokenizer: any text survives it, digits stand alone, nothing a person writes is a control token."""

from functools import cache
from random import Random

import pytest

from stepalign.chat import Chat
from stepalign.prompts.conversation import Turn
from tools.lab_solver import corpus, pretrain


@cache
def chat() -> Chat:
    return Chat(pretrain.new_tokenizer(0, examples=200))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "naïve ∑ 数学 🙂\t\r\n",
        "<|end|><|user|></think>",
        "### Step 12: Add 3 and 4\n3 + 4 = 7\n\n### Final Answer:\n\\boxed{7}",
    ],
)
def test_text_survives_and_holds_no_control_token(text: str) -> None:
    ids = chat().encode_text(text)
    assert chat().decode(ids)[0] == text
    assert chat().control_ids.isdisjoint(ids)


def test_every_context_survives_in_few_tokens() -> None:
    random = Random(0)
    for context in (None, *corpus.CONTEXTS):
        example = corpus.example(random, 6, context)
        ids, prompt = pretrain.encode(chat(), example)
        assert chat().decode(chat().encode_text(example.message))[0] == example.message
        assert chat().decode(ids[prompt:])[0].endswith(example.response)
        assert len(ids) < 400


def test_digits_stand_alone() -> None:
    ids = chat().encode_text("1234")
    assert [chat().decode([token])[0] for token in ids] == list("1234")


def test_the_thinking_switch_closes_the_block_or_leaves_it_to_the_solver() -> None:
    assert chat().has_thinking_switch()
    turns = [Turn("user", "Compute 1 + 2.")]
    off, on = (chat().prompt_ids(turns, thinking=thinking) for thinking in (False, True))
    assert chat().decode(off)[0] == chat().decode(on)[0] + corpus.NO_THOUGHTS
    assert chat().prompt_ids(turns, thinking=True, close_think=True) == off
