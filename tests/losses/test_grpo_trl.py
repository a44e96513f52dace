"""Loss and gradients equal to those of TRL's GRPOTrainer, fed the same tensors."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from stepalign.losses.grpo import advantages, policy_gradient
from stepalign.losses.importance import ImportanceSampling

GROUPS, GROUP, LENGTH, HIDDEN, VOCAB = 2, 4, 6, 8, 37


@pytest.fixture(scope="module")
def trainer():
    pytest.importorskip("trl")
    from trl import GRPOTrainer

    return GRPOTrainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kl", "inner", "level"),
    [
        (0.0, False, None),
        (0.0, True, None),
        (0.3, True, None),
        (0.0, False, "token"),
        (0.0, True, "token"),
        (0.0, True, "sequence"),
        (0.3, False, "token"),
        (0.3, True, "sequence"),
    ],
)
@pytest.mark.parametrize("normalize", ["seq-mean-token-mean", "token-mean"])
def test_loss_and_gradient_equal_those_of_trl(trainer, kl, inner, level, normalize):
    generator = torch.Generator().manual_seed(1)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    lengths = torch.tensor([6, 3, 1, 5, 6, 2, 4, 6])
    mask = torch.arange(LENGTH) < lengths[:, None]
    hidden = torch.randn(GROUPS * GROUP, LENGTH, HIDDEN, generator=generator)
    head = torch.randn(VOCAB, HIDDEN, generator=generator)
    targets = torch.randint(VOCAB, (GROUPS * GROUP, LENGTH), generator=generator)
    temperature = 1.2

    def log_probs(states):
        return (states @ head.T / temperature).log_softmax(-1).gather(-1, targets[..., None])[..., 0]

    old, base = (log_probs(hidden) + 0.3 * torch.randn(mask.shape, generator=generator) for _ in range(2))
    sampled = old + 0.3 * torch.randn(mask.shape, generator=generator)  # by an engine with other numbers
    gap = ((old if inner else log_probs(hidden)) - sampled) * mask
    ratio = (gap.sum(-1, keepdim=True) if level == "sequence" else gap).exp().clamp(max=1.2)  # TRL's truncated modes
    theirs = hidden.clone().requires_grad_()
    per_group = advantages(rewards).flatten()

    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs(theirs), torch.zeros(mask.shape), None),
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=kl,
        loss_type={"seq-mean-token-mean": "grpo", "token-mean": "dapo"}[normalize], epsilon_low=0.2, epsilon_high=0.2,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False), use_vllm=level is not None,
        aux_loss_enabled=False, model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value),
        _metrics={"train": defaultdict(list)}, max_completion_length=LENGTH,
        _entropy_bonus_enabled=False, vllm_importance_sampling_correction=True,
    )  # fmt: skip
    stub.args.steps_per_generation = stub.args.gradient_accumulation_steps = 1
    inputs = {
        "prompt_ids": targets[:, :1], "prompt_mask": mask[:, :1].long(), "completion_ids": targets,
        "completion_mask": mask.long(), "advantages": per_group, "num_items_in_batch": mask.sum().float(),
        "old_per_token_logps": old if inner else None, "ref_per_token_logps": base,
        "importance_sampling_ratio": ratio,
    }  # fmt: skip
    expected = trainer._compute_loss(stub, None, inputs)
    expected.backward()

    ours = hidden.clone().requires_grad_()
    per_token = 1 / mask.sum() if normalize == "token-mean" else (1 / (lengths * len(lengths)))[:, None]
    loss, _ = policy_gradient(
        ours[mask],
        head,
        targets[mask],
        per_group[:, None].expand(mask.shape)[mask],
        (per_token * mask)[mask],
        kl_coef=kl,
        chunk_tokens=5,
        temperature=temperature,
        old_log_probs=old[mask] if inner else None,
        base_log_probs=base[mask] if kl else None,
        lengths=lengths.tolist(),
        importance=ImportanceSampling(level=level, cap=1.2) if level else None,
        sampled_log_probs=sampled[mask] if level else None,
    )
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
