import copy

import pytest
import torch
from torch import nn

from stepalign import config
from stepalign.bfloat16_linear import Bfloat16Linear, has_bfloat16_products, use_bfloat16_linear
from stepalign.models import load_base

pytestmark = pytest.mark.skipif(not has_bfloat16_products(), reason="the processor has no bfloat16 products")
CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(5,), (1, 1), (2, 70)])
def test_products_and_gradients_are_rounded_float32_ones(bias: bool, rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=bias).requires_grad_(False)
    inputs, gradient = torch.randn(*rows, 48, requires_grad=True), torch.randn(*rows, 32)
    expected = layer(inputs)
    wanted = torch.autograd.grad(expected, inputs, gradient)[0]
    output = Bfloat16Linear(layer)(inputs)
    found = torch.autograd.grad(output, inputs, gradient)[0]
    assert output.dtype == found.dtype == torch.float32
    assert (output - expected).norm() < 0.01 * expected.norm()
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_a_copy_multiplies_alike() -> None:
    layer, inputs = Bfloat16Linear(nn.Linear(32, 16)), torch.randn(3, 32)
    assert torch.equal(copy.deepcopy(layer)(inputs), layer(inputs))


def test_each_frozen_float32_layer_is_replaced_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4)), nn.Linear(4, 4).half())
    use_bfloat16_linear(model)
    assert [type(module) for module in (model[0], model[1][0], model[2])] == [Bfloat16Linear, Bfloat16Linear, nn.Linear]
    replaced = model[0]
    use_bfloat16_linear(model)
    assert model[0] is replaced


@pytest.mark.parametrize(("precision", "trainable", "expected"), [("medium", False, True), ("medium", True, False),
                                                                  ("highest", False, False)])  # fmt: skip
def test_a_frozen_base_has_them_in_medium_precision(
    precision: str, trainable: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    base = load_base(config.ModelConfig(name_or_path="lab"), CPU, trainable=trainable)
    layers = [module for module in base.get_decoder().modules() if isinstance(module, nn.Linear)]
    assert layers
    assert all(isinstance(layer, Bfloat16Linear) is expected for layer in layers)
    assert type(base.get_output_embeddings()) is nn.Linear
    assert base.get_output_embeddings().weight.dtype == torch.float32
