"""The negative log-likelihood against autograd in float64."""

import torch

from stepalign.losses.likelihood import negative_log_likelihood


def test_value_and_gradient_equal_whole_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(13, 8, generator=generator), torch.randn(37, 8, generator=generator)
    targets, weights = torch.randint(37, (13,), generator=generator), torch.rand(13, generator=generator)
    plain = hidden.double().requires_grad_()
    expected = -(plain @ head.double().T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (weights.double() * expected).sum().backward()
    ours = hidden.clone().requires_grad_()
    loss, nll = negative_log_likelihood(ours, head, targets, weights, chunk_tokens=5)
    loss.backward()
    torch.testing.assert_close(nll.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.double(), (weights.double() * expected).sum().detach(), rtol=1e-5, atol=1e-5)
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=1e-4, atol=1e-5)
