import time

import pytest

from stepalign.critics.arithmetic.words import in_figures


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("thirteen plus seven equals twenty-one", "13 plus 7 = 21"),
        ("The sum of thirteen and seven is twenty.", "The (13 + 7) = 20."),
        ("one hundred and five times two gives two hundred ten", "105 times 2 = 210"),
        ("Adding 13 apples to 7 apples gives 20.", "(13 apples + 7 apples) = 20."),
        ("3 subtracted from 10 is 7", "(10 - 3) = 7"),
        ("So 9 is 3 + 6", "So 9 = 3 + 6"),
        ("half of 10 plus 2 is 7", "1/2 of 10 plus 2 = 7"),
        ("5 squared", "5^2"),
        ("13 + 7 = *20*", "13 + 7 = 20"),
    ],
)
def test_an_equation_in_words_is_written_in_figures(text: str, expected: str) -> None:
    assert in_figures(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "She has two dogs.",
        "3 + 4 = 7 gives $35",
        "2 + 3 eggs make 24 cakes",
        "the remainder when 17 + 2 is 19",
        "Since 3/4 is $15, then 1/4 is $5.",
        "one two three",
        "a 2 x 4 piece of wood is $4 / 200",
    ],
)
def test_other_words_stay(text: str) -> None:
    assert in_figures(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        "one ",
        "one hundred and ",
        "1 is 2 ",
        "sum of 1 ",
        "1 + 2 is 3 ",
        "1 and 2 ",
        "*1*",
        "a b 1 c d is 2 ",
        "1 -> 2 ",
    ],
)
def test_hostile_text_is_rewritten_in_linear_time(piece: str) -> None:
    def seconds(number: int) -> float:
        start = time.process_time()
        in_figures(piece * number)
        return time.process_time() - start

    short, long = (min(seconds(number) for _ in range(3)) for number in (100, 1_600))
    assert long < 64 * short + 0.01
