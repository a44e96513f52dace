import random
import time
from fractions import Fraction

import pytest

from stepalign.critics.arithmetic.equations import evaluate, find_equations, find_numbers


def false(text: str) -> list[tuple[str, str]]:
    return [(left.text, right.text) for chain in find_equations(text) for left, right in chain.false_links()]


def results(text: str) -> list[Fraction | None]:
    return [chain.result for chain in find_equations(text)]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("47 + 38 = 85", "85"),
        ("$12 \\times 3 = 36$", "36"),
        ("so 3*4=12.", "12"),
        ("12/60 = $0.2 per minute", "0.2"),
        ("(3 + 4) * 2 = 14", "14"),
        ("1,200 - 50 = 1150", "1150"),
        ("1{,}200 - 50 = 1{,}150", "1150"),
        ("2 + 3 = 5 + 1 = 6", "6"),
        ("30% of 160 = 48 emails", "48"),
        ("30 percent of 160 = 48", "48"),
        ("40\\% \\cdot 200 = 80", "80"),
        ("20/80 = 25%", "0.25"),
        ("1/2 of 48 = 24", "24"),
        ("20 sheep + 160 sheep + 80 sheep = 260 sheep", "260"),
        ("$5/glass * 16 glasses = $80", "80"),
        ("2 GB/minute x 3 minutes = 6 GB", "6"),
        ("4 times 20 sheep = 80 sheep", "80"),
        ("48 divided by 2 = 24", "24"),
        ("\\frac{60}{100} \\times 5 = 3", "3"),
        ("2(3 + 4) = 14", "14"),
        ("3^2 + 2³ = 17", "17"),
        ("-3 + 4 = 1", "1"),
        ("5 − 8 = −3", "-3"),
        ("- 3 + 4 = 7", "7"),
        ("1. 3 + 4 = 7", "7"),
        ("**47 + 38 = 85**", "85"),
        ("$$\n12 + 3\n= 15\n$$", "15"),
        ("x = 5 + 3 = 8", "8"),
        ("The total 85 = 47 + 38.", "85"),
        ("10/3 = 3.33", "3.33"),
        ("7 / 2 = 4 buses", "4"),
        ("33.33 * 3 = 100", "100"),
        ("22/7 ≈ 3.1", "3.1"),
        ("3+4 = \\boxed{7}", "7"),
        ("for a total of 16 * 7 = 112", "112"),
    ],
)
def test_a_true_equation_is_found_and_holds(text: str, result: str) -> None:
    assert results(text) == [Fraction(result)]
    assert false(text) == []


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("47 + 38 = 75", [("47 + 38", "75")]),
        ("3x4=13", [("3x4", "13")]),
        ("2 + 3 = 6 + 1 = 7", [("2 + 3", "6 + 1")]),
        ("2 + 3 = 5 + 1 = 7", [("5 + 1", "7")]),
        ("(3+4)*2 = 8*2 = 16", [("(3+4)*2", "8*2")]),
        ("1,200 - 50 = 1,140", [("1,200 - 50", "1,140")]),
        ("10/3 = 3.53", [("10/3", "3.53")]),
        ("30% of 160 = 58", [("30% of 160", "58")]),
        ("47.5 + 38 = 85", [("47.5 + 38", "85")]),
        ("85 = 47 + 39", [("85", "47 + 39")]),
        ("48/2 = $<<48/2=23>>24", [("48/2", "23")]),
        ("48/2 = $<<48/2=24>>23", [("48/2", "23")]),
    ],
)
def test_a_false_equation_is_told_by_the_link_that_does_not_hold(text: str, links: list[tuple[str, str]]) -> None:
    assert false(text) == links


@pytest.mark.parametrize(
    "text",
    [
        "x + 3 = 9",
        "3x + 2 = 12",
        "2 k + 1 = 9",
        "x = \\frac{760 - 6k}{2} = 5",
        "f(2+3) = 7",
        "\\sqrt{3 + 4} = 9",
        "half of 48 + 2 = 26",
        "8 packs of 5 bags * $4 = $160",
        "Profit - 3 + 4 = 10",
        "17 / 5 = 3 remainder 2",
        "2 * 60 = 1 hour 60 minutes",
        "500 * 10 = 5 thousand",
        "12 ÷ 0 = 5",
        "4 = 5",
        "9^{9999999} = 3",
        "(2^{999})^{999} = 3",
        "Step 1 - 3 + 4 = 8",
        "3 + 4 <= 5 + 1",
        "3 + 4 => 8",
        "12:30 + 2 = 14:30",
    ],
)
def test_what_arithmetic_alone_cannot_judge_is_left_unjudged(text: str) -> None:
    assert false(text) == []
    assert results(text) in ([], [None])


def test_random_expressions_have_the_value_that_exact_arithmetic_gives() -> None:
    rng = random.Random(0)
    for _ in range(300):
        terms = [f"{rng.randint(1, 99)}{rng.choice('*/')}{rng.randint(1, 99)}" for _ in range(rng.randint(1, 4))]
        text = "".join(rng.choice("+-") + term for term in terms).lstrip("+-")
        exact = eval(text.translate({ord("/"): "*one/"}), {"one": Fraction(1)})
        assert evaluate(f"({text})") == exact


def test_numbers_in_names_are_none() -> None:
    text = "### Step 2: on the 3rd of x2 and 4y at 12:30\n1. take 1,250 of 7.5 or 8"
    assert [number.text for number in find_numbers(text)] == ["1,250", "7.5", "8"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", "18"), ("$18.00", "18"), ("1,200 apples", "1200"), ("\\frac{3}{4}", "0.75"), ("75\\%", "75"),
        ("-5", "-5"), ("85 \\text{ apples}", "85"), ("85.", "85"), ("x", None), ("", None), ("3 and 4", None),
        ("\\text{Infinitely many}", None), ("1/0", None),
    ],
)  # fmt: skip
def test_a_final_answers_value(text: str, expected: str | None) -> None:
    assert evaluate(text) == (None if expected is None else Fraction(expected))


def processor_seconds(text: str) -> float:
    """The least of three runs, in processor time of this process: a loaded machine does not count."""

    def once() -> float:
        find_equations.cache_clear()
        start = time.process_time()
        false(text)
        find_numbers(text)
        return time.process_time() - start

    return min(once() for _ in range(3))


@pytest.mark.parametrize(
    "piece",
    [
        "(", "1+", "(1+", "1" * 9, "1,234", "234,", "= ", "1 = ", "\\frac{", "<<", "1(2", "3 apples ", "-", "9^",
        "\\text{", "9^{999}*", "1 = \n\n\n", "a" * 9, " " * 9,
    ],
)  # fmt: skip
def test_hostile_text_is_read_in_linear_time(piece: str) -> None:
    short, long = (piece * number + "1=1" for number in (125, 2_000))
    # 16 times as long: a linear reader takes 16 times as long, a quadratic one 256 times.
    assert processor_seconds(long) < 64 * processor_seconds(short) + 0.01
