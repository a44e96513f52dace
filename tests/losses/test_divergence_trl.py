import pytest
import torch

from stepalign.losses.divergence import divergence
from stepalign.losses.support import FullVocabulary

chunked_divergence = pytest.importorskip("trl.kernels.chunked_divergence")


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_equal_those_of_trl(beta, temperature, dtype):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(24, 16, generator=generator).to(dtype) for _ in range(2))
    head = torch.randn(1000, 16, generator=generator).to(dtype)
    weights = torch.rand(24, generator=generator)

    theirs = student.clone().requires_grad_()
    per_token, entropy = chunked_divergence.ChunkedDivergenceFunction.apply(
        theirs, head, None, teacher, head, None, beta, temperature
    )
    expected = (per_token * weights).sum()
    expected.backward()

    ours = student.clone().requires_grad_()
    settings = FullVocabulary(beta=beta, student_temperature=temperature, teacher_temperature=temperature)
    loss, metrics = divergence(ours, teacher, head, weights, settings, chunk_tokens=7)
    loss.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(metrics.entropy_student, entropy, rtol=1e-5, atol=1e-5)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)
    if beta == 0:
        torch.testing.assert_close(metrics.kl_teacher_student, per_token.detach(), rtol=1e-5, atol=1e-5)
