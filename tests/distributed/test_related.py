"""Every related system in two processes (gloo), compared with one process, or refused before the run."""

from pathlib import Path

import pytest

import processes
from stepalign import config
from stepalign.lab.running import related, settings_of
from stepalign.launch import train
from tests.distributed.test_strategy import metrics, same_run

SMALL = (
    *("training.max_steps=1", "training.rollouts_per_step=8", "training.micro_batch_size=3", "training.eval_steps=0"),
    *("evaluation.num_samples=1", "evaluation.num_bootstrap=50", "problems.evaluation.count=2"),
)
TRUST_REGION = ("teacher.kind=trust-region", "algorithm.num_iterations=2", "algorithm.kl_coef=0.1")
CASES = [
    *((condition, ()) for condition in related()),
    ("opsd-v1", ("teacher.kind=scaled",)),
    ("opsd-v1", ("teacher.kind=trust-region",)),
    ("opsd-v1", ("teacher.kind=ema",)),
    ("sdpo", ("teacher.kind=trust-region",)),
    ("rlcsd", TRUST_REGION),
    ("sdpo", ("training.max_tokens_per_micro_batch=200",)),
]


def settings(condition: str, overrides: tuple[str, ...], out: Path) -> config.Recipe:
    """A small step of a condition; the lab's solver itself in place of a teacher that has to be trained first."""
    plain = settings_of(condition, 0, out, overrides)
    own = list(overrides)
    if isinstance(plain.teacher, config.ModelTeacherConfig):
        own.append("teacher.model.name_or_path=lab")
    if plain.training.num_generations > 4:
        own.append("training.num_generations=4")
    return settings_of(condition, 0, out, [*SMALL, *own]).model_copy(update={"probe": None})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["data_parallel", "fsdp2"])
@pytest.mark.parametrize(("condition", "overrides"), CASES)
def test_a_step_in_two_processes_is_that_of_one(
    condition: str, overrides: tuple[str, ...], strategy: str, tmp_path: Path
) -> None:
    one = settings(condition, overrides, tmp_path)
    two = one.model_copy(
        update={"name": "two", "distributed": config.DistributedConfig(num_processes=2, strategy=strategy)}
    )
    if strategy == "fsdp2" and one.adapter is None:
        with pytest.raises(AssertionError, match=r"StepalignError: .*distributed\.strategy = 'fsdp2'"):
            processes.launch(2, tmp_path, train, two)
        assert not (two.folder / "metrics.jsonl").exists()
        return
    processes.launch(1, tmp_path, train, one)
    assert "loss" in metrics(one.folder)[0]
    processes.launch(2, tmp_path, train, two)
    same_run(two.folder, one.folder)
