"""The top-k support with its tail, against the formula written out in float64."""

import itertools

import pytest
import torch

from stepalign.losses.divergence import divergence
from stepalign.losses.support import FullVocabulary
from stepalign.losses.top_k import TopK

TOKENS, HIDDEN, VOCAB = 11, 8, 37


def tensors(seed=0, tokens=TOKENS, vocab=VOCAB, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(tokens, HIDDEN, generator=generator) for _ in range(2))
    head = torch.randn(vocab, HIDDEN, generator=generator)
    weights = torch.rand(tokens, generator=generator) + 0.1
    weights[::3] = 0
    return student, teacher, head, weights


def buckets(p, top):
    """The probabilities of the k entries, and one minus their sum."""
    chosen = p.gather(-1, top)
    return torch.cat((chosen, 1 - chosen.sum(-1, keepdim=True)), -1)


def reference(student_hidden, teacher_hidden, head, weights, support):
    """The loss from whole logits, for autograd."""
    p = (student_hidden @ head.T / support.student_temperature).softmax(-1)
    q = (teacher_hidden @ head.T / support.teacher_temperature).softmax(-1).detach()
    top = (p if support.of == "student" else q).topk(support.top_k, -1).indices
    p, q, beta = buckets(p, top), buckets(q, top), support.beta
    if beta == 0:
        entries = q * (q.log() - p.log())
    elif beta == 1:
        entries = p * (p.log() - q.log())
    else:
        m = beta * q + (1 - beta) * p
        entries = beta * q * (q / m).log() + (1 - beta) * p * (p / m).log()
    if support.clip_mode == "entry":
        entries = entries.clamp(max=support.clip_value)
    per_token = entries.sum(-1)
    if support.clip_mode == "token":
        per_token = per_token.clamp(max=support.clip_value)
    return (weights.double() * per_token).sum()


def evaluate(function, student, *inputs, **options):
    student = student.detach().clone().requires_grad_()
    result = function(student, *inputs, **options)
    loss = result[0] if isinstance(result, tuple) else result
    loss.backward()
    return loss.detach(), student.grad


@pytest.mark.parametrize("of", ["student", "teacher"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("clip", "clip_at"), [("none", None), ("token", 0.3), ("entry", 0.05)])
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.7, 1.6)])
def test_value_and_gradient_equal_the_formula_written_out(of, beta, clip, clip_at, temperatures):
    support = TopK(
        top_k=5,
        of=of,
        beta=beta,
        clip_mode=clip,
        clip_value=clip_at,
        student_temperature=temperatures[0],
        teacher_temperature=temperatures[1],
    )
    student, teacher, head, weights = tensors()
    double = [tensor.double() for tensor in (student, teacher, head)]
    expected, expected_gradient = evaluate(reference, *double, weights, support)
    exact, exact_gradient = evaluate(divergence, *double, weights, support, chunk_tokens=4)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exact_gradient, expected_gradient, rtol=1e-11, atol=1e-12)
    loss, gradient = evaluate(divergence, student, teacher, head, weights, support, chunk_tokens=4)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("of", ["student", "teacher"])
def test_a_top_k_of_all_entries_is_the_whole_vocabulary(beta, of):
    student, teacher, head, weights = tensors()
    expected = evaluate(divergence, student, teacher, head, weights, FullVocabulary(beta=beta))
    for top_k in (VOCAB - 1, VOCAB, 10 * VOCAB):
        found = evaluate(divergence, student, teacher, head, weights, TopK(top_k=top_k, of=of, beta=beta))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("of", ["student", "teacher"])
def test_it_grows_with_k_is_never_negative_and_never_overflows(beta, of):
    for seed in range(8):
        scale = 10.0 ** (seed % 4 - 1)  # up to logits of several hundred, where the tail underflows
        student, teacher, head, _ = tensors(seed, scale=scale)
        weights = torch.ones(TOKENS)
        losses = []
        for top_k in (1, 4, 16):
            loss, gradient = evaluate(divergence, student, teacher, head, weights, TopK(top_k=top_k, of=of, beta=beta))
            assert gradient.isfinite().all()
            assert loss >= -1e-6 * TOKENS
            losses.append(loss.item())
        losses.append(divergence(student, teacher, head, weights, FullVocabulary(beta=beta))[0].item())
        assert all(fewer <= more * (1 + 1e-4) + 1e-5 for fewer, more in itertools.pairwise(losses))


def test_a_small_tail_is_summed_not_subtracted():
    # The student's tail holds about 1e-9 of its mass: one minus the rest would be rounding alone in float32.
    student = torch.tensor([[20.0, 0.0, -1.0, -2.0]])
    teacher = torch.tensor([[1.0, 0.0, 0.5, -0.5]])
    support = TopK(top_k=1)
    expected, expected_gradient = evaluate(
        reference, student.double(), teacher.double(), torch.eye(4).double(), torch.ones(1), support
    )
    loss, gradient = evaluate(divergence, student, teacher, torch.eye(4), torch.ones(1), support)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-8)


def test_the_measures_are_those_of_the_whole_vocabulary():
    student, teacher, head, weights = tensors()
    targets = torch.arange(TOKENS)
    measures = [
        divergence(student, teacher, head, weights, support, targets=targets)[1]
        for support in (FullVocabulary(), TopK(top_k=3))
    ]
    for name in ("kl_teacher_student", "entropy_student", "agreement", "log_prob_student", "log_prob_teacher"):
        torch.testing.assert_close(*(getattr(each, name) for each in measures), equal_nan=True)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_nan_is_not_hidden(whose):
    student, teacher, head, weights = tensors()
    (student if whose == "student" else teacher)[1, 0] = torch.nan
    loss, gradient = evaluate(divergence, student, teacher, head, weights, TopK(top_k=3))
    assert loss.isnan()
    assert gradient[1].isnan().any()
    assert not gradient[2].isnan().any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_gpu_gives_what_the_cpu_gives(dtype, beta):
    student, teacher, head, weights = tensors(tokens=200, vocab=9000)
    student, teacher, head = (tensor.to(dtype) for tensor in (student, teacher, head))
    support = TopK(top_k=20, beta=beta)
    expected, expected_gradient = evaluate(divergence, student, teacher, head, weights, support, chunk_tokens=64)
    loss, gradient = evaluate(
        divergence, student.cuda(), teacher.cuda(), head.cuda(), weights.cuda(), support, chunk_tokens=64
    )
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=2e-2, atol=1e-3)
