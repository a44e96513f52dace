"""Another model as teacher: what it predicts, and what must agree with the student."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stepalign import config
from stepalign.chat import load_chat
from stepalign.collate import collate
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.teachers.model import ModelTeacher, check_tokenizer
from test_policy import batch, load, trained, views

pytestmark = pytest.mark.usefixtures("no_figures")

MakeRecipe = Callable[..., config.Recipe]


def table(folder: Path) -> config.ModelConfig:
    return config.ModelConfig(name_or_path=str(folder))


@pytest.fixture
def copy(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """A folder with the other model and its tokenizer, to be changed."""
    return Path(shutil.copytree(tiny_qwen3, tmp_path / "other"))


def test_it_predicts_as_the_model_does_and_never_moves(tiny_llama: Path, tiny_qwen3: Path) -> None:
    policy = load(tiny_llama)
    teacher = ModelTeacher(config.ModelTeacherConfig(model=table(tiny_qwen3)), policy=policy)
    before = teacher.forward(batch())
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    view = views()[1]
    logits = model(torch.tensor([[*view.prompt_ids, *view.completion_ids]])).logits[0, len(view.prompt_ids) - 1 : -1]
    mine = teacher.forward(collate([view])) @ teacher.head.T
    torch.testing.assert_close(mine, logits[view.loss_start : view.loss_stop], rtol=1e-4, atol=1e-5)
    trained(policy)
    teacher.after_update(policy)
    assert torch.equal(teacher.forward(batch()), before)
    assert not teacher.moves
    assert not before.requires_grad


def padded(folder: Path, rows: int = 8) -> Path:
    """Add rows to a model's vocabulary, as Qwen2.5's larger models have more than its smaller ones."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(model.get_output_embeddings().weight) + rows, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def test_rows_of_padding_beyond_the_students_are_left_out(tiny_llama: Path, tiny_qwen3: Path, copy: Path) -> None:
    policy = load(tiny_llama)
    plain, wide = (
        ModelTeacher(config.ModelTeacherConfig(model=table(folder)), policy=policy)
        for folder in (tiny_qwen3, padded(copy))
    )
    assert wide.head.shape == plain.head.shape == policy.head.shape
    torch.testing.assert_close(wide.forward(batch()) @ wide.head.T, plain.forward(batch()) @ plain.head.T)


def test_fewer_rows_than_the_students_are_an_error(tiny_llama: Path, copy: Path) -> None:
    with pytest.raises(StepalignError, match=r"teacher\.model\.name_or_path = .*: \d+ rows of logits, the student has"):
        ModelTeacher(config.ModelTeacherConfig(model=table(tiny_llama)), policy=load(padded(copy)))


def test_a_run_with_a_model_of_another_width_resumes_bit_for_bit(copy: Path, make_recipe: MakeRecipe) -> None:
    wide = AutoConfig.from_pretrained(copy)
    wide.hidden_size = 48
    AutoModelForCausalLM.from_config(wide).save_pretrained(copy)
    keys = (
        "teacher.kind=model", f"teacher.model.name_or_path={copy}", "problems.holdout=0", "training.save_steps=1",
        "training.rollouts_per_step=2",
    )  # fmt: skip
    train(whole := make_recipe(*keys, "name=whole", "training.max_steps=2"))
    for last in (1, 2):
        train(parts := make_recipe(*keys, "name=parts", f"training.max_steps={last}"))
    one, other = (each.folder / "checkpoints" / "step-000002" / "adapter_model.safetensors" for each in (whole, parts))
    assert one.read_bytes() == other.read_bytes()


def test_another_vocabulary_is_an_error_before_weights_are_loaded(
    copy: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copy / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    vocab = json.loads(text)["model"]["vocab"]
    one, other = (next(token for token, id in vocab.items() if id == place) for place in (40, 41))
    changed = json.loads(text)
    changed["model"]["vocab"][one], changed["model"]["vocab"][other] = 41, 40
    file.write_text(json.dumps(changed), encoding="utf-8")
    monkeypatch.setattr("stepalign.models.load_base", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(StepalignError, match=r"teacher\.model\.name_or_path.*2 of \d+ tokens have another id there: "):
        train(make_recipe("teacher.kind=model", f"teacher.model.name_or_path={copy}"))


def test_a_tokenizer_that_lacks_tokens_is_an_error(copy: Path, tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_tokens(["<new>"])
    student = load_chat(table(tiny_llama))
    student.tokenizer = tokenizer
    with pytest.raises(StepalignError, match=r"1 of \d+ tokens have another id there: '<new>' \(\d+, None\)"):
        check_tokenizer(table(copy), student)


def test_another_end_of_a_response_is_an_error(copy: Path, tiny_llama: Path) -> None:
    check_tokenizer(table(copy), load_chat(table(tiny_llama)))
    for name, key in (("tokenizer_config.json", "eos_token"), ("generation_config.json", "eos_token_id")):
        path = copy / name
        values = json.loads(path.read_text())
        values[key] = "<|endoftext|>" if key == "eos_token" else 0
        path.write_text(json.dumps(values))
    with pytest.raises(StepalignError, match=r"ends a response with <\|endoftext\|>, the student with .*<\|im_end\|>"):
        check_tokenizer(table(copy), load_chat(table(tiny_llama)))


def test_a_missing_model_names_the_teachers_key(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"teacher\.model\.name_or_path = .*nowhere.*: no such folder"):
        train(make_recipe("teacher.kind=model", f"teacher.model.name_or_path={tmp_path / 'nowhere'}"))


def test_a_map_over_devices_loads_the_same_weights(tiny_llama: Path, tiny_qwen3: Path) -> None:
    policy = load(tiny_llama)
    one, other = (
        ModelTeacher(config.ModelTeacherConfig(model=table(tiny_qwen3), device_map=where), policy=policy)
        for where in (None, "cpu")
    )
    assert torch.equal(one.forward(batch()), other.forward(batch()))
