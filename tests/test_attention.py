from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from stepalign import attention
from stepalign.attention import CPU_SDPA, cpu_sdpa, use_cpu_sdpa

medium_precision = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="the processor has no bfloat16 products"
)


@pytest.fixture(params=["highest", pytest.param("medium", marks=medium_precision)])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param
    torch.set_float32_matmul_precision("highest")


def model(attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = Qwen2Config(
        vocab_size=64, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=attention,
    )  # fmt: skip
    return Qwen2ForCausalLM(settings)


@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_gradients_are_those_of_transformers(padded: bool) -> None:
    ids = torch.arange(22).reshape(2, 11)
    mask = torch.ones_like(ids)
    mask[0, :3] = int(not padded)
    results = []
    for changed in (False, True):
        solver = model("sdpa")
        if changed:
            use_cpu_sdpa(solver)
        logits = solver(input_ids=ids, attention_mask=mask).logits
        logits.sum().backward()
        results.append((logits, solver.model.layers[0].self_attn.k_proj.weight.grad))
    assert solver.config._attn_implementation == CPU_SDPA
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-7)  # grouped sums, another order


def test_another_implementation_stays() -> None:
    solver = model("eager")
    use_cpu_sdpa(solver)
    assert solver.config._attn_implementation == "eager"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_products_are_float32_in_both_passes_whatever_the_precision(precision: str, checkpointing: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 5, 16), (2, 2, 9, 16), (2, 2, 9, 16)
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    mask = torch.ones(2, 1, 5, 9, dtype=torch.bool).tril(4)

    def attend(*states: Tensor) -> Tensor:
        return cpu_sdpa(torch.nn.Identity(), *states, mask)[0]

    expected = torch.autograd.grad(attend(*inputs).square().sum(), inputs)
    torch.set_float32_matmul_precision(precision)
    output = checkpoint(attend, *inputs, use_reentrant=False) if checkpointing else attend(*inputs)
    gradients = torch.autograd.grad(output.square().sum(), inputs)
    assert torch.get_float32_matmul_precision() == precision
    assert all(map(torch.equal, gradients, expected))


def test_inputs_without_gradients_get_none() -> None:
    query, key, value = torch.randn(1, 2, 3, 8, requires_grad=True), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    torch.set_float32_matmul_precision("medium")
    try:
        output, _ = cpu_sdpa(torch.nn.Identity(), query, key, value, None)
        output.sum().backward()
        with torch.no_grad():
            assert not cpu_sdpa(torch.nn.Identity(), query, key, value, None)[0].requires_grad
    finally:
        torch.set_float32_matmul_precision("highest")
    assert query.grad is not None
    assert key.grad is None


@pytest.mark.parametrize("grouped", [False, True])
def test_rows_that_views_share_are_attended_to_block_by_block(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.ones(300, 300, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    mask[0, 0, 200:, 50:200] = False  # the second view sees the first 50 columns and its own
    keys = 2 if grouped else 4
    inputs = [torch.randn(2, heads, 300, 16, requires_grad=True) for heads in (4, keys, keys)]
    weights = torch.randn(2, 300, 4, 16)
    results = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(attention, "_MAX_SHARE", share)
        output = cpu_sdpa(torch.nn.Identity(), *inputs, mask := mask.clone())[0]
        results.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
    plan = attention._plan(mask)
    assert plan is not None
    assert [block.mask.shape[2:] for block in plan[0]] == [(128, 128), (128, 256), (44, 150)]
    for dense, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, dense, rtol=1e-4, atol=1e-5)


def test_a_mask_that_hides_little_is_not_divided() -> None:
    assert attention._plan(torch.ones(1, 1, 300, 300, dtype=torch.bool)) is None


def test_a_block_of_padding_sees_nothing_and_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.ones(300, 300, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    mask[0, 0, :, :150] = False  # padding on the left, longer than a block
    inputs = [torch.randn(2, heads, 300, 16) for heads in (4, 2, 2)]
    results = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(attention, "_MAX_SHARE", share)
        results.append(cpu_sdpa(torch.nn.Identity(), *inputs, mask.clone())[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
