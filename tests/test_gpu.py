"""Every CUDA path beside the CPU's: sampling, credit, both losses in a policy, a resumed run, half precision."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from stepalign.collate import collate
from stepalign.config import Recipe, SamplingConfig
from stepalign.losses.divergence import divergence
from stepalign.losses.grpo import Clip, policy_gradient
from stepalign.losses.log_probs import scores
from stepalign.policy import Policy
from stepalign.rollouts import Request
from stepalign.rollouts.transformers import TransformersSampler
from stepalign.trainer.build import build_trainer
from stepalign.trainer.run_folder import RunFolder
from stepalign.views import View

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(params=["float32", "bfloat16"])
def policies(request: pytest.FixtureRequest, tiny_llama: Path) -> tuple[Policy, Policy]:
    """The same weights on the CPU, in float32, and on the GPU."""
    own = Policy(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)).eval()
    return own, copy.deepcopy(own).to("cuda", getattr(torch, request.param))


def views() -> list[View]:
    generator = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(3, 300, (n,), generator=generator).tolist()) for n in (40, 9, 14, 30)]
    return [View(prompt_ids=ids[0], completion_ids=ids[n], loss_start=0, loss_stop=len(ids[n])) for n in (1, 2, 3)]


def close(on_gpu: Tensor, on_cpu: Tensor, dtype: torch.dtype) -> None:
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-3
    error = (on_gpu.float().cpu() - on_cpu.float()).abs().max()
    assert error <= tolerance * on_cpu.abs().max() + 1e-6, error


@pytest.mark.parametrize("share", [False, True])
def test_losses_and_gradients_are_the_cpu_s(policies: tuple[Policy, Policy], share: bool) -> None:
    results: list[list[Tensor]] = []
    for policy in policies:
        device, dtype = policy.head.device, policy.head.dtype
        batch = collate(views(), share_prefixes=share).to(device)
        weights = torch.linspace(0.1, 1, len(batch.targets), device=device)
        teacher = policy(batch).detach().roll(1, 0)
        hidden = policy(batch).detach().requires_grad_()
        loss, metrics = divergence(hidden, teacher, policy.head.detach(), weights)
        loss.backward()
        found = [loss.detach(), hidden.grad, metrics.entropy_teacher]
        hidden = policy(batch).detach().requires_grad_()
        advantage = torch.linspace(-1, 1, len(batch.targets), device=device)
        loss, scored = policy_gradient(
            hidden, policy.head.detach(), batch.targets, advantage, weights, temperature=0.9, clip=Clip(), kl_coef=0.0
        )
        loss.backward()
        credit = scores(hidden.detach(), policy.head.detach(), batch.targets).log_probs
        results.append([*found, loss.detach(), hidden.grad, scored.log_probs, credit])
    for on_cpu, on_gpu in zip(*results, strict=True):
        close(on_gpu, on_cpu, dtype)


def test_greedy_completions_are_the_cpu_s(policies: tuple[Policy, Policy]) -> None:
    own, on_gpu = policies
    if on_gpu.head.dtype != torch.float32:
        pytest.skip("greedy choices of half precision differ where two tokens are nearly even")
    asked = [
        Request(id=str(n), prompt_ids=view.prompt_ids + view.completion_ids[:n], seed=n)
        for n, view in enumerate(views())
    ]
    completions = [
        {
            done.id: done.ids
            for done in TransformersSampler(policy.model, eos_ids=frozenset(), batch_size=2).sample(
                asked, SamplingConfig(temperature=0, max_new_tokens=16), adapter=None
            )
        }
        for policy in (own, on_gpu)
    ]
    assert completions[0] == completions[1]


def test_a_stopped_run_ends_with_the_undisturbed_one_s_adapter(make_recipe: Callable[..., Recipe]) -> None:
    def run(*overrides: str) -> dict[str, Tensor]:
        settings = make_recipe("training.save_steps=1", *overrides)
        with ExitStack() as stack:
            folder = RunFolder(settings)
            stack.callback(folder.close)
            trainer = build_trainer(settings, folder, stack)
            assert trainer.policy.head.is_cuda
            trainer.train()
        last = sorted((settings.folder / "checkpoints").iterdir())[-1]
        return load_file(last / "adapter_model.safetensors")

    whole = run("training.max_steps=3", "name=whole")
    run("training.max_steps=2", "name=stopped")
    resumed = run("training.max_steps=3", "name=stopped")
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-4, atol=1e-7)
