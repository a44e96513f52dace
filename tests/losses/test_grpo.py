"""The policy gradient against whole logits in float64, and by hand."""

import math

import pytest
import torch

from stepalign.losses.grpo import Clip, advantages, policy_gradient

TOKENS, HIDDEN, VOCAB = 13, 8, 37


def tensors(dtype=torch.float32):
    """Hidden states, a head, sampled tokens, advantages of both signs, weights, and two other policies' thoughts."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    head = torch.randn(VOCAB, HIDDEN, generator=generator)
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    advantage = torch.randn(TOKENS, generator=generator)
    weights = torch.rand(TOKENS, generator=generator)
    own = (hidden @ head.T / 1.2).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    old, base = (own + 0.4 * torch.randn(TOKENS, generator=generator) for _ in range(2))
    return hidden.to(dtype), head.to(dtype), targets, advantage, weights, old, base


def reference(
    hidden, head, targets, advantage, weights, *, temperature, clip=(0.2, None), kl_coef=0.0, old=None, base=None
):
    """The loss from whole logits, for autograd."""
    log_probs = (hidden @ head.T / temperature).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    ratio = (log_probs - (log_probs.detach() if old is None else old.double())).exp()
    low, high = clip[0], clip[0] if clip[1] is None else clip[1]
    per_token = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if kl_coef:
        gap = base.double() - log_probs
        per_token = per_token + kl_coef * (gap.exp() - gap - 1)
    return (weights * per_token).sum()


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({}, ()),
        ({}, ("old",)),
        ({"clip": Clip(0.1, 0.3)}, ("old",)),
        ({"kl_coef": 0.5}, ("base",)),
        ({"kl_coef": 0.5, "chunk_tokens": 5}, ("old", "base")),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 1.2])
def test_loss_and_gradient_equal_whole_logits_in_float64(settings, given, temperature):
    hidden, head, targets, advantage, weights, old, base = tensors()
    others = {name: value for name, value in (("old", old), ("base", base)) if name in given}
    plainly = {name: value for name, value in settings.items() if name != "chunk_tokens"}

    plain = hidden.double().requires_grad_()
    expected = reference(
        plain,
        head.double(),
        targets,
        advantage.double(),
        weights.double(),
        temperature=temperature,
        **plainly,
        **others,
    )
    expected.backward()

    ours = hidden.clone().requires_grad_()
    loss, metrics = policy_gradient(
        ours, head, targets, advantage, weights, temperature=temperature, **settings,
        **{f"{name}_log_probs": value for name, value in others.items()},
    )  # fmt: skip
    (3 * loss).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), 3 * plain.grad, rtol=1e-4, atol=1e-5)

    whole = (hidden.double() @ head.double().T / temperature).log_softmax(-1)
    torch.testing.assert_close(metrics.log_probs.double(), whole.gather(-1, targets[:, None])[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(metrics.entropy.double(), -(whole.exp() * whole).sum(-1), rtol=0, atol=1e-5)
    assert metrics.kl.isnan().all() == ("base" not in given)


def test_the_clip_stops_what_has_gone_far_enough_and_only_that():
    # Probabilities by hand: two entries, logits (0, 0), so p = 1/2 of each; old says 1/4 or 1, ratios 2 and 1/2.
    hidden = torch.zeros(4, 1, requires_grad=True)
    head = torch.tensor([[1.0], [-1.0]])
    old = torch.tensor([0.25, 0.25, 1.0, 1.0]).log()
    loss, metrics = policy_gradient(
        hidden,
        head,
        torch.zeros(4, dtype=torch.long),
        torch.tensor([1.0, -1.0, 1.0, -1.0]),
        torch.ones(4),
        clip=Clip(0.2),
        temperature=1.0,
        old_log_probs=old,
    )
    loss.backward()
    assert metrics.clipped.tolist() == [1, 0, 0, 1]
    # −min(2, 1.2), −min(−2, −1.2), −min(0.5, 0.8), −min(−0.5, −0.8)
    assert loss.item() == pytest.approx(-1.2 + 2 - 0.5 + 0.8)
    # d log p / d hidden = 1 − (p − (1 − p)) = 1; the slope is −ratio · advantage where nothing clips.
    assert hidden.grad.flatten().tolist() == pytest.approx([0, 2, -0.5, 0])


def test_advantages_by_hand():
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    std = math.sqrt((0.75**2 + 3 * 0.25**2) / 3)
    assert found[0].tolist() == pytest.approx([0.75 / (std + 1e-4), *[-0.25 / (std + 1e-4)] * 3])
    assert found[1].tolist() == [0, 0, 0, 0]


def test_a_weight_in_half_precision_gives_the_same_within_its_rounding():
    hidden, head, targets, advantage, weights, old, _ = tensors(torch.bfloat16)
    exact = hidden.double().requires_grad_()
    expected = reference(exact, head.double(), targets, advantage.double(), weights.double(), temperature=1.2, old=old)
    expected.backward()
    ours = hidden.clone().requires_grad_()
    loss, _ = policy_gradient(ours, head, targets, advantage, weights, temperature=1.2, old_log_probs=old)
    loss.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=2e-2, atol=1e-2)


def test_a_kl_without_a_base_is_refused():
    hidden, head, targets, advantage, weights, *_ = tensors()
    with pytest.raises(ValueError, match=r"kl_coef = 0\.1, but base_log_probs is None"):
        policy_gradient(hidden, head, targets, advantage, weights, kl_coef=0.1, temperature=1.0)
