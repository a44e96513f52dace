import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_jsonl
from stepalign.probing import inputs
from stepalign.probing.folder import write_inputs
from stepalign.probing.inputs import mark_from_critique, mark_from_slip
from stepalign.records import Critique, PlantedSlip, Problem, Rollout, Verdict

TEXT = "### Step 1: Add\n2 + 3 = 5\n\n### Step 2: Add 41\n5 + 41 = 48\n\n### Final Answer:\n\\boxed{48}"


def rollout(text: str = TEXT) -> Rollout:
    """One token a character, and an EOS."""
    ids = (*(ord(character) % 300 for character in text), 0)
    return Rollout(
        id="r", problem_id="p", completion_ids=ids, text=text, token_starts=tuple(range(len(ids))), finish="stop"
    )


def critique(first_error: int | None, corrected: str = "", case: str = "D") -> Critique:
    verdicts = [Verdict(step=k, correct=k != first_error) for k in range(1, 4)]
    return Critique(
        rollout_id="r", critic="c", case=case, verdicts=verdicts, correct_part="", corrected_step=corrected, text="t"
    )


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
    problems = read_jsonl(planted / "problems.jsonl", Problem)
    found = inputs.read(planted / "rollouts.jsonl", lambda: problems)
    assert (len(found.rollouts), found.critic_results, found.marks) == (8, (), ())
    with pytest.raises(StepalignError, match=r"rollouts\.jsonl: rollout .*: no problem "):
        inputs.read(planted / "rollouts.jsonl")


def test_the_first_few_keep_what_belongs_to_them(planted: Path) -> None:
    few = inputs.read(planted, limit=2)
    assert len(few.rollouts) == len(few.critic_results) == 2
    assert (len(few.problems), len(few.marks)) == (1, 1)


def test_what_is_written_is_read_back(planted: Path, tmp_path: Path) -> None:
    found = inputs.read(planted)
    write_inputs(found, tmp_path)
    assert inputs.read(tmp_path) == found


def test_a_rollout_twice_and_none_at_all_are_refused(planted: Path, tmp_path: Path) -> None:
    problems = read_jsonl(planted / "problems.jsonl", Problem)
    rollouts = read_jsonl(planted / "rollouts.jsonl", Rollout)
    write_jsonl(tmp_path / "twice.jsonl", [rollouts[0], rollouts[0]])
    with pytest.raises(StepalignError, match=r"twice\.jsonl: rollout .* occurs twice"):
        inputs.read(tmp_path / "twice.jsonl", lambda: problems)
    write_jsonl(tmp_path / "none.jsonl", [])
    with pytest.raises(StepalignError, match=r"none\.jsonl: no rollouts"):
        inputs.read(tmp_path / "none.jsonl")


def test_a_slip_is_marked_where_it_was_planted() -> None:
    start = TEXT.index("48")
    slip = PlantedSlip(
        rollout_id="r", problem_id="p", kind="arithmetic", step=2, start=start, end=start + 2, text=TEXT,
        correct_text=TEXT.replace("48", "46"),
    )  # fmt: skip
    mark = mark_from_slip(slip)
    assert (TEXT[mark.start : mark.end], mark.step, mark.source) == ("48", 2, "planted")
    assert mark.departure == start + 1


def test_a_critique_marks_the_whole_number_in_which_the_steps_part() -> None:
    mark = mark_from_critique(rollout(), critique(2, "### Step 2: Add 41\n5 + 41 = 46"))
    assert mark is not None
    assert (TEXT[mark.start : mark.end], mark.step, mark.source) == ("48", 2, "critique")
    assert (mark.start, mark.departure) == (TEXT.index("48"), TEXT.index("48") + 1)


def test_a_correction_in_other_words_marks_the_same_number_and_one_without_a_difference_the_whole_step() -> None:
    mark = mark_from_critique(rollout(), critique(2, "### Step 2: Take all together\n46"))
    assert mark is not None
    assert (TEXT[mark.start : mark.end], mark.departure) == ("48", TEXT.index("48") + 1)
    mark = mark_from_critique(rollout(), critique(2, "### Step 2: Take all together\nSo we have 5 plus 41 = 48"))
    assert mark is not None
    assert TEXT[mark.start : mark.end].startswith("### Step 2")
    assert mark.end == TEXT.index("### Final")
    assert mark.departure is None


def test_what_is_right_or_only_unfinished_or_missing_has_no_mark() -> None:
    assert mark_from_critique(rollout(), critique(None)) is None
    assert mark_from_critique(rollout(), critique(2, "### Step 2: Add 41\n", case="C")) is None
    short = rollout(TEXT[: TEXT.index("### Final")])
    assert mark_from_critique(short, critique(3)) is None
    assert mark_from_critique(rollout("no steps at all"), critique(1)) is None


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("slips.jsonl", {"step": 99}, r"an error in step 99 of \d+"),
        ("marks.jsonl", {"step": 99}, r"an error in step 99 of \d+"),
        ("marks.jsonl", {"end": 9009}, r"an error in the characters \[\d+, 9009\) of a text with \d+"),
    ],
)
def test_a_mark_outside_its_rollout_is_refused(
    name: str, fault: dict[str, Any], message: str, planted: Path, tmp_path: Path
) -> None:
    shutil.copytree(planted, tmp_path, dirs_exist_ok=True)
    slips = read_jsonl(planted / "slips.jsonl", PlantedSlip)
    if name == "marks.jsonl":
        (tmp_path / "slips.jsonl").unlink()
        write_jsonl(tmp_path / name, [replace(mark_from_slip(slips[0]), **fault)])
    else:
        write_jsonl(tmp_path / name, [replace(slips[0], **fault)])
    with pytest.raises(StepalignError, match=rf"{name}: rollout {slips[0].rollout_id}: {message}"):
        inputs.read(tmp_path)
