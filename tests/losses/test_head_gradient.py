"""The gradient of an output head that is trained too."""

import pytest
import torch

from stepalign.errors import StepalignError
from stepalign.losses.divergence import divergence
from stepalign.losses.grpo import Clip, policy_gradient
from stepalign.losses.importance import ImportanceSampling
from stepalign.losses.sampled_token import SampledToken
from stepalign.losses.support import FullVocabulary
from stepalign.losses.top_k import TopK

SUPPORTS = {
    "forward": FullVocabulary(),
    "reverse, clipped": FullVocabulary(beta=1.0, clip_mode="token", clip_value=2.5, student_temperature=0.7),
    "jsd": FullVocabulary(beta=0.5),
    "top-k": TopK(top_k=4, of="teacher"),
    "sampled": SampledToken(discount=0.5, clip_value=2.0),
}
TOKENS, SIZE = 13, 12


def tensors():
    generator = torch.Generator().manual_seed(0)
    student, teacher, other = (torch.randn(TOKENS, SIZE, generator=generator, dtype=torch.float64) for _ in range(3))
    weights = torch.rand(TOKENS, generator=generator) + 0.1
    weights[::4] = 0
    targets = torch.randint(SIZE, (TOKENS,), generator=generator)
    sampled = student.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1) - 0.3 * other[:, 0].abs()
    return student.requires_grad_(), teacher, weights.double(), targets, sampled


IMPORTANCE = [None, ImportanceSampling(level="token", cap=2.0), ImportanceSampling(level="sequence", cap=2.0)]


@pytest.mark.parametrize("importance", IMPORTANCE, ids=["no correction", "token", "sequence"])
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("name", [*SUPPORTS, "grpo"])
def test_under_an_identity_head_it_follows_from_the_hidden_states_gradient(name, chunk, importance):
    """There logits are hidden states, so d loss / d head is the sum over tokens of gradient times hidden state."""
    student, teacher, weights, targets, sampled = tensors()
    head = torch.eye(SIZE, dtype=torch.float64, requires_grad=True)
    options = {"importance": importance, "sampled_log_probs": sampled, "lengths": [6, 7], "chunk_tokens": chunk}
    if name == "grpo":
        clip, advantage = Clip(0.2), teacher[:, 0]
        loss, _ = policy_gradient(
            student,
            head,
            targets,
            advantage,
            weights,
            temperature=1.3,
            clip=clip,
            old_log_probs=sampled + 0.1,
            **options,
        )
    else:
        loss, _ = divergence(
            student, teacher, head, weights, SUPPORTS[name], teacher_head=head.detach(), targets=targets, **options
        )
    loss.backward()
    assert student.grad.abs().max() > 0.01
    torch.testing.assert_close(head.grad, student.grad.T @ student.detach())


def test_it_is_the_gradient_that_autograd_finds():
    student, teacher, weights, _, _ = tensors()
    head = torch.randn(29, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    fixed = head.detach().clone()
    loss, _ = divergence(student, teacher, head, weights, teacher_head=fixed, chunk_tokens=5)
    loss.backward()
    found, head.grad = head.grad, None
    q, log_p = (teacher @ fixed.T).softmax(-1), (student.detach() @ head.T).log_softmax(-1)
    (weights * (q * (q.log() - log_p)).sum(-1)).sum().backward()
    torch.testing.assert_close(found, head.grad)


def test_without_gradients_none_is_made_and_half_precision_is_refused():
    student, teacher, weights, _, _ = tensors()
    head = torch.eye(SIZE, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        loss, _ = divergence(student, teacher, head, weights)
    assert not loss.requires_grad
    with pytest.raises(StepalignError, match=r"the output head is trained in torch\.bfloat16"):
        divergence(student, teacher, head.detach().bfloat16().requires_grad_(), weights)
