"""Programs graded a second: MBPP's references, with one worker and with two, in each sandbox that works here.

python bench/code_grading.py ../shared/data/mbpp/mbpp.jsonl
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

from stepalign import config
from stepalign.data import load
from stepalign.data.code import SPLITS
from stepalign.errors import StepalignError
from stepalign.records import Problem, Rollout
from stepalign.rewards.unit_tests import UnitTestGrader
from stepalign.rollouts.references import reference_text
from stepalign.sandbox.launch import Kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="MBPP's raw mbpp.jsonl")
    path = parser.parse_args().path
    problems = {
        problem.id: problem for split in SPLITS for problem in load(config.MbppConfig(split=split, path=path)).problems
    }
    blank = Rollout(id="-", problem_id="-", completion_ids=(), token_starts=(), text="", finish="stop")
    rollouts = [replace(blank, id=name, problem_id=name, text=reference_text(one)) for name, one in problems.items()]
    for kind in get_args(Kind):
        for workers in (1, 2):
            try:
                print(measured(kind, workers, rollouts, problems))
            except StepalignError as error:
                print(error)


def measured(kind: Kind, workers: int, rollouts: list[Rollout], problems: dict[str, Problem]) -> str:
    """The programs graded a second by workers that are up."""
    with UnitTestGrader(num_workers=workers, sandbox=kind) as grader:
        grader.grade(rollouts[: 4 * workers], problems)
        began = time.perf_counter()
        graded = grader.grade(rollouts, problems)
        rate = len(rollouts) / (time.perf_counter() - began)
    right = sum(one.correct for one in graded)
    return f"{kind}, {workers} worker(s): {rate:.0f} programs/s, {right} of {len(rollouts)} references correct"


if __name__ == "__main__":
    main()
