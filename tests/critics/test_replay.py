from pathlib import Path

import pytest

from stepalign.critics.arithmetic.critic import ProgramCritic
from stepalign.critics.replay import ReplayCritic
from stepalign.errors import StepalignError
from stepalign.io import to_json, write_jsonl
from stepalign.records import CritiqueFailure, Grade, Problem, Rollout

PROBLEM = Problem(id="p", statement="What is 2 + 3?", answer="5")


def rollout(name: str) -> Rollout:
    text = "### Step 1: Add\n2 + 3 = 5\n\n### Final Answer:\n\\boxed{5}"
    grade = Grade(correct=True, outcome="correct")
    return Rollout(id=name, problem_id="p", completion_ids=(), token_starts=(), text=text, finish="stop", grade=grade)


def test_each_rollout_gets_the_files_answer_and_a_missing_one_is_a_failure(tmp_path: Path) -> None:
    written = list(ProgramCritic().critique([(PROBLEM, rollout(name)) for name in "ab"]))
    written.append(CritiqueFailure(rollout_id="c", critic="program", reason="no way to the answer"))
    path = tmp_path / "critiques.jsonl"
    write_jsonl(path, written)
    *found, lacking = ReplayCritic(path).critique((PROBLEM, rollout(name)) for name in "cabx")
    assert found == [written[2], written[0], written[1]]
    assert lacking == CritiqueFailure(
        rollout_id="x", critic="replay", reason="missing", detail=f"{path} has no critique of it"
    )


def test_a_files_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "critiques.jsonl"
    with pytest.raises(StepalignError, match=r"critiques\.jsonl: No such file"):
        ReplayCritic(path)
    failure = to_json(CritiqueFailure(rollout_id="a", critic="c", reason="parse"))
    path.write_text(f'{failure}\n{{"kind": "failure"}}\n')
    with pytest.raises(StepalignError, match=r"line 2: not a Critique or CritiqueFailure: failure\.rollout_id: Field"):
        ReplayCritic(path)
    path.write_text(f"{failure}\n{failure}\n")
    with pytest.raises(StepalignError, match="rollout a is answered twice"):
        ReplayCritic(path)
