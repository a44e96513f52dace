import shutil
from pathlib import Path

import pytest

from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_jsonl
from stepalign.probing import inputs
from stepalign.records import PlantedSlip, Problem, Rollout


def test_a_planted_folder_brings_problems_critiques_and_marks(planted: Path) -> None:
    found = inputs.read(planted)
    assert len(found.rollouts) == len(found.critiques) == 8
    assert len(found.problems) == 4
    slips = {slip.rollout_id: slip for slip in read_jsonl(planted / "slips.jsonl", PlantedSlip)}
    assert {mark.rollout_id: (mark.step, mark.start, mark.end) for mark in found.marks} == {
        name: (slip.step, slip.start, slip.end) for name, slip in slips.items()
    }
    assert {mark.source for mark in found.marks} == {"planted"}


def test_without_slips_the_critiques_say_where_rollouts_go_wrong(planted: Path, tmp_path: Path) -> None:
    for name in ("problems", "rollouts", "critiques"):
        shutil.copy(planted / f"{name}.jsonl", tmp_path)
    known, found = inputs.read(planted), inputs.read(tmp_path)
    assert {mark.source for mark in found.marks} == {"critique"}
    # A slip that leaves a term out shortens the step: the critique's place is then the same number's or the next's.
    assert [(mark.rollout_id, mark.step) for mark in found.marks] == [
        (mark.rollout_id, mark.step) for mark in known.marks
    ]


def test_a_file_alone_takes_its_problems_from_the_recipe(planted: Path) -> None:
    problems = {problem.id: problem for problem in read_jsonl(planted / "problems.jsonl", Problem)}
    found = inputs.read(planted / "rollouts.jsonl", problems)
    assert (len(found.rollouts), found.critic_results, found.marks) == (8, [], ())
    with pytest.raises(StepalignError, match=r"rollouts\.jsonl: rollout .*: no problem "):
        inputs.read(planted / "rollouts.jsonl", {})


def test_the_first_few_keep_what_belongs_to_them(planted: Path) -> None:
    few = inputs.read(planted).first(2)
    assert len(few.rollouts) == len(few.critic_results) == 2
    assert (len(few.problems), len(few.marks)) == (1, 1)


def test_what_is_written_is_read_back(planted: Path, tmp_path: Path) -> None:
    found = inputs.read(planted)
    found.write(tmp_path)
    again = inputs.read(tmp_path)
    assert (again.rollouts, again.problems, again.critic_results, again.marks) == (
        found.rollouts, found.problems, found.critic_results, found.marks,
    )  # fmt: skip


def test_a_rollout_twice_and_none_at_all_are_refused(planted: Path, tmp_path: Path) -> None:
    problems = {problem.id: problem for problem in read_jsonl(planted / "problems.jsonl", Problem)}
    rollouts = read_jsonl(planted / "rollouts.jsonl", Rollout)
    write_jsonl(tmp_path / "twice.jsonl", [rollouts[0], rollouts[0]])
    with pytest.raises(StepalignError, match=r"twice\.jsonl: rollout .* occurs twice"):
        inputs.read(tmp_path / "twice.jsonl", problems)
    write_jsonl(tmp_path / "none.jsonl", [])
    with pytest.raises(StepalignError, match=r"none\.jsonl: no rollouts"):
        inputs.read(tmp_path / "none.jsonl", problems)
