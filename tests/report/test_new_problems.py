"""The comparison on training problems that a policy has not learned from."""

from pathlib import Path

import pytest

from stepalign import report
from stepalign.io import read_jsonl, write_jsonl
from stepalign.records import Rollout
from stepalign.report.new_problems import first_attempts, table
from stepalign.report.run import read_run


def test_a_problem_counts_at_its_first_attempts_after_step_one(build_run) -> None:
    folder = build_run(steps=3)
    files = [folder / "rollouts" / f"step-{step:06}.jsonl" for step in (1, 2, 3)]
    rollouts = [read_jsonl(path, Rollout) for path in files]
    seen = {rollout.problem_id for rollout in rollouts[0]}
    wanted = {}
    for step in (2, 3):
        new = [rollout for rollout in rollouts[step - 1] if rollout.problem_id not in seen]
        for rollout in new:
            cut = rollout.finish == "length"
            wanted[step, rollout.problem_id] = [float(rollout.correct), float(cut), float(len(rollout.completion_ids))]
        seen |= {rollout.problem_id for rollout in new}
    assert first_attempts(read_run(folder)) == wanted
    assert 0 < len(wanted) < 32, "some problems of these steps come again"


def test_samples_of_a_problem_are_averaged_and_other_rollouts_do_not_count(build_run) -> None:
    folder = build_run(steps=2)
    path = folder / "rollouts" / "step-000002.jsonl"
    known = {rollout.problem_id for rollout in read_jsonl(folder / "rollouts" / "step-000001.jsonl", Rollout)}
    one = next(rollout for rollout in read_jsonl(path, Rollout) if rollout.problem_id not in known)
    grades = [one.grade.__class__(correct=right, outcome="wrong", final_answer="") for right in (True, False)]
    pair = [one.__class__(**{**vars(one), "id": str(n), "grade": grade}) for n, grade in enumerate(grades)]
    reference = one.__class__(**{**vars(one), "id": "reference", "source": "reference", "grade": grades[0]})
    write_jsonl(path, [*pair, reference])
    assert [values[0] for values in first_attempts(read_run(folder)).values()] == [0.5]


def test_the_difference_is_paired_and_ends_with_the_shorter_run(build_run) -> None:
    runs = {
        "worse": [read_run(build_run("worse", steps=6))],
        "better": [read_run(build_run("better", steps=5, gain=0.9))],
    }
    found = table(runs, resamples=200, seed=0)
    assert found is not None
    assert found.title.startswith("Training problems of steps 2 to 5,")
    names = [name for name, _ in found.rows]
    assert names == ["worse", "better", "better − worse"]
    known = [first_attempts(run[0]) for run in runs.values()]
    places = [place for place in known[0] if place[0] <= 5]
    change = sum(known[1][place][0] - known[0][place][0] for place in places) / len(places)
    assert change > 0.1
    assert found.rows[2][1][0].text == f"+{100 * change:.1f} points"


@pytest.mark.parametrize("other", ["another seed", "no steps"])
def test_runs_on_other_problems_are_not_compared(other: str, build_run) -> None:
    runs = {"one": [read_run(build_run("one"))]}
    runs["two"] = [read_run(build_run("two", seed=1) if other == "another seed" else build_run("two", steps=0))]
    assert table(runs, resamples=200, seed=0) is None


def test_the_page_and_its_markdown_have_the_table(build_run, tmp_path: Path) -> None:
    folders = [build_run("worse"), build_run("better", gain=0.9)]
    page = report.write_comparison(folders, tmp_path / "out.html").read_text()
    title = "Training problems of steps 2 to 6, each before the policy learned from it"
    assert title in page
    assert title in (tmp_path / "out.md").read_text()
