import inspect
import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stepalign.losses import lm_head as projection
from stepalign.losses.divergence import divergence
from stepalign.losses.support import FullVocabulary

TOKENS, HIDDEN, VOCAB = 13, 8, 37


def tensors(seed=0, tokens=TOKENS, vocab=VOCAB, dtype=torch.float32):
    """Hidden states, a head that gives logits of some spread, and weights of which every third is 0."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(tokens, HIDDEN, generator=generator) for _ in range(2))
    head = torch.randn(vocab, HIDDEN, generator=generator)
    weights = torch.rand(tokens, generator=generator) + 0.1
    weights[::3] = 0
    return student.to(dtype), teacher.to(dtype), head.to(dtype), weights


def reference(student_hidden, teacher_hidden, head, weights, settings, *, teacher_head=None):
    """The loss from whole logits in float64, for autograd; and each token's KL, entropies and agreement."""
    student_logits = student_hidden @ head.T / settings.student_temperature
    teacher_logits = teacher_hidden @ (head if teacher_head is None else teacher_head).T
    teacher_logits = teacher_logits.detach() / settings.teacher_temperature
    p, q = student_logits.softmax(-1), teacher_logits.softmax(-1)
    if settings.beta == 0:
        entries = q * (q.log() - p.log())
    elif settings.beta == 1:
        entries = p * (p.log() - q.log())
    else:
        m = settings.beta * q + (1 - settings.beta) * p
        entries = settings.beta * q * (q / m).log() + (1 - settings.beta) * p * (p / m).log()
    if settings.clip_mode == "entry":
        entries = entries.clamp(max=settings.clip_value)
    per_token = entries.sum(-1)
    if settings.clip_mode == "token":
        per_token = per_token.clamp(max=settings.clip_value)
    metrics = {
        "kl_teacher_student": (q * (q.log() - p.log())).sum(-1),
        "entropy_student": -(p * p.log()).sum(-1),
        "entropy_teacher": -(q * q.log()).sum(-1),
        "agreement": (p.argmax(-1) == q.argmax(-1)).double(),
    }
    return (weights.double() * per_token).sum(), {name: value.detach() for name, value in metrics.items()}


def evaluate(function, student, *inputs, **heads):
    """Value, gradient to the student's hidden states, and metrics."""
    student = student.detach().clone().requires_grad_()
    loss, metrics = function(student, *inputs, **heads)
    loss.backward()
    return loss.detach(), student.grad, metrics


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("clip", "clip_at"), [("none", None), ("token", 0.3), ("token", 2.0), ("entry", 0.05)])
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.7, 1.6)])
def test_value_gradient_and_metrics_equal_the_formula_written_out(beta, clip, clip_at, temperatures):
    settings = FullVocabulary(
        beta=beta,
        clip_mode=clip,
        clip_value=clip_at,
        student_temperature=temperatures[0],
        teacher_temperature=temperatures[1],
    )
    student, teacher, head, weights = tensors()
    double = [tensor.double() for tensor in (student, teacher, head)]
    expected, expected_gradient, expected_metrics = evaluate(reference, *double, weights, settings)

    loss, gradient, metrics = evaluate(divergence, student, teacher, head, weights, settings, chunk_tokens=4)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=2e-6)
    counted = weights != 0
    for name, values in expected_metrics.items():
        torch.testing.assert_close(getattr(metrics, name)[counted].double(), values[counted], rtol=1e-5, atol=1e-6)
        assert getattr(metrics, name)[~counted].isnan().all()

    exact, exact_gradient, _ = evaluate(divergence, *double, weights, settings, chunk_tokens=4)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exact_gradient, expected_gradient, rtol=1e-11, atol=1e-12)


def test_clipping_by_entry_can_turn_the_loss_negative_and_by_token_cannot():
    # The positive shares of the divergence are cut, the negative ones are not (trap 5).
    student, teacher, head, weights = tensors()
    plain = divergence(student, teacher, head, weights, FullVocabulary())[0]
    by_token = divergence(student, teacher, head, weights, FullVocabulary(clip_mode="token", clip_value=1e-3))[0]
    by_entry = divergence(student, teacher, head, weights, FullVocabulary(clip_mode="entry", clip_value=1e-3))[0]
    assert by_entry < 0 < by_token < plain


def test_the_direction_of_kl_by_hand():
    # Teacher (1/2, 1/4, 1/4), student (1/8, 1/8, 3/4). Hidden states are logits: the head is the identity.
    teacher = torch.tensor([[1 / 2, 1 / 4, 1 / 4]]).log()
    student = torch.tensor([[1 / 8, 1 / 8, 3 / 4]]).log()
    teacher_student = 1 / 2 * math.log(4) + 1 / 4 * math.log(2) + 1 / 4 * math.log(1 / 3)  # 0.5918
    student_teacher = 1 / 8 * math.log(1 / 4) + 1 / 8 * math.log(1 / 2) + 3 / 4 * math.log(3)  # 0.5640
    for beta, expected, slope in (
        (0.0, teacher_student, [1 / 8 - 1 / 2, 1 / 8 - 1 / 4, 3 / 4 - 1 / 4]),
        (
            1.0,
            student_teacher,
            [
                1 / 8 * (math.log(1 / 4) - student_teacher),
                1 / 8 * (math.log(1 / 2) - student_teacher),
                3 / 4 * (math.log(3) - student_teacher),
            ],
        ),
    ):
        loss, gradient, metrics = evaluate(
            divergence, student, teacher, torch.eye(3), torch.ones(1), FullVocabulary(beta=beta)
        )
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        assert gradient[0].tolist() == pytest.approx(slope, abs=1e-6)
        assert metrics.kl_teacher_student.item() == pytest.approx(teacher_student, abs=1e-6)
        assert metrics.agreement.item() == 0


def test_beta_weighs_the_teacher_in_the_mixture():
    # Teacher (3/4, 1/4), student (1/4, 3/4), beta 1/4: m = 1/4·teacher + 3/4·student = (3/8, 5/8).
    teacher, student = torch.tensor([[3 / 4, 1 / 4]]).log(), torch.tensor([[1 / 4, 3 / 4]]).log()
    kl_teacher = 3 / 4 * math.log(2) + 1 / 4 * math.log(2 / 5)
    kl_student = 1 / 4 * math.log(2 / 3) + 3 / 4 * math.log(6 / 5)
    loss, _ = divergence(student, teacher, torch.eye(2), torch.ones(1), FullVocabulary(beta=0.25))
    assert loss.item() == pytest.approx(1 / 4 * kl_teacher + 3 / 4 * kl_student, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_chunk_size_changes_nothing(beta):
    student, teacher, head, weights = tensors()
    results = [
        evaluate(divergence, student, teacher, head, weights, FullVocabulary(beta=beta), chunk_tokens=chunk)
        for chunk in (1, 3, TOKENS, 1000, None)
    ]
    for (loss, gradient, metrics), (other, other_gradient, other_metrics) in itertools.pairwise(results):
        torch.testing.assert_close(loss, other)
        torch.testing.assert_close(gradient, other_gradient)
        torch.testing.assert_close(metrics.kl_teacher_student, other_metrics.kl_teacher_student, equal_nan=True)


def test_a_tile_smaller_than_its_chunk_changes_nothing(monkeypatch):
    student, teacher, head, weights = tensors(tokens=5 * torch.get_num_threads())
    settings = FullVocabulary(beta=0.3)
    whole = evaluate(divergence, student, teacher, head, weights, settings)
    monkeypatch.setitem(projection._TILE_BYTES, "cpu", 1)  # one row a thread
    loss, gradient, metrics = evaluate(divergence, student, teacher, head, weights, settings)
    torch.testing.assert_close(loss, whole[0])
    torch.testing.assert_close(gradient, whole[1])
    torch.testing.assert_close(metrics.entropy_student, whole[2].entropy_student, equal_nan=True)


def test_tokens_of_weight_zero_are_never_read():
    student, teacher, head, weights = tensors()
    clean = evaluate(divergence, student, teacher, head, weights, FullVocabulary())
    left_out = weights == 0
    student[left_out], teacher[left_out] = math.nan, math.inf
    loss, gradient, metrics = evaluate(divergence, student, teacher, head, weights, FullVocabulary())
    torch.testing.assert_close(loss, clean[0], rtol=0, atol=0)
    torch.testing.assert_close(gradient, clean[1], rtol=0, atol=0)
    assert (gradient[left_out] == 0).all()
    assert metrics.agreement.isnan().equal(left_out)


@pytest.mark.parametrize("tokens", [0, 4])
def test_no_counted_token_is_a_loss_of_zero_that_can_be_differentiated(tokens):
    student, teacher, head, _ = tensors(tokens=tokens)
    loss, gradient, _ = evaluate(divergence, student, teacher, head, torch.zeros(tokens), FullVocabulary())
    assert loss == 0
    assert gradient.equal(torch.zeros_like(student))


@pytest.mark.parametrize("clip", ["none", "token", "entry"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_nan_is_not_hidden(whose, beta, clip):
    student, teacher, head, weights = tensors()
    (student if whose == "student" else teacher)[1, 0] = math.nan
    settings = FullVocabulary(beta=beta, clip_mode=clip, clip_value=None if clip == "none" else 0.5)
    loss, gradient, _ = evaluate(divergence, student, teacher, head, weights, settings)
    assert loss.isnan()
    assert gradient[1].isnan().all()
    assert not gradient[2].isnan().any()


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_unclipped_it_is_never_negative_and_never_overflows(beta):
    for seed in range(10):
        scale = 10.0 ** (seed % 5 - 2)  # up to logits of several hundred, where probabilities underflow
        student, teacher, head, _ = tensors(seed)
        if seed % 2:
            teacher = student + 1e-3 * teacher
        settings = FullVocabulary(beta=beta)
        loss, gradient, metrics = evaluate(
            divergence, student * scale, teacher * scale, head, torch.ones(TOKENS), settings
        )
        assert loss >= -1e-6 * TOKENS
        assert (metrics.kl_teacher_student >= -1e-6).all()
        assert gradient.isfinite().all()


def test_equal_models_have_no_divergence_and_agree():
    student, _, head, _ = tensors()
    for beta in (0.0, 0.5, 1.0):
        loss, gradient, metrics = evaluate(
            divergence, student, student, head, torch.ones(TOKENS), FullVocabulary(beta=beta)
        )
        assert abs(loss) < 1e-6
        assert gradient.abs().max() < 1e-6
        assert (metrics.agreement == 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_half_precision_inputs_are_compared_in_float32(dtype, beta):
    # The reference starts from the same rounded inputs: only the gradient's own rounding is left.
    student, teacher, head, weights = tensors(vocab=9000, dtype=dtype)
    settings = FullVocabulary(beta=beta)
    expected, expected_gradient, _ = evaluate(
        reference, student.double(), teacher.double(), head.double(), weights, settings
    )
    loss, gradient, _ = evaluate(divergence, student, teacher, head, weights, settings)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=8e-3, atol=1e-4)


def test_autocast_does_not_lower_the_precision():
    student, teacher, head, weights = tensors()
    plain = evaluate(divergence, student, teacher, head, weights, FullVocabulary(beta=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        cast = evaluate(divergence, student, teacher, head, weights, FullVocabulary(beta=0.5))
    torch.testing.assert_close(cast[0], plain[0], rtol=0, atol=0)
    torch.testing.assert_close(cast[1], plain[1], rtol=0, atol=0)


def test_the_incoming_gradient_scales_the_outgoing_one_each_time():
    student, teacher, head, weights = tensors()
    student.requires_grad_()
    loss, _ = divergence(student, teacher, head, weights, FullVocabulary())
    (once,) = torch.autograd.grad(loss, student, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, student, retain_graph=True)
    (again,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(thrice, 3 * once)
    torch.testing.assert_close(again, once, rtol=0, atol=0)


def test_a_loss_scale_reaches_float16_gradients_before_they_are_rounded():
    student, teacher, head, weights = tensors(dtype=torch.float16)
    student.requires_grad_()
    loss, _ = divergence(student, teacher, head, weights * 1e-9, FullVocabulary())
    (gradient,) = torch.autograd.grad(loss * 2.0**30, student)
    assert (gradient[weights != 0] != 0).any()


def test_nothing_flows_to_the_teacher_or_a_frozen_head():
    student, teacher, head, weights = tensors()
    student.requires_grad_()
    teacher.requires_grad_()
    loss, metrics = divergence(student, teacher, head, weights, FullVocabulary())
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert not metrics.kl_teacher_student.requires_grad


def test_a_teacher_may_have_a_head_of_its_own():
    student, _, head, weights = tensors()
    _, teacher, teacher_head, _ = tensors(seed=1)
    wider = torch.cat((teacher, teacher), -1), torch.cat((teacher_head, teacher_head), -1)
    expected, expected_gradient, _ = evaluate(
        reference,
        student.double(),
        wider[0].double(),
        head.double(),
        weights,
        FullVocabulary(),
        teacher_head=wider[1].double(),
    )
    loss, gradient, _ = evaluate(
        divergence,
        student,
        wider[0],
        head,
        weights,
        FullVocabulary(),
        teacher_head=wider[1],
        chunk_tokens=3,
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-5)


def test_differentiating_twice_is_an_error():
    student, teacher, head, weights = tensors()
    student.requires_grad_()
    loss, _ = divergence(student, teacher, head, weights, FullVocabulary())
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_inputs_that_do_not_belong_together_are_refused():
    unchecked = inspect.unwrap(divergence)  # as users run it: the shape checks of the tests would come first
    student, teacher, head, weights = tensors()
    with pytest.raises(ValueError, match="13 student states, 12 teacher states and 13 weights"):
        unchecked(student, teacher[:-1], head, weights, FullVocabulary())
    with pytest.raises(ValueError, match=r"37 entries \(student\), 36 \(teacher\)"):
        unchecked(student, teacher, head, weights, FullVocabulary(), teacher_head=head[:-1])


class ProductCounter(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made, and the matrix products."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.products = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        self.products += "mm" in operation.overloadpacket.__name__
        return result


@pytest.mark.parametrize("settings", [{}, {"beta": 0.5}, {"clip_mode": "entry", "clip_value": 0.1}])
def test_logits_never_exist_for_more_than_a_chunk(settings):
    tokens, chunk, vocab = 64, 4, 501
    student, teacher, head, weights = tensors(tokens=tokens, vocab=vocab)
    student.requires_grad_()
    with ProductCounter() as counter:
        loss, _ = divergence(student, teacher, head, weights, FullVocabulary(**settings), chunk_tokens=chunk)
        loss.backward()
    assert counter.products  # it sees
    assert counter.largest <= 4 * chunk * vocab < tokens * vocab


def test_without_gradients_only_the_two_projections_are_paid():
    student, teacher, head, weights = tensors()
    settings = FullVocabulary()
    student.requires_grad_()
    with ProductCounter() as training:
        divergence(student, teacher, head, weights, settings, chunk_tokens=TOKENS)
    with torch.no_grad(), ProductCounter() as evaluation:
        loss, _ = divergence(student, teacher, head, weights, settings, chunk_tokens=TOKENS)
    assert (training.products, evaluation.products) == (2, 1)  # both models' projections are one product
    assert not loss.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.5}, {"beta": 1.0}, {"clip_mode": "entry", "clip_value": 0.05}])
def test_the_gpu_gives_what_the_cpu_gives(dtype, settings):
    student, teacher, head, weights = tensors(tokens=200, vocab=9000, dtype=dtype)
    support = FullVocabulary(**settings)
    expected, expected_gradient, _ = evaluate(divergence, student, teacher, head, weights, support, chunk_tokens=64)
    loss, gradient, _ = evaluate(
        divergence, student.cuda(), teacher.cuda(), head.cuda(), weights.cuda(), support, chunk_tokens=64
    )
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=2e-2, atol=1e-3)
