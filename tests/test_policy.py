"""Student and teacher on one set of weights: what they compute, what training leaves alone, what is written."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from stepalign import config, models
from stepalign.collate import Batch, collate
from stepalign.errors import StepalignError
from stepalign.policy import Policy
from stepalign.views import View

CPU = torch.device("cpu")


def load(folder: Path, *, seed: int = 0, **adapter: Any) -> Policy:
    return models.load_policy(
        config.ModelConfig(name_or_path=str(folder)), config.LoraConfig(**{"r": 4, **adapter}), seed, CPU
    )


def views() -> list[View]:
    """Prompts and completions of different lengths, with spans that begin late or end early."""
    draws = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draws.randrange(300) for _ in range(length))

    return [
        View(prompt_ids=ids(20), completion_ids=ids(9), loss_start=0, loss_stop=9),
        View(prompt_ids=ids(3), completion_ids=ids(15), loss_start=2, loss_stop=15),
        View(prompt_ids=ids(11), completion_ids=ids(6), loss_start=1, loss_stop=4),
        View(prompt_ids=ids(1), completion_ids=ids(1), loss_start=0, loss_stop=1),
    ]


def batch() -> Batch:
    return collate(views())


def trained(policy: Policy, steps: int = 3) -> Policy:
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-2)
    policy.train()
    for _ in range(steps):
        policy(batch()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


@pytest.mark.parametrize("architecture", ["tiny_llama", "tiny_qwen3"])
def test_hidden_states_times_head_are_the_logits_that_predict_the_counted_tokens(
    architecture: str, request: pytest.FixtureRequest
) -> None:
    policy = trained(load(request.getfixturevalue(architecture))).eval()
    wanted = []
    for view in views():
        ids = torch.tensor([[*view.prompt_ids, *view.completion_ids]])
        before = len(view.prompt_ids) - 1
        wanted.append(policy.model(ids).logits[0, before + view.loss_start : before + view.loss_stop])
    hidden = policy(batch())
    torch.testing.assert_close(hidden @ policy.head.T, torch.cat(wanted), rtol=1e-4, atol=1e-5)


def test_before_training_the_student_is_the_teacher(tiny_llama: Path) -> None:
    policy = load(tiny_llama)
    assert torch.equal(policy(batch()), policy.forward_base(batch()))


def test_training_moves_the_student_and_leaves_the_teacher_bit_for_bit(tiny_llama: Path) -> None:
    policy = load(tiny_llama, lora_dropout=0.5).train()
    student, teacher = policy.eval()(batch()), policy.train().forward_base(batch())
    trained(policy)
    assert torch.equal(policy.forward_base(batch()), teacher)
    assert (policy.eval()(batch()) - student).abs().max() > 1e-2


def test_training_leaves_the_base_weights_bit_for_bit(tiny_llama: Path) -> None:
    policy = trained(load(tiny_llama))
    untouched = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    now = {name.replace(".base_layer", ""): weight for name, weight in policy.base.state_dict().items()}
    assert untouched.keys() <= now.keys()
    assert all(torch.equal(now[name], weight) for name, weight in untouched.items())


def test_asking_the_teacher_leaves_the_student_able_to_learn(tiny_llama: Path) -> None:
    policy = load(tiny_llama).train()
    names = [id(parameter) for parameter in policy.trainable()]
    assert not policy.forward_base(batch()).requires_grad
    assert policy.training
    assert [id(parameter) for parameter in policy.trainable()] == names
    assert policy(batch()).requires_grad


def test_only_the_adapter_is_trainable(tiny_llama: Path) -> None:
    policy = load(tiny_llama)
    names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert len(policy.trainable()) == len(names)


def test_a_base_with_dropout_gives_a_teacher_without_noise(tiny_llama: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_llama)
    config.attention_dropout = 0.5
    AutoModelForCausalLM.from_pretrained(tiny_llama, config=config).save_pretrained(tmp_path)
    policy = load(tmp_path).train()
    assert torch.equal(policy.forward_base(batch()), policy.forward_base(batch()))


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_saved_adapter_is_an_ordinary_peft_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    policy = trained(load(tiny_llama)).eval()
    policy.save(tmp_path)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path).eval()
    ids = torch.tensor([[5, 17, 40, 2, 90]])
    assert torch.equal(peft(ids).logits, policy.model(ids).logits)


def test_a_saved_adapter_loads_bit_for_bit(tiny_llama: Path, tmp_path: Path) -> None:
    policy = trained(load(tiny_llama))
    policy.save(tmp_path)
    other = load(tiny_llama, seed=1)
    other.load(tmp_path)
    for mine, theirs in zip(policy.trainable(), other.trainable(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ({"r": 8}, {"r": 4}),
        ({"target_modules": ("q_proj",)}, {"target_modules": ("q_proj", "v_proj")}),
        ({"target_modules": ("q_proj", "v_proj")}, {"target_modules": ("q_proj",)}),
    ],
    ids=["another rank", "fewer layers", "more layers"],
)
def test_another_adapter_than_the_recipes_is_an_error(
    written: dict[str, Any], wanted: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    load(tiny_llama, **written).save(tmp_path)
    with pytest.raises(StepalignError, match=r"adapter_model\.safetensors: another adapter than the recipe's"):
        load(tiny_llama, **wanted).load(tmp_path)


def test_a_half_written_or_missing_adapter_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    policy = load(tiny_llama)
    policy.save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StepalignError, match=r"adapter_model\.safetensors: not a whole adapter"):
        policy.load(tmp_path)
    file.unlink()
    with pytest.raises(StepalignError, match=r"adapter_model\.safetensors: not a whole adapter"):
        policy.load(tmp_path)
