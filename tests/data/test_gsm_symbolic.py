import os
import subprocess
import sys

import pytest

from stepalign import config
from stepalign.data import load

pytest.importorskip("reasoning_gym")


def test_problems_have_statement_answer_and_a_derivation_without_its_last_line() -> None:
    result = load(config.GsmSymbolicConfig(count=200, seed=3))
    assert len(result.problems) + sum(result.dropped.values()) == 200
    assert len(result.problems) >= 195
    for problem in result.problems:
        float(problem.answer)
        assert problem.solution
        assert "####" not in problem.solution


def test_a_seed_gives_the_same_problems_in_another_process() -> None:
    script = (
        "from stepalign import config, data\n"
        "for p in data.load(config.GsmSymbolicConfig(count=30, seed=5)).problems: print(p)\n"
    )
    here = "".join(f"{problem}\n" for problem in load(config.GsmSymbolicConfig(count=30, seed=5)).problems)
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONUTF8": "1"}
    there = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout == here


def test_neighbouring_seeds_share_no_problems() -> None:
    sets = [{p.statement for p in load(config.GsmSymbolicConfig(count=300, seed=s)).problems} for s in (0, 1)]
    assert len(sets[0] & sets[1]) <= 3
