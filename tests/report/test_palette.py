"""One colour for a stage, a condition or a context, from picture to picture."""

import pytest

from stepalign.report.figures import Curve, Panel, draw_panels
from stepalign.report.palette import COLOURS, STAGES, look, numbers


@pytest.mark.parametrize("others", [(), ("grpo", "mine"), ("a", "b", "c", "d", "e", "f", "g")])
def test_a_known_name_has_one_colour_beside_any_others(others: tuple[str, ...]) -> None:
    found = numbers([*others, "lab/refsol", "stepalign-3"])
    assert numbers(["real-refsol-reverse-0"]) == {
        "real-refsol-reverse-0": numbers(["refsol-reverse"])["refsol-reverse"]
    }
    assert found["lab/refsol"] == numbers(["refsol"])["refsol"]
    assert found["stepalign-3"] == numbers(["stepalign"])["stepalign"]
    assert len(set(found.values())) == len(found)
    first_six = list(found.values())[:6] if len(found) <= 6 else []
    assert len({look(number)[0] for number in first_six}) == len(first_six)


def test_a_variant_has_its_conditions_colour_and_another_line() -> None:
    found = numbers(["stepalign", "refsol", "grpo", "stepalign-reverse", "refsol-reverse"])
    looks = {label: look(number) for label, number in found.items()}
    assert looks["stepalign"][0] == looks["stepalign-reverse"][0]
    assert len({line for _, line, _ in looks.values()}) == len({marker for _, _, marker in looks.values()}) == 5


def test_two_runs_of_one_name_differ() -> None:
    assert len(set(numbers(["refsol-0", "refsol-1"]).values())) == 2


def test_every_stage_has_a_colour_of_its_own() -> None:
    assert len({COLOURS[number] for number in STAGES.values()}) == len(STAGES)


@pytest.mark.parametrize("values", [(1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (0.2, 0.99)])
def test_the_axis_of_a_share_ends_at_0_and_100_percent(values: tuple[float, ...]) -> None:
    (axes,) = draw_panels([Panel("Pass@12", "share", [Curve("a", (0, 1), values, values, values)])]).axes
    low, high = axes.get_ylim()
    assert 0 <= low < high <= 1
    assert low <= min(values)
    assert max(values) <= high
