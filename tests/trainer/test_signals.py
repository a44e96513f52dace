"""Runs of a few steps on the lab's solver, with each context and algorithm that learns from more than one rollout."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stepalign.lab.running import settings_of
from stepalign.trainer.build import build_trainer
from stepalign.trainer.run_folder import RunFolder

SHORT = (
    "problems.train.count=40",
    "problems.evaluation.count=1",
    "evaluation.num_samples=1",
    "training.max_steps=2",
    "training.eval_steps=0",
    "training.save_steps=1",
    "training.rollouts_per_step=8",
    "training.num_generations=4",
    "sampling.max_new_tokens=64",
)


def run(folder: Path, overrides: Sequence[str], *, stop_after: int = 0) -> list[dict[str, Any]]:
    """Do a run, or continue it; stop it after a step, as a kill would. Returns the lines of its metrics."""
    settings = settings_of("refsol", 0, folder, [*SHORT, *overrides]).model_copy(update={"probe": None})
    with ExitStack() as stack:
        opened = RunFolder(settings)
        stack.callback(opened.close)
        trainer = build_trainer(settings, opened, stack)
        if stop_after:
            train_step = trainer.train_step

            def interrupted(batch: Any) -> None:
                if trainer.step == stop_after:
                    raise KeyboardInterrupt
                train_step(batch)

            trainer.train_step = interrupted  # type: ignore[method-assign]
        trainer.train()
    return [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]


def adapter(folder: Path) -> bytes:
    return (folder / "refsol-0" / "checkpoints" / "step-000002" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("context", ["sibling", "past"])
def test_a_run_learns_from_each_context(context: str, tmp_path: Path) -> None:
    lines = run(tmp_path, [f"context.template=lab/{context}", "training.max_steps=1", "training.num_generations=2"])
    (line,) = lines
    outcomes = line["outcomes"]
    assert line["loss"] > 0
    assert outcomes["trained"] + outcomes.get("dropped", 0) == 8
    assert outcomes.get("masked", 0) == outcomes.get("dropped", 0) == sum(line["failures"].values())
    assert (outcomes.get("masked", 0) > 0) == (context == "sibling")


ALGORITHMS = {
    "credit-grpo": ("context.template=lab/sdpo", "teacher.kind=ema"),
    "grpo-distillation": ("context.template=lab/sibling", "algorithm.loss_agg_mode=token-mean"),
    "rltf-sd": ("context.template=lab/second-turn",),
    "rltf-fm": ("algorithm.feedback_template=lab/feedback-request", "algorithm.kl_coef=0.1"),
    "credit-grpo contrast": ("algorithm.credit=contrast", "algorithm.num_iterations=2"),
}

QUICK = ("credit-grpo",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ALGORITHMS]
)
def test_a_killed_run_ends_with_the_same_adapter(name: str, tmp_path: Path) -> None:
    keys = [f"algorithm.kind={name.split(maxsplit=1)[0]}", *ALGORITHMS[name]]
    lines = run(tmp_path / "whole", keys)
    assert all(line["grad_norm"] > 0 for line in lines)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", keys, stop_after=1)
    again = run(tmp_path / "killed", keys)
    assert [{**line, "seconds": 0} for line in again] == [{**line, "seconds": 0} for line in lines]
    assert adapter(tmp_path / "killed") == adapter(tmp_path / "whole")
