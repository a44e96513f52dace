from fractions import Fraction

import pytest

from stepalign.contexts.paraphrase import paraphrase
from stepalign.critics.arithmetic.equations import find_numbers

TEXT = (
    "First a plan.\n### Step 1: Add the eggs\nShe has 3 eggs, so 3 + 4 = 7 and 12*3=$36 in total.\n\n"
    "### Step 2: Half\nThen 7 / 2 = 3.5, $2 \\times 3 = 6$.\n\n### Final Answer:\n\\boxed{3.5}"
)


def test_it_says_the_same_in_other_words() -> None:
    assert paraphrase(TEXT) == (
        "Initial a plan.\nPart 1, on Put together the eggs:\nShe has got 3 eggs, therefore 3 plus 4 makes 7 as well as "
        "12 times 3 makes $36 in sum.\n\nPart 2, on Half:\nAfter that 7 divided by 2 makes 3.5, $2 times 3 makes 6$."
        "\n\nAt last:\n\\boxed{3.5}"
    )


def test_numbers_stay_in_their_order() -> None:
    def values(text: str) -> list[Fraction]:
        return [number.value for number in find_numbers(text)]

    # Its own "Part 1" is read as a number, which a heading's is not.
    text = TEXT[TEXT.index("She") : TEXT.index("\n\n")]
    assert values(paraphrase(text)) == values(text) != []


def test_the_same_text_is_always_paraphrase_the_same() -> None:
    assert paraphrase(TEXT) == paraphrase(TEXT)


@pytest.mark.parametrize("text", ["", "\\frac{a}{b} = x", "no steps, nothing"])
def test_what_has_no_steps_and_no_sums_is_left_or_said_alike(text: str) -> None:
    assert paraphrase(text) == text
