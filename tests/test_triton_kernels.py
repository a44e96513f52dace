"""Kernels in Triton's interpreter, or on a GPU, against a float64 reference that is written out here."""

import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
pytest.importorskip("triton", reason="triton is not installed (it comes with torch's CUDA build)")

from triton.runtime import interpreter

from stepalign import triton_kernels as kernels
from stepalign.losses import fused
from stepalign.losses.divergence import divergence
from stepalign.losses.grpo import Clip, policy_gradient
from stepalign.losses.support import FullVocabulary

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_BLOCK", 64)


@pytest.fixture
def _programs_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter take a kernel's last program first: a GPU takes them in any order."""
    builder = interpreter.interpreter_builder
    select = builder.set_grid_idx

    def set_grid_idx(*index: int) -> None:
        select(*(count - 1 - place for count, place in zip(builder.grid_dim, index, strict=True)))

    monkeypatch.setattr(builder, "set_grid_idx", set_grid_idx)


def logits(rows: int, vocab: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (6 * torch.randn(rows, vocab, generator=generator)).to(DEVICE)


def room_of(values: Tensor, dtype: torch.dtype) -> Tensor:
    """View the logits' memory as `lm_head.gradient_room` does on a GPU."""
    return values.view(dtype)[:, : values.shape[1]]


def assert_near(gradient: Tensor, wanted: Tensor, total: Tensor) -> None:
    """Compare to 1e-5 of each row's largest entry, and to float32's own rounding of the divergence."""
    error = (gradient.double() - wanted).abs().amax(-1)
    assert (error <= 1e-5 * wanted.abs().amax(-1) + 5e-7 * (1 + total)).all(), error


def reference(
    student: Tensor, teacher: Tensor, beta: float, temperatures: tuple[float, float], clip: float | None
) -> tuple[Tensor, Tensor]:
    """D a row and its gradient in the student's logits over their temperature, by autograd in float64."""
    scaled = (student.double() / temperatures[0]).requires_grad_()
    log_s, log_t = scaled.log_softmax(-1), (teacher.double() / temperatures[1]).log_softmax(-1)
    if beta == 0:
        share = log_t.exp() * (log_t - log_s)
    elif beta == 1:
        share = log_s.exp() * (log_s - log_t)
    else:
        log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log1p(-beta))
        share = beta * log_t.exp() * (log_t - log_m) + (1 - beta) * log_s.exp() * (log_s - log_m)
    total = (share if clip is None else share.clamp(max=clip)).sum(-1)
    (gradient,) = torch.autograd.grad(total.sum(), scaled)
    return total.detach(), gradient


@pytest.mark.parametrize("clip", [None, 0.02])
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.7, 1.3)])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("vocab", [64, 333])
def test_divergence_and_gradient_are_the_float64_reference_s(
    vocab: int, beta: float, temperatures: tuple[float, float], clip: float | None
) -> None:
    student, teacher = logits(5, vocab, 0), logits(5, vocab, 1)
    total, wanted = reference(student, teacher, beta, temperatures, clip)
    gradient = torch.empty_like(student)
    targets = torch.tensor([0, 7, vocab - 1, 63, 2], device=DEVICE)
    options: dict[str, Any] = {"beta": beta, "temperatures": temperatures, "entry_clip": clip}
    out = kernels.divergence(student, teacher, targets, gradient, **options)
    torch.testing.assert_close(out[0].double(), total, rtol=1e-5, atol=1e-6)
    assert_near(gradient, wanted, total)
    log_s = (student.double() / temperatures[0]).log_softmax(-1)
    log_t = (teacher.double() / temperatures[1]).log_softmax(-1)
    measures = [
        (log_t.exp() * (log_t - log_s)).sum(-1),
        -(log_s.exp() * log_s).sum(-1),
        -(log_t.exp() * log_t).sum(-1),
        (log_s.argmax(-1) == log_t.argmax(-1)).double(),
        log_s.gather(-1, targets[:, None])[:, 0],
        log_t.gather(-1, targets[:, None])[:, 0],
    ]
    torch.testing.assert_close(out[1:].double(), torch.stack(measures), rtol=1e-5, atol=1e-5)
    assert torch.equal(out[0], kernels.divergence(student, teacher, None, None, **options)[0])


@pytest.mark.parametrize("shared", ["student", "teacher"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("_programs_backwards")
def test_the_gradient_may_be_written_over_the_logits(dtype: torch.dtype, beta: float, shared: str) -> None:
    student, teacher = logits(3, 200, 2), logits(3, 200, 3)
    targets = torch.tensor([5, 150, 199], device=DEVICE)
    options: dict[str, Any] = {"beta": beta, "temperatures": (1.0, 1.0), "entry_clip": None}
    wanted = torch.empty_like(student, dtype=dtype)
    out = kernels.divergence(student, teacher, targets, wanted, **options)
    room = room_of(student if shared == "student" else teacher, dtype)
    assert torch.equal(kernels.divergence(student, teacher, targets, room, **options), out)
    assert torch.equal(room, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("_programs_backwards")
def test_a_tokens_gradient_may_be_written_over_the_logits(dtype: torch.dtype) -> None:
    values, targets = logits(3, 333, 7), torch.tensor([5, 150, 332], device=DEVICE)
    log_sums, slopes = values.logsumexp(-1), torch.tensor([1.0, -2.0, 0.5], device=DEVICE)
    wanted = torch.empty_like(values, dtype=dtype)
    kernels.token_gradient(values, targets, log_sums, slopes, wanted)
    room = room_of(values, dtype)
    kernels.token_gradient(values, targets, log_sums, slopes, room)
    assert torch.equal(room, wanted)


def test_equal_models_diverge_by_nothing() -> None:
    student = logits(4, 500, 4)
    gradient = torch.empty_like(student)
    for beta in (0.0, 0.5, 1.0):
        out = kernels.divergence(
            student, student.clone(), None, gradient, beta=beta, temperatures=(1.0, 1.0), entry_clip=None
        )
        assert out[0].abs().max() < 1e-6
        assert gradient.abs().max() < 1e-6
        assert out[4].tolist() == [1.0] * 4
        assert out[5:].isnan().all()


def test_token_scores_and_their_gradient_are_the_float64_reference_s() -> None:
    values, targets = logits(5, 333, 5), torch.tensor([0, 63, 64, 332, 100], device=DEVICE)
    scaled = values.double().requires_grad_()
    log_probs = scaled.log_softmax(-1)
    chosen = log_probs.gather(-1, targets[:, None])[:, 0]
    slopes = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0], device=DEVICE)
    (wanted,) = torch.autograd.grad((chosen * slopes.double()).sum(), scaled)
    out = kernels.token_scores(values, targets)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    expected = torch.stack([chosen, entropy, scaled.logsumexp(-1)]).detach()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    kernels.token_gradient(values, targets, out[2], slopes, values)
    assert_near(values, wanted, slopes.abs())


def test_losses_by_kernels_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, values and gradients, where the kernels are chosen as on a GPU."""
    generator = torch.Generator().manual_seed(6)
    head = torch.randn(150, 8, generator=generator).to(DEVICE)
    teacher = torch.randn(7, 8, generator=generator).to(DEVICE)
    start = torch.randn(7, 8, generator=generator).to(DEVICE)
    weights, targets = torch.rand(7, generator=generator).to(DEVICE), torch.arange(0, 140, 20, device=DEVICE)
    results = []
    for chosen in (None, kernels):
        monkeypatch.setattr(fused, "kernels", lambda *_, chosen=chosen: chosen)
        for support in (
            FullVocabulary(beta=0.3, student_temperature=0.8),
            FullVocabulary(clip_mode="entry", clip_value=0.1),
        ):
            hidden = start.clone().requires_grad_()
            loss, metrics = divergence(hidden, teacher, head, weights, support, targets=targets, chunk_tokens=3)
            loss.backward()
            results.append([loss.detach(), hidden.grad, metrics.entropy_teacher, metrics.log_prob_student])
        hidden = start.clone().requires_grad_()
        advantage = torch.linspace(-1, 1, 7, device=DEVICE)
        loss, scores = policy_gradient(
            hidden, head, targets, advantage, weights, temperature=0.9, clip=Clip(0.2), kl_coef=0.0, chunk_tokens=3
        )
        loss.backward()
        results.append([loss.detach(), hidden.grad, scores.entropy, scores.log_probs])
    for own, judge in zip(results[3:], results[:3], strict=True):
        for value, wanted in zip(own, judge, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)
