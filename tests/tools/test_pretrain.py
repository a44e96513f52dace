"""Training the lab's solver: what it is trained on, and that a stopped training goes on to the same weights."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from stepalign.assets import SOLVER
from stepalign.chat import Chat
from tools.lab_solver import pretrain


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(pretrain, "ALONE_STEPS", 3)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = {"steps": 4, "terms": (4, 4), "init": SOLVER}
    pretrain.train(whole, **options)

    def full(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        save, saved = torch.save, []
        broken.setattr(torch, "save", lambda *args: full() if saved else saved.append(save(*args)))
        with pytest.raises(OSError, match="full"):
            pretrain.train(stopped, **options)
    pretrain.train(stopped, **options)
    weights, wanted = (load_file(folder / "model.safetensors") for folder in (stopped, whole))
    begin = load_file(SOLVER / "model.safetensors")
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert not all(torch.equal(begin[name], wanted[name]) for name in wanted)


def test_every_parameter_is_trained_by_one_optimizer() -> None:
    model = pretrain.new_model(300, 0)
    taken = [
        p for optimizer in pretrain.optimizers_of(model) for group in optimizer.param_groups for p in group["params"]
    ]
    assert sorted(map(id, taken)) == sorted(map(id, model.parameters()))


def test_contexts_can_be_left_out() -> None:
    chat = Chat(AutoTokenizer.from_pretrained(SOLVER))

    def longest_prompt(alone: float) -> int:
        return max(prompt for batch in islice(pretrain.batches(chat, 0, (4, 4), alone), 40) for _, prompt in batch)

    assert longest_prompt(1.0) < 100 < longest_prompt(0.5)
