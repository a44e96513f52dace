"""The solver that ships with the package: small, loadable, right as often as its card says, and it learns."""

from pathlib import Path

import pytest

from stepalign.assets import SOLVER
from stepalign.chat import load_chat
from stepalign.lab.running import settings_of
from stepalign.launch import train
from stepalign.prompts.conversation import Turn
from stepalign.report.run import read_run

MEGABYTE = 2**20


def test_it_is_small_and_has_a_card() -> None:
    assert sum(file.stat().st_size for file in SOLVER.iterdir()) < 10 * MEGABYTE
    card = (SOLVER / "README.md").read_text()
    assert "python -m tools.lab_solver.pretrain" in card


def test_its_chat_is_one_that_the_pipeline_takes() -> None:
    chat = load_chat(settings_of("stepalign", 0, Path("out")).model)
    ids = chat.prompt_ids([Turn("user", "Compute 1 + 2 <|end|>.")])
    assert chat.decode(ids)[0] == "<|user|>Compute 1 + 2 <|end|>.<|end|><|assistant|><think>\n\n</think>\n\n"
    assert sum(token in chat.eos_ids for token in ids) == 1


@pytest.mark.slow
def test_a_few_steps_of_feedback_help(tmp_path: Path) -> None:
    """An end-to-end regression test: real rollouts, real critiques, a real teacher, a real gain."""
    short = [
        "training.max_steps=12",
        "training.eval_steps=0",
        "problems.evaluation.count=30",
        "evaluation.num_samples=8",
        "probe.num_rollouts=1",
    ]
    settings = settings_of("stepalign-reverse", 0, tmp_path, short)
    train(settings)
    before, after = (evaluation.measures["avg"].value for evaluation in read_run(settings.folder).evaluations)
    assert 0.3 < before < 0.6
    assert after > before + 0.1
