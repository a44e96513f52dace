"""The sampled token's policy gradient and the importance correction, against float64 formulas written out."""

import inspect

import pytest
import torch

from stepalign.losses.divergence import divergence
from stepalign.losses.importance import ImportanceSampling
from stepalign.losses.sampled_token import SampledToken
from stepalign.losses.support import FullVocabulary
from stepalign.losses.top_k import TopK

HIDDEN, VOCAB = 8, 37
LENGTHS = [4, 1, 6]
TOKENS = sum(LENGTHS)


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(TOKENS, HIDDEN, generator=generator) for _ in range(2))
    head = torch.randn(VOCAB, HIDDEN, generator=generator)
    weights = torch.rand(TOKENS, generator=generator) + 0.1
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    return student, teacher, head, weights, targets


def log_probs(hidden, head, targets, temperature=1.0):
    return (hidden @ head.T / temperature).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def evaluate(function, student, *inputs, **options):
    student = student.detach().clone().requires_grad_()
    result = function(student, *inputs, **options)
    loss = result[0] if isinstance(result, tuple) else result
    loss.backward()
    return loss.detach(), student.grad


def advantages(own, discount):
    """A_t = Σ_{s≥t} γ^(s−t)·a_s within each sequence, term by term."""
    result = []
    for values in torch.split(own, LENGTHS):
        for t in range(len(values)):
            result.append(sum(discount ** (s - t) * values[s] for s in range(t, len(values))))
    return torch.stack(result)


def reference(student_hidden, teacher_hidden, head, weights, targets, support):
    student = log_probs(student_hidden, head, targets, support.student_temperature)
    own = log_probs(teacher_hidden, head, targets, support.teacher_temperature) - student.detach()
    if support.clip_value is not None:
        own = own.clamp(-support.clip_value, support.clip_value)
    return -(weights.double() * advantages(own, support.discount) * student).sum()


@pytest.mark.parametrize("clip", [None, 0.5, 5.0])
@pytest.mark.parametrize("discount", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.7, 1.6)])
def test_value_and_gradient_equal_the_formula_written_out(clip, discount, temperatures):
    support = SampledToken(
        clip_value=clip,
        discount=discount,
        student_temperature=temperatures[0],
        teacher_temperature=temperatures[1],
    )
    student, teacher, head, weights, targets = tensors()
    double = [tensor.double() for tensor in (student, teacher, head)]
    expected, expected_gradient = evaluate(reference, *double, weights, targets, support)
    options = {"targets": targets, "lengths": LENGTHS, "chunk_tokens": 4}
    exact, exact_gradient = evaluate(divergence, *double, weights, support, **options)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exact_gradient, expected_gradient, rtol=1e-11, atol=1e-12)
    loss, gradient = evaluate(divergence, student, teacher, head, weights, support, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-5)


def test_in_expectation_over_samples_the_gradient_is_that_of_reverse_kl():
    student, teacher, head, _, _ = (tensor.double() for tensor in tensors())
    student, teacher = student[:1], teacher[:1]
    probabilities = (student @ head.T).softmax(-1)[0]
    _, expected = evaluate(divergence, student, teacher, head, torch.ones(1), FullVocabulary(beta=1.0))
    found = sum(
        p * evaluate(divergence, student, teacher, head, torch.ones(1), SampledToken(), targets=torch.tensor([y]))[1]
        for y, p in enumerate(probabilities)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_token_without_weight_lends_nothing_to_those_before_it():
    student, teacher, head, weights, targets = tensors()
    weights[2] = 0
    support = SampledToken(discount=0.9)
    options = {"targets": targets, "lengths": LENGTHS}
    clean = evaluate(divergence, student, teacher, head, weights, support, **options)
    student[2] = torch.nan
    found = evaluate(divergence, student, teacher, head, weights, support, **options)
    for one, other in zip(found, clean, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_sampled_ids_are_needed():
    unchecked = inspect.unwrap(divergence)
    student, teacher, head, weights, _ = tensors()
    with pytest.raises(ValueError, match="targets is None"):
        unchecked(student, teacher, head, weights, SampledToken())


SUPPORTS = {
    "full": FullVocabulary(beta=0.5),
    "top-k": TopK(top_k=4, clip_mode="token", clip_value=1.0),
    "sampled": SampledToken(discount=0.5),
}


@pytest.mark.parametrize("support", SUPPORTS.values(), ids=SUPPORTS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("cap", [1.1, 2.0, 1e9])
def test_the_importance_ratio_scales_each_token_s_loss_and_gradient(support, level, cap):
    student, teacher, head, weights, targets = (tensor.double() for tensor in tensors())
    targets = targets.long()
    old = log_probs(student, head, targets) + 0.5 * torch.randn(TOKENS, generator=torch.Generator().manual_seed(1))
    gap = log_probs(student, head, targets) - old
    if level == "sequence":
        gap = torch.cat([values.sum().repeat(len(values)) for values in torch.split(gap, LENGTHS)])
    ratios = gap.exp().clamp(max=cap)
    assert (ratios < gap.exp()).any() or cap == 1e9
    options = {"targets": targets, "lengths": LENGTHS, "chunk_tokens": 4}
    expected, expected_gradient = evaluate(divergence, student, teacher, head, weights * ratios, support, **options)
    correction = {"importance": ImportanceSampling(level=level, cap=cap), "sampled_log_probs": old}
    loss, gradient = evaluate(divergence, student, teacher, head, weights, support, **options, **correction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-12)
    _, metrics = divergence(student, teacher, head, weights, support, **options, **correction)
    torch.testing.assert_close(metrics.importance_ratio, ratios)


def test_the_policy_that_sampled_has_a_ratio_of_one():
    student, teacher, head, weights, targets = tensors()
    plain = evaluate(divergence, student, teacher, head, weights)
    importance = ImportanceSampling(level="sequence", cap=2.0)
    found = evaluate(divergence, student, teacher, head, weights, targets=targets, importance=importance)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
