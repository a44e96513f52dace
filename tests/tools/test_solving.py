"""The texts that the lab's solver learnt from: derivations, slips, what follows from them."""

import re
from random import Random

import pytest

from stepalign.data import sums
from stepalign.lab.behaviour import DERIVATIONS, read
from tools.lab_solver import solving
from tools.lab_solver.solving import ALONE, SHOWN, write

EQUATION = re.compile(r"(Wait: )?(\d+) \+ (\d+) = (\d+)")


def test_without_slips_a_text_is_the_reference_solution_of_its_derivation() -> None:
    terms = [7, 2, 9, 4, 5, 6]
    for derivation in DERIVATIONS:
        steps = sums.derivations(terms)[derivation]
        text, answer = write(terms, derivation)
        assert answer == sum(terms)
        assert [match[0] for match in EQUATION.finditer(text)] == [step.equation for step in steps]
        assert all(f"### Step {k}: {step.text}\n" in text for k, step in enumerate(steps, start=1))


def test_slips_come_at_their_rates_and_are_carried_on() -> None:
    random = Random(0)
    slips = mends = total = 0
    for _ in range(400):
        text, answer = write([3, 8, 6, 9, 1, 7], "left to right", random)
        before = result = None
        for doubted, left, right, stated in EQUATION.findall(text):
            if result is not None:
                assert int(left) == (before if doubted else result)
            before, result = int(left), int(stated)
            if doubted:
                mends += 1
                assert int(left) + int(right) == int(stated)
            else:
                total += 1
                slips += int(left) + int(right) != int(stated)
        assert text.endswith(f"\\boxed{{{answer}}}")
        assert result == answer
    assert slips / total == pytest.approx(ALONE.slip, abs=0.03)
    assert mends / slips == pytest.approx(ALONE.correction, abs=0.06)


def test_an_equation_that_is_shown_is_seldom_slipped() -> None:
    terms, random = [3, 8, 6, 9, 1, 7], Random(1)
    shown = frozenset(step.equation for step in sums.derivations(terms)["pairs"])
    wrong = sum(write(terms, "pairs", random, shown)[1] != sum(terms) for _ in range(400))
    assert wrong / 400 == pytest.approx(1 - (1 - SHOWN.slip * (1 - SHOWN.correction)) ** 5, abs=0.03)


def test_a_slip_is_one_digit_off_and_never_negative() -> None:
    random = Random(2)
    for result in range(2, 60):
        for _ in range(20):
            assert abs(solving._slip(result, random) - result) in (1, 10)
            assert solving._slip(result, random) >= 0


def test_a_solution_is_read_as_it_was_written() -> None:
    random, terms = Random(3), [7, 2, 9, 4, 5]
    for derivation in DERIVATIONS:
        for _ in range(50):
            text, answer = write(terms, derivation, random)
            attempt = read(text, terms)
            assert (attempt.on_derivation, attempt.equations) == (True, 4)
            assert attempt.uncorrected <= attempt.slips == text.count("Wait: ") + attempt.uncorrected
            assert attempt.uncorrected > 0 or answer == sum(terms)
