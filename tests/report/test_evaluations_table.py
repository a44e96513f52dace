import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stepalign import cli
from stepalign.evaluation.metrics import METRICS, Evaluation
from stepalign.evaluation.stats import Interval
from stepalign.io import to_json, write_jsonl
from stepalign.records import Grade, Rollout
from stepalign.report.comparison import evaluations_table


def evaluation(values: list[float], n: int = 4) -> Evaluation:
    """The same value in every metric; problems p00, p01, …"""
    measure = Interval(value=sum(values) / len(values), low=0.25, high=0.75, n=len(values))
    return Evaluation(
        step=0,
        n=n,
        problem_ids=tuple(f"p{place:02}" for place in range(len(values))),
        measures=dict.fromkeys(METRICS, measure),
        by_problem=dict.fromkeys(METRICS, tuple(values)),
        ties=0,
        resamples=400,
    )


BASE = [0.0, 0.5, 0.25, 1.0, 0.75, 0.5]
GAIN = [value / 2 + 0.5 for value in BASE]
MIXED = BASE[::-1]


def test_others_are_differences_from_the_first_and_bold_where_zero_is_excluded() -> None:
    table = evaluations_table({"base": evaluation(BASE), "gain": evaluation(GAIN), "mixed": evaluation(MIXED)})
    assert table.columns == ["base", "gain", "mixed"]
    assert table.title == "Differences from base, 6 problems, 4 samples each; bold: the interval excludes zero"
    rows = dict(table.rows)
    assert list(rows) == [
        "Avg@4", "Maj@4", "Pass@4", "Mean answer length", "Mean lines of code", "Format accuracy", "Truncation rate",
    ]  # fmt: skip
    base, gain, mixed = rows["Avg@4"]
    assert (base.text, base.notes) == ("50.00 %", ("[25.0 %, 75.0 %]",))
    assert (gain.text, gain.bold) == ("+25.0 points", True)
    assert (mixed.text, mixed.bold, len(mixed.notes)) == ("0.0 points", False, 1)
    assert str(rows["Mean answer length"][1]).startswith("**+0.2 tokens** [+0.1, ")


def test_the_command_prints_the_table_and_refuses_other_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    grade = Grade(correct=True, outcome="correct", final_answer="4")
    rollouts = [
        Rollout(
            id=f"{place}", problem_id=f"p{place:02}", sample=0, completion_ids=(1,), token_starts=(0,), text="4",
            finish="stop", grade=grade,
        )
        for place in range(6)
    ]  # fmt: skip
    write_jsonl(Path("rollouts.jsonl"), rollouts)
    write_jsonl(Path("ungraded.jsonl"), [replace(rollouts[0], grade=None)])
    for name, values, n in (("one", BASE, 1), ("base", BASE, 4), ("gain", GAIN, 4), ("pair", GAIN, 2)):
        Path(f"{name}.json").write_text(to_json(evaluation(values, n)))

    def run(*files: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stepalign", "compare", *files])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    status, printed, complaints = run("base.json", "gain.json")
    assert (status, complaints) == (0, "")
    assert "| | base.json | gain.json |" in printed
    assert "| Avg@4 | 50.00 % [25.0 %, 75.0 %] | **+25.0 points** [+" in printed
    assert "| Avg@1 | 50.00 % [25.0 %, 75.0 %] | **+50.0 points** [" in run("one.json", "rollouts.jsonl")[1]
    assert run("one.json", "ungraded.jsonl")[2] == "error: ungraded.jsonl: rollout '0': not graded\n"
    status, printed, complaints = run("base.json", "pair.json")
    assert (status, printed) == (2, "")
    assert complaints == "error: base.json and pair.json: evaluations with n = 4 and n = 2 cannot be compared\n"
