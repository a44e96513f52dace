"""Canaries: what leaves its range is named once and in time, noise is not."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from stepalign.config import CanariesConfig, Recipe
from stepalign.evaluation.metrics import METRICS, Evaluation
from stepalign.io import to_json, write_atomically
from stepalign.launch import train
from stepalign.report.run import read_steps
from stepalign.trainer.canaries import Canaries, first_raised, of_evaluations, of_steps

SETTINGS = CanariesConfig()
STEADY = {
    "on_policy": 1.0, "correct": 0.5, "formatted": 0.9, "completion_tokens": 6400, "rollouts": 64, "truncated": 0.05,
    "repeated": 0.02, "entropy_student": 0.3,
}  # fmt: skip


def lines(count: int, *, seed: int = 0, **last: float) -> list[dict[str, Any]]:
    """Steps whose measures scatter by 5 %, and drift towards other values from the middle on."""
    random, made = Random(seed), []
    for step in range(1, count + 1):
        drift = max(0.0, 2 * step / count - 1)
        values = {
            key: (value + drift * (last.get(key, value) - value)) * random.gauss(1, 0.05)
            for key, value in STEADY.items()
            if key not in ("on_policy", "rollouts")
        }
        made.append({"step": step, "on_policy": 1.0, "rollouts": 64, **values})
    return made


def evaluation(step: int, accuracy: float) -> Evaluation:
    random = np.random.default_rng(0)
    values = np.zeros((1, 60, len(METRICS)))
    values[0, :, 0] = np.clip(accuracy + random.normal(0, 0.1, 60), 0, 1)
    ids = tuple(f"{number:02}" for number in range(60))
    return Evaluation.of(METRICS, values, problem_ids=ids, n=4, ties=0, resamples=200, seed=0, step=step)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("correct", 0.2, "accuracy"),
        ("formatted", 0.5, "format"),
        ("truncated", 0.4, "truncation"),
        ("repeated", 0.3, "repetition"),
        ("completion_tokens", 12800, "length"),
        ("completion_tokens", 2500, "length"),
        ("entropy_student", 0.03, "entropy"),
        ("entropy_student", 2.0, "entropy"),
    ],
)
def test_a_measure_that_leaves_its_range_is_named_in_time(key: str, value: float, name: str) -> None:
    steps = lines(40, **{key: value})
    (raised,) = first_raised(steps, [], SETTINGS).items()
    assert 20 < raised[0] < 40
    assert [canary.name for canary in raised[1]] == [name]
    assert (value < STEADY[key]) == (" fell from " in raised[1][0].text)


def test_a_long_run_is_read_at_once_and_each_measure_where_it_was_first_raised() -> None:
    steps = lines(300, correct=0.1, entropy_student=2.0)
    first: dict[str, int] = {}
    for count in range(len(steps) + 1):
        for canary in of_steps(steps[:count], SETTINGS):
            first.setdefault(canary.name, count)
    found = first_raised(steps, [], SETTINGS)
    assert {canary.name: step for step, canaries in found.items() for canary in canaries} == first
    assert set(first) == {"accuracy", "entropy"}
    start = time.process_time()
    first_raised(lines(2000), [], SETTINGS)
    assert time.process_time() - start < 0.5


def test_gains_and_noise_are_not_named() -> None:
    for seed in range(20):
        better = lines(60, seed=seed, correct=0.95, formatted=1.0, truncated=0.0, repeated=0.0, entropy_student=0.12)
        assert not first_raised(better, [], SETTINGS)
    noisy = [line | {"correct": 0.5 + (0.4 if k % 2 else -0.4)} for k, line in enumerate(lines(40))]
    assert not first_raised(noisy, [], SETTINGS)


def test_a_change_within_the_range_is_not_named_however_exact() -> None:
    exact = [{**STEADY, "step": k, "correct": 0.5 if k < 10 else 0.42} for k in range(20)]
    assert of_steps(exact, SETTINGS) == []
    assert of_steps(exact, CanariesConfig(max_accuracy_drop=0.05))[0].name == "accuracy"


def test_steps_on_references_and_steps_without_a_key_do_not_count() -> None:
    references = [line | {"on_policy": 0.0, "correct": 1.0, "step": k} for k, line in enumerate(lines(20))]
    own = [{**line, "step": 20 + k} for k, line in enumerate(lines(20))]
    assert of_steps([*references, *own], SETTINGS) == []
    assert of_steps([{"step": k} for k in range(30)], SETTINGS) == []


def test_held_out_accuracy_is_compared_with_the_first_evaluation() -> None:
    steps, first = lines(20), evaluation(0, 0.5)
    assert of_evaluations(steps, [first], SETTINGS) == []
    assert of_evaluations(steps, [first, evaluation(20, 0.45)], SETTINGS) == []
    fell, gap = of_evaluations(steps, [first, evaluation(20, 0.2)], SETTINGS)
    assert fell.text.startswith("held-out accuracy fell from 5")
    assert gap.last == pytest.approx(0.3, abs=0.05)
    learnt_by_heart = lines(40, correct=0.95)
    (gap,) = of_evaluations(learnt_by_heart, [first, evaluation(40, 0.5)], SETTINGS)
    assert gap.name == "training beyond held-out accuracy"
    assert gap.last > 0.2


def test_a_resumed_run_remembers_its_first_steps(tmp_path: Path) -> None:
    steps = lines(40, correct=0.1)
    whole = Canaries(tmp_path / "none", SETTINGS)
    alarms = [whole.after_step(line) for line in steps]
    write_atomically(tmp_path / "metrics.jsonl", "".join(to_json(line) + "\n" for line in steps[:25]))
    resumed = Canaries(tmp_path, SETTINGS)
    assert [resumed.after_step(line) for line in steps[25:]] == alarms[25:]
    assert sum(len(new) for _, new in alarms) == 1


def test_a_canary_is_in_the_steps_line_the_log_and_the_report(
    make_recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    # Any change of the entropy is out of a range without width.
    settings = make_recipe("canaries={ num_steps = 1, num_standard_errors = 0.0, max_entropy_ratio = 1.0 }")
    page = train(settings).folder / "report.html"
    printed = capsys.readouterr().err
    assert re.search(r"step 2: .*canary entropy, ", printed)
    assert "warning: step 2: canary: entropy " in printed
    lines = read_steps(settings.folder)
    assert "entropy" in lines[1]["canaries"]
    assert "Canary at step 2: entropy" in page.read_text()
