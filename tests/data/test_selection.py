"""The solver here is a program: its accuracy and its format accuracy at a problem follow from the id."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from stepalign import config
from stepalign.data import Loaded, load
from stepalign.data.selection import Selected, select
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl
from stepalign.records import Grade, Problem, Rollout

SETTINGS = config.SelectionConfig(num_attempts=8, max_accuracy=0.5, min_format_accuracy=0.8)
LOADED = load(config.SumsConfig(count=24))


def rates(problem: Problem) -> tuple[int, int]:
    """Of 8 attempts, how many are correct and how many in the format."""
    random = Random(problem.id)
    return random.randint(0, 8), random.choice([5, 7, 8, 8])


def solve(problems: Sequence[Problem], log: Path | None = None, delay: float = 0.0) -> Iterator[Rollout]:
    """Eight graded attempts at each problem, in mixed order, each written to the log as it is sampled."""
    attempts = [(problem, sample) for problem in problems for sample in range(8)]
    Random(0).shuffle(attempts)
    for problem, sample in attempts:
        correct, formatted = rates(problem)
        answer = problem.answer if sample < correct else str(int(problem.answer) + 1)
        text = problem.solution.replace(f"boxed{{{problem.answer}}}", f"boxed{{{answer}}}")
        text = text if sample < formatted else text.replace("### ", "")
        if log is not None:
            with log.open("a") as file:
                file.write(problem.id + "\n")
        time.sleep(delay)
        yield Rollout(
            id=f"{problem.id}/{sample}",
            problem_id=problem.id,
            sample=sample,
            completion_ids=(1,),
            text=text,
            token_starts=(0,),
            finish="stop",
            grade=Grade(
                correct=sample < correct, outcome="correct" if sample < correct else "wrong", final_answer=answer
            ),
        )


def run(
    folder: Path,
    log: Path | None = None,
    *,
    delay: float = 0.0,
    loaded: Loaded = LOADED,
    settings: config.SelectionConfig = SETTINGS,
    holdout: int = 2,
    seed: int = 0,
    model: str = "program",
) -> Selected:
    return select(
        loaded,
        lambda problems: solve(problems, log, delay),
        settings,
        folder=folder,
        holdout=holdout,
        seed=seed,
        batch=5,
        fingerprint={"model": {"name_or_path": model}, "sampling": {"temperature": 1.1}},
    )


def results(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in ("train.jsonl", "evaluation.jsonl", "manifest.json")}


def test_problems_within_both_bounds_are_kept(tmp_path: Path) -> None:
    selected = run(tmp_path)
    expected = [p.id for p in LOADED.problems if rates(p)[0] < 4 and rates(p)[1] >= 7]
    assert 2 < len(expected) < 24
    assert sorted(p.id for p in selected.train + selected.evaluation) == sorted(expected)
    assert len(selected.evaluation) == 2
    assert sum(selected.dropped.values()) == 24 - len(expected)


def test_bounds_are_strict(tmp_path: Path) -> None:
    at_bound = [p for p in load(config.SumsConfig(count=200)).problems if rates(p) == (4, 8)][:3]
    below = [p for p in load(config.SumsConfig(count=200)).problems if rates(p) == (3, 8)][:3]
    loaded = Loaded(problems=tuple(at_bound + below), dropped={}, places={})
    selected = run(tmp_path / "accuracy", loaded=loaded, holdout=0)
    assert selected.train == tuple(below)
    with pytest.raises(StepalignError, match="dropped 3 by accuracy and format, 3 by format"):
        run(tmp_path / "format", loaded=loaded, settings=SETTINGS.model_copy(update={"min_format_accuracy": 1.0}))


def test_what_is_written_is_what_is_returned(tmp_path: Path) -> None:
    selected = run(tmp_path)
    assert tuple(read_jsonl(tmp_path / "train.jsonl", Problem)) == selected.train
    assert load(config.FileConfig(path=tmp_path / "evaluation.jsonl")).problems == selected.evaluation
    assert [rollout.sample for rollout in read_jsonl(tmp_path / "attempts.jsonl", Rollout)] == 24 * list(range(8))


def test_the_manifest_says_what_was_dropped_and_why(tmp_path: Path) -> None:
    loaded = Loaded(problems=LOADED.problems, dropped={"duplicate": 1}, places={"duplicate": ["a.jsonl, line 3"]})
    selected = run(tmp_path, loaded=loaded)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["selection"] == {"num_attempts": 8, "max_accuracy": 0.5, "min_format_accuracy": 0.8}
    assert manifest["dropped_by_source"] == {"duplicate": {"count": 1, "places": ["a.jsonl, line 3"]}}
    assert manifest["dropped"] == selected.dropped
    assert manifest["counts"] == {
        "loaded": 24,
        "kept": len(selected.train) + 2,
        "train": len(selected.train),
        "evaluation": 2,
    }
    for problem, entry in zip(LOADED.problems, manifest["problems"], strict=True):
        correct, formatted = rates(problem)
        reasons = ["accuracy"] * (correct >= 4) + ["format"] * (formatted < 7)
        assert entry == {
            "id": problem.id,
            "accuracy": correct / 8,
            "format_accuracy": formatted / 8,
            "dropped": " and ".join(reasons) or None,
            "held_out": problem in selected.evaluation,
        }


def test_a_finished_selection_samples_nothing_again(tmp_path: Path) -> None:
    run(tmp_path / "folder")
    before = results(tmp_path / "folder")
    run(tmp_path / "folder", tmp_path / "log")
    assert not (tmp_path / "log").exists()
    assert results(tmp_path / "folder") == before


def test_a_killed_selection_goes_on_without_sampling_a_finished_problem_again(tmp_path: Path) -> None:
    folder, log = tmp_path / "killed", tmp_path / "log"
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import test_selection\n"
        f"test_selection.run(Path({str(folder)!r}), Path({str(log)!r}), delay=0.002)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    journal = folder / "attempts.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 8 * 8):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    lines = journal.read_bytes().split(b"\n")[:-1]
    finished = {json.loads(line)["problem_id"] for line in lines[: len(lines) // 8 * 8]}
    assert 8 <= len(finished) < 24
    assert not (folder / "manifest.json").exists()
    log.unlink()
    run(folder, log)
    assert not finished & set(log.read_text().split())
    run(tmp_path / "undisturbed")
    assert results(folder) == results(tmp_path / "undisturbed")
    assert sorted(journal.read_text().splitlines()) == sorted(
        (tmp_path / "undisturbed" / "attempts.jsonl").read_text().splitlines()
    )


@pytest.mark.parametrize("cut", [1, 40, 3000])
def test_a_half_written_end_is_done_again(tmp_path: Path, cut: int) -> None:
    run(tmp_path / "whole")
    whole = (tmp_path / "whole" / "attempts.jsonl").read_bytes()
    folder = tmp_path / "cut"
    run(folder)
    journal = folder / "attempts.jsonl"
    os.truncate(journal, len(whole) - cut)
    log = tmp_path / "log"
    run(folder, log)
    sampled = set(log.read_text().split())
    ends = [json.loads(line)["problem_id"] for line in whole.splitlines()[::-8]]
    lost = -(-cut // (len(whole) // 24))
    assert sampled <= set(ends[: lost + 1])
    assert ends[0] in sampled
    assert results(folder) == results(tmp_path / "whole")
    assert sorted(journal.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_journal_damaged_in_the_middle_is_an_error_with_its_line(tmp_path: Path) -> None:
    run(tmp_path)
    journal = tmp_path / "attempts.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], "{}\n", *lines[3:]]))
    with pytest.raises(StepalignError, match=r"attempts\.jsonl, line 3: not a Rollout"):
        run(tmp_path)
    journal.write_text("".join([*lines[:2], *lines[3:]]))
    with pytest.raises(StepalignError, match=r"attempts\.jsonl, line 8: an attempt at .* outside its group of 8"):
        run(tmp_path)


def test_a_folder_of_other_attempts_is_an_error_that_says_what_differs(tmp_path: Path) -> None:
    run(tmp_path)
    before = results(tmp_path)
    with pytest.raises(StepalignError, match=r"other settings(.|\n)*model\.name_or_path: 'program' → 'other'"):
        run(tmp_path, model="other")
    with pytest.raises(StepalignError, match=r"attempts: 8 → 4"):
        run(tmp_path, settings=config.SelectionConfig(num_attempts=4))
    with pytest.raises(StepalignError, match=r"problems\.count: 24 → 25"):
        run(tmp_path, loaded=load(config.SumsConfig(count=25)))
    assert results(tmp_path) == before


def test_other_bounds_are_refused_until_the_manifest_is_removed(tmp_path: Path) -> None:
    folder, log = tmp_path / "folder", tmp_path / "log"
    narrow = run(folder)
    wider = SETTINGS.model_copy(update={"max_accuracy": 1.0})
    with pytest.raises(StepalignError, match=r"filter\.seed: 0 → 3\n  filter\.selection\.max_accuracy: 0\.5 → 1\.0"):
        run(folder, settings=wider, seed=3)
    (folder / "manifest.json").unlink()
    selected = run(folder, log, settings=wider, seed=3)
    assert not log.exists()
    kept, kept_before = ({p.id for p in s.train + s.evaluation} for s in (selected, narrow))
    assert kept_before < kept


def test_attempts_without_their_settings_are_an_error(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(StepalignError, match=r"results without the settings\.json"):
        run(tmp_path)


def test_no_problem_left_is_an_error_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"none of 24 problems passed the selection: dropped .* by accuracy"):
        run(tmp_path, settings=SETTINGS.model_copy(update={"max_accuracy": 0.0}))


def test_a_hold_out_as_large_as_what_is_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match="holdout = 24"):
        run(tmp_path, holdout=24)


def test_progress_counts_what_an_earlier_run_finished(tmp_path: Path) -> None:
    run(tmp_path)
    lines = (tmp_path / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "attempts.jsonl").write_bytes(b"".join(lines[: 22 * 8]))
    seen: list[tuple[int, int]] = []
    select(
        LOADED,
        solve,
        SETTINGS,
        folder=tmp_path,
        holdout=2,
        seed=0,
        batch=5,
        fingerprint={"model": {"name_or_path": "program"}, "sampling": {"temperature": 1.1}},
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(22, 24), (23, 24), (24, 24)]


def test_too_few_attempts_are_not_written_down(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"8 attempts at each problem wanted, found .*: 7"):
        select(
            LOADED,
            lambda problems: (rollout for rollout in solve(problems) if rollout.sample),
            SETTINGS,
            folder=tmp_path,
            holdout=2,
            seed=0,
            batch=5,
            fingerprint={},
        )
    assert not (tmp_path / "attempts.jsonl").exists()
