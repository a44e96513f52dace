"""Loss and gradients equal to those of TRL's SDPO and SDFT trainers, fed the same tensors."""

from types import SimpleNamespace

import pytest
import torch

from stepalign.losses.divergence import divergence
from stepalign.losses.importance import ImportanceSampling
from stepalign.losses.sampled_token import SampledToken
from stepalign.losses.support import FullVocabulary
from stepalign.losses.top_k import TopK

ROWS, LENGTH, HIDDEN, VOCAB = 4, 6, 8, 37


@pytest.fixture(scope="module", params=["sdpo.SDPOTrainer", "sdft.SDFTTrainer"])
def trainer(request):
    pytest.importorskip("trl")
    from trl.experimental import sdft, sdpo

    room, name = request.param.split(".")
    return getattr({"sdft": sdft, "sdpo": sdpo}[room], name)


CASES = [
    *(("full_logits", alpha, FullVocabulary(beta=alpha)) for alpha in (0.0, 0.3, 1.0)),
    *(("topk_logits", alpha, TopK(top_k=5, beta=alpha)) for alpha in (0.0, 0.5, 1.0)),
    ("sampled_token", 1.0, SampledToken()),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("mode", "alpha", "support"), CASES, ids=[f"{mode}-{alpha}" for mode, alpha, _ in CASES])
@pytest.mark.parametrize("is_clip", [None, 2.0])
def test_loss_and_gradient_equal_those_of_trl(trainer, mode, alpha, support, is_clip):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([6, 3, 1, 5])
    mask = torch.arange(LENGTH) < lengths[:, None]
    student, teacher = (torch.randn(ROWS, LENGTH, HIDDEN, generator=generator) for _ in range(2))
    head = torch.randn(VOCAB, HIDDEN, generator=generator)
    targets = torch.randint(VOCAB, mask.shape, generator=generator)
    log_probs = (student @ head.T).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    old = log_probs + 0.8 * torch.randn(mask.shape, generator=generator)

    theirs = student.clone().requires_grad_()
    stub = SimpleNamespace(
        args=SimpleNamespace(
            distillation_mode=mode, distillation_topk=5, distillation_alpha=alpha, distillation_add_tail=True,
            distillation_is_clip=is_clip,
        ),
        _log_self_distillation_metric=lambda *_: None,
        accelerator=SimpleNamespace(gather=lambda value: value),
    )  # fmt: skip
    compared = SimpleNamespace(
        completion_ids=targets, loss_mask=mask.float(), student_logits=theirs @ head.T, teacher_logits=teacher @ head.T
    )
    model, inputs = SimpleNamespace(training=True), {"old_per_token_logps": old}
    expected = trainer._compute_self_distillation_loss(stub, model, inputs, compared)
    expected.backward()

    ours = student.clone().requires_grad_()
    weights = (1 / (lengths * ROWS))[:, None].expand(mask.shape)[mask]
    loss, _ = divergence(
        ours[mask],
        teacher[mask],
        head,
        weights,
        support,
        targets=targets[mask],
        lengths=lengths.tolist(),
        importance=None if is_clip is None else ImportanceSampling(level="token", cap=is_clip),
        sampled_log_probs=None if is_clip is None else old[mask],
        chunk_tokens=5,
    )
    loss.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
