"""Every related system in two processes (gloo), compared with one process, or refused before the run."""

from pathlib import Path

import pytest
import torch

import processes
from stepalign import config
from stepalign.distributed.process import World
from stepalign.distributed.strategy import build_strategy
from stepalign.errors import StepalignError
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


def passes_vary(recipe: config.Recipe) -> bool:
    return recipe.algorithm.teacher_passes_vary(recipe.training.max_tokens_per_micro_batch)


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
    if strategy == "fsdp2" and (one.adapter is None or passes_vary(one)):
        with pytest.raises(AssertionError, match=r"StepalignError: .*distributed\.strategy = 'fsdp2'"):
            processes.launch(2, tmp_path, train, two)
        assert not (two.folder / "metrics.jsonl").exists()
        return
    processes.launch(1, tmp_path, train, one)
    assert "loss" in metrics(one.folder)[0]
    processes.launch(2, tmp_path, train, two)
    same_run(two.folder, one.folder)


@pytest.mark.parametrize(
    ("algorithm", "max_tokens", "refused"),
    [
        (config.CreditGRPOConfig(), None, True),
        (config.CreditGRPOConfig(credit="verdicts"), 512, False),
        (config.GRPODistillationConfig(), None, True),
        (config.GRPOConfig(kl_coef=0.1), 512, False),
        (config.RLTFFMConfig(), 512, False),
        (config.SeqKDConfig(), 512, False),
        (config.DistillationConfig(), None, False),
        (config.DistillationConfig(), 512, True),
    ],
)
def test_a_sharded_base_needs_a_number_of_teacher_passes_that_is_known(
    algorithm: config.AlgorithmConfig, max_tokens: int | None, refused: bool
) -> None:
    def build(strategy: str) -> str:
        table = config.DistributedConfig(strategy=strategy)  # type: ignore[arg-type]
        vary = algorithm.teacher_passes_vary(max_tokens)
        return build_strategy(table, World(0, 2), torch.device("cpu"), teacher_passes_vary=vary).name

    assert build("data_parallel") == "data_parallel"
    if refused:
        with pytest.raises(StepalignError, match="the number of the teacher's passes depends on the rollouts"):
            build("fsdp2")
    else:
        assert build("fsdp2") == "fsdp2"
