"""Token advantages against the formulas written out in float64."""

import math

import pytest
import torch

from stepalign.losses.advantages import Modulation, conserve, contrast, gather_steps, modulate

GENERATOR = torch.Generator().manual_seed(0)
ADVANTAGE = torch.randn(200, generator=GENERATOR, dtype=torch.float64)
ADVANTAGE[::10] = 0.0
CREDIT = 3 * torch.randn(200, generator=GENERATOR, dtype=torch.float64)
CREDIT[::7] = 0.0
CREDIT[3], CREDIT[4] = 1e4, -1e4


def written_out(advantage: float, credit: float, one: Modulation) -> float:
    sign = (advantage > 0) - (advantage < 0)
    if abs(credit) <= one.min_credit:
        credit = 0.0
    if one.mode == "add":
        moved = sign * (advantage + one.weight * math.tanh(one.scale * credit))
        return sign * max(moved, min(one.min_advantage, abs(advantage)))
    exponent = sign * one.scale * credit
    factor = min(max(math.exp(min(exponent, 700)), 1 - one.clip), 1 + one.clip)
    return advantage * (1 - one.weight + one.weight * factor)


@pytest.mark.parametrize(
    "settings",
    [
        Modulation(),
        Modulation(weight=1.0, clip=0.9, scale=0.3),
        Modulation(mode="add"),
        Modulation(mode="add", weight=2.0, scale=0.5, min_credit=0.5, min_advantage=0.1),
        Modulation(min_credit=1.0),
    ],
)
def test_the_modulation_equals_its_formula_keeps_the_sign_and_is_bounded(settings: Modulation) -> None:
    found = modulate(ADVANTAGE, CREDIT, settings)
    expected = [written_out(a, c, settings) for a, c in zip(ADVANTAGE.tolist(), CREDIT.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert (found.sign() == ADVANTAGE.sign()).all(), "the grade decides the direction"
    bound = ADVANTAGE.abs() * (1 + settings.weight * settings.clip)
    if settings.mode == "add":
        bound = ADVANTAGE.abs() + settings.weight
    assert (found.abs() <= bound + 1e-12).all()
    unmoved = CREDIT.abs() <= settings.min_credit
    torch.testing.assert_close(found[unmoved], ADVANTAGE[unmoved])
    # A token that the teacher likes gains in a right rollout and is blamed less in a wrong one.
    assert (found >= ADVANTAGE - 1e-12)[CREDIT > 0].all()
    assert (found <= ADVANTAGE + 1e-12)[CREDIT < 0].all()


def test_no_weight_is_the_plain_advantage() -> None:
    for mode in ("add", "multiply"):
        torch.testing.assert_close(modulate(ADVANTAGE, CREDIT, Modulation(mode=mode, weight=0.0)), ADVANTAGE)


def test_steps_share_their_credit() -> None:
    credit = torch.tensor([9.0, 1.0, 3.0, -4.0, 2.0, 5.0], dtype=torch.float64)
    steps = [(1, 3), (3, 6)]
    assert gather_steps(credit, steps, "step_mean").tolist() == [9, 2, 2, 1, 1, 1]
    assert gather_steps(credit, steps, "step_min").tolist() == [9, 1, 1, -4, -4, -4]
    assert gather_steps(credit, steps, "token") is credit
    assert gather_steps(credit, [], "step_mean").tolist() == pytest.approx([16 / 6] * 6)
    assert gather_steps(credit, [(0, 6)], "step_min").tolist() == [-4] * 6
    assert gather_steps(credit, [(0, 3), (3, 3), (3, 6)], "step_min").tolist() == [1, 1, 1, -4, -4, -4]
    assert gather_steps(credit[:0], [], "step_mean").tolist() == []


def test_a_spread_advantage_keeps_its_mean() -> None:
    spread = conserve(modulate(torch.full((50,), -0.7), CREDIT[:50].float(), Modulation(clip=0.9)), -0.7)
    assert spread.mean().item() == pytest.approx(-0.7)
    assert (spread < 0).all()
    assert conserve(torch.zeros(3), 0.0).tolist() == [0, 0, 0]


def test_the_contrast_is_with_the_mean_probability_of_the_wrong_contexts() -> None:
    right, wrong = -torch.rand(20, dtype=torch.float64), -3 * torch.rand(4, 20, dtype=torch.float64)
    expected = right - wrong.exp().mean(0).log()
    torch.testing.assert_close(contrast(right, wrong), expected)
    torch.testing.assert_close(contrast(right, wrong[:1]), right - wrong[0])
    assert contrast(torch.tensor([-1.0]), torch.tensor([[-2e4], [-3e4]])).isfinite().all(), "no underflow"
