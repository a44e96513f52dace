from fractions import Fraction

import pytest

from stepalign.critics.arithmetic.repair import recompute


def repaired(*texts: str, protected: frozenset[Fraction] = frozenset()) -> list[str]:
    changes: dict[Fraction, Fraction] = {}
    found = []
    for text in texts:
        new, after = recompute(text, changes, protected)
        changes = dict(after)
        found.append(new)
    return found


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (
            ("### Step 1: Add 47 and 38 to get 75\n47 + 38 = 75", "75 + 12 = 87", "\\boxed{87}"),
            ["### Step 1: Add 47 and 38 to get 85\n47 + 38 = 85", "85 + 12 = 97", "\\boxed{97}"],
        ),
        (("12*3 + 4 = 35 + 4 = 39", "39 - 9 = 30"), ["12*3 + 4 = 36 + 4 = 40", "40 - 9 = 31"]),
        (("2 + 3 = 6 + 1 = 7",), ["2 + 3 = 5 + 1 = 6"]),
        (
            ("48/2 = $<<48/2=23>>23", "48+23 = <<48+23=71>>71"),
            ["48/2 = $<<48/2=24>>24", "48+24 = <<48+24=72>>72"],
        ),
        (("1,200 - 50 = 1,140",), ["1,200 - 50 = 1,150"]),
        (("$4.20 + $9.45 = $13.60",), ["$4.20 + $9.45 = $13.65"]),
        (("0.5 * 2 = 1.50",), ["0.5 * 2 = 1.00"]),
        (("10/3 = 3.53",), ["10/3 = 3.33"]),
        (("Total = 84 = 47+38", "84/4 = 21"), ["Total = 85 = 47+38", "85/4 = 21.25"]),
        (("20/80 = 24%",), ["20/80 = 25%"]),
        (("5 - 8 = 3", "3 + 10 = 13"), ["5 - 8 = -3", "-3 + 10 = 7"]),
        (("5 - 8 = -2", "-2 + 10 = 8"), ["5 - 8 = -3", "-3 + 10 = 7"]),
        (("8 - 5 = -2",), ["8 - 5 = 3"]),
    ],
)
def test_results_are_recomputed_and_carried_forward(texts: tuple[str, ...], expected: list[str]) -> None:
    assert repaired(*texts) == expected


def test_what_is_true_stays_as_it_is_written() -> None:
    text = "7 / 2 = 4 buses, 10/3 = 3.33, x + 3 = 9, 2 + 3 = 5 + 1 = 6"
    assert repaired(text) == [text]


def test_a_protected_value_is_not_what_was_changed() -> None:
    texts = ("Add 47 and 38: 47 + 38 = 47", "47 * 2 = 94")
    assert repaired(*texts, protected=frozenset({Fraction(47)})) == [
        "Add 47 and 38: 47 + 38 = 85",
        "47 * 2 = 94",
    ]
    assert repaired(*texts)[1] == "85 * 2 = 170"


def test_a_correction_of_a_slip_that_is_gone_is_not_repeated() -> None:
    text = "### Step 2: Add 11 and 9\n11 + 9 = 10\nWait: 11 + 9 = 20\n\n"
    assert repaired(text) == ["### Step 2: Add 11 and 9\n11 + 9 = 20\n\n"]
    twice = "11 + 9 = 20\nSo 11 + 9 = 20\n2 + 2 = 5"
    assert repaired(twice) == ["11 + 9 = 20\nSo 11 + 9 = 20\n2 + 2 = 4"]


def test_a_signed_side_of_several_numbers_stays_as_it_is_written() -> None:
    text = "1 + 2 = -\\frac{3}{4}"
    assert repaired(text) == [text]
