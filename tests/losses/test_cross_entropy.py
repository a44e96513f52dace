import pytest
import torch

from stepalign.losses.cross_entropy import cross_entropy


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient_equal_torch_s_own(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 8, generator=generator).to(dtype)
    head = torch.randn(37, 8, generator=generator).to(dtype)
    targets, weights = torch.randint(37, (11,), generator=generator), torch.rand(11, generator=generator)
    theirs = hidden.detach().double().clone().requires_grad_()
    per_token = torch.nn.functional.cross_entropy(theirs @ head.double().T, targets, reduction="none")
    expected = (weights.double() * per_token).sum()
    expected.backward()

    ours = hidden.detach().clone().requires_grad_()
    loss, metrics = cross_entropy(ours, head, targets, weights, chunk_tokens=4)
    (3 * loss).backward()
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(loss.double(), expected.detach(), **tolerance)
    torch.testing.assert_close(ours.grad.double(), 3 * theirs.grad, **tolerance)
    torch.testing.assert_close(metrics.log_probs.double(), -per_token.detach(), **tolerance)
