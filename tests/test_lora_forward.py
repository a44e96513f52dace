import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from stepalign import lora_forward
from stepalign.bfloat16_linear import has_bfloat16_products, use_bfloat16_linear
from stepalign.lora_forward import use_fused_lora


def adapted(change_base: Callable[[nn.Module], None] = lambda _: None, **settings: object) -> PeftModel:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5, bias=False)).requires_grad_(False)
    change_base(base)
    layers = settings.pop("target_modules", ["0", "2"])
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, target_modules=layers, **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def outputs_and_gradients(model: PeftModel, inputs: Tensor) -> list[Tensor]:
    inputs = inputs.clone().requires_grad_()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    output = model(inputs)
    return [output, *torch.autograd.grad(output.square().sum(), [inputs, *trained])]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    made: list[None] = []
    apply = lora_forward._lora_linear
    monkeypatch.setattr(lora_forward, "_lora_linear", lambda *given: (made.append(None), apply(*given))[1])
    return made


def test_outputs_and_gradients_are_those_of_peft(calls: list[None]) -> None:
    model, inputs = adapted(), torch.randn(4, 3, 12)
    expected = outputs_and_gradients(model, inputs)
    use_fused_lora(model)
    for value, wanted in zip(outputs_and_gradients(model, inputs), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not has_bfloat16_products(), reason="the processor has no bfloat16 products")
def test_a_base_of_bfloat16_products_is_peft_s_to_their_rounding(calls: list[None]) -> None:
    inputs = torch.randn(4, 3, 12)
    expected = outputs_and_gradients(adapted(), inputs)
    model = adapted(use_bfloat16_linear)
    use_fused_lora(model)
    for value, wanted in zip(outputs_and_gradients(model, inputs), expected, strict=True):
        assert value.dtype == torch.float32
        assert (value - wanted).norm() < 0.02 * wanted.norm()
    assert len(calls) == 2


@torch.no_grad()
def test_an_adapter_that_is_turned_off_meanwhile_stays_off(calls: list[None]) -> None:
    model, inputs = adapted(), torch.randn(4, 12)
    with model.disable_adapter():
        base = model(inputs)
    use_fused_lora(model)
    with model.disable_adapter():
        assert torch.equal(model(inputs), base)
    assert not calls


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}])
def test_layers_that_do_more_stay_with_peft(settings: dict[str, object], calls: list[None]) -> None:
    model, inputs = adapted(**settings, target_modules=["0"]), torch.randn(4, 12)
    use_fused_lora(model)
    model(inputs)
    assert not calls


def test_a_copy_has_its_own_weights() -> None:
    model, inputs = adapted(), torch.randn(4, 12)
    use_fused_lora(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert copied(inputs).abs().sum() > 0


def test_dropout_acts_in_training_alone(calls: list[None]) -> None:
    model = adapted(lora_dropout=0.5)
    use_fused_lora(model)
    model.eval()(torch.randn(4, 12))
    assert len(calls) == 2


@torch.no_grad()
def test_a_merged_adapter_is_not_added_twice(calls: list[None]) -> None:
    model, inputs = adapted(), torch.randn(4, 12)
    use_fused_lora(model)
    model.merge_adapter()
    merged = model(inputs)
    assert not calls
    model.unmerge_adapter()
    torch.testing.assert_close(merged, model(inputs), rtol=1e-4, atol=1e-5)
