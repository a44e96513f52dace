import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from stepalign.rollouts.lora_forward import short_lora_forward


def adapted(**settings: object) -> PeftModel:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5, bias=False))
    layers = ["0", "2"] if "target_modules" not in settings else settings.pop("target_modules")
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, target_modules=layers, **settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def shortened(model: PeftModel) -> int:
    return sum("forward" in module.__dict__ for module in model.modules())


@torch.no_grad()
def test_outputs_are_those_of_peft() -> None:
    model, inputs = adapted(), torch.randn(4, 3, 12)
    expected = model(inputs)
    with short_lora_forward(model):
        assert shortened(model) == 2
        torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-6)
    assert shortened(model) == 0
    assert torch.equal(model(inputs), expected)


@torch.no_grad()
def test_an_adapter_that_is_turned_off_meanwhile_stays_off() -> None:
    model, inputs = adapted(), torch.randn(4, 12)
    with model.disable_adapter():
        base = model(inputs)
        with short_lora_forward(model):
            assert shortened(model) == 0
    with short_lora_forward(model), model.disable_adapter():
        assert torch.equal(model(inputs), base)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_layers_that_do_more_stay_with_peft(settings: dict[str, object]) -> None:
    model = adapted(**settings, target_modules=["0"])
    with short_lora_forward(model):
        assert shortened(model) == 0


@torch.no_grad()
def test_a_merged_adapter_is_not_added_twice() -> None:
    model, inputs = adapted(), torch.randn(4, 12)
    model.merge_adapter()
    expected = model(inputs)
    with short_lora_forward(model):
        assert torch.equal(model(inputs), expected)
