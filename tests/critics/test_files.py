from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepalign.critics.arithmetic.critic import ProgramCritic
from stepalign.critics.files import ReplayCritic, critique_all
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, to_json, write_jsonl
from stepalign.records import CriticResult, Critique, CritiqueFailure, Grade, Problem, Rollout

PROBLEM = Problem(id="p", statement="What is 2 + 3?", answer="5")
TEXT = "### Step 1: Add\n2 + 3 = 5\n\n### Final Answer:\n\\boxed{5}"


def attempts(names: str) -> list[tuple[Problem, Rollout]]:
    grade = Grade(correct=True, outcome="correct")
    return [
        (
            PROBLEM,
            Rollout(id=name, problem_id="p", completion_ids=(), token_starts=(), text=TEXT, finish="stop", grade=grade),
        )
        for name in names
    ]


class Counting(ProgramCritic):
    """The program critic, backwards, that remembers what it was asked and may be killed after some answers."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.dies_after = dies_after

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        for count, attempt in enumerate(reversed(list(attempts))):
            if count == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(attempt[1].id)
            yield from super().critique([attempt])


def test_a_second_start_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    path, advanced = tmp_path / "critiques.jsonl", list[int]()
    with pytest.raises(KeyboardInterrupt):
        critique_all(Counting(dies_after=2), attempts("abcd"), path)
    with path.open("a") as file:
        file.write('{"kind": "critique", "rollout_id": "a", "cri')  # what a kill leaves
    second = Counting()
    answers = critique_all(second, attempts("abcd"), path, advanced.append)
    assert second.asked == ["b", "a"]
    assert advanced == [2, 1, 1]
    assert [answer.rollout_id for answer in answers] == list("abcd")
    assert read_jsonl(path, CriticResult) == answers  # type: ignore[arg-type]
    third = Counting()
    assert critique_all(third, attempts("abcd"), path) == answers
    assert third.asked == []


def test_what_no_server_answered_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "critiques.jsonl"
    failures = [CritiqueFailure(rollout_id=n, critic="program", reason=r) for n, r in zip("abc", REASONS, strict=True)]
    path.write_text("".join(f"{to_json(failure)}\n" for failure in failures))
    critic = Counting()
    answers = critique_all(critic, attempts("abc"), path)
    assert critic.asked == ["b", "a"]
    assert [answer.kind for answer in answers] == ["critique", "critique", "failure"]
    assert read_jsonl(path, CriticResult) == answers  # type: ignore[arg-type]


REASONS = ("server", "timeout", "parse")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{}", "line 1: not a Critique or CritiqueFailure"),
        (to_json(CritiqueFailure(rollout_id="z", critic="program", reason="x")), "line 1: rollout z is not among"),
        (to_json(CritiqueFailure(rollout_id="a", critic="QwQ", reason="x")), "line 1: a result of QwQ"),
    ],
)
def test_a_file_of_something_else_is_an_error_and_is_left_alone(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "critiques.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(StepalignError, match=expected):
        critique_all(Counting(), attempts("ab"), path)
    assert path.read_text() == f"{line}\n"


def test_each_rollout_gets_the_files_answer_and_a_missing_one_is_a_failure(tmp_path: Path) -> None:
    written = list(ProgramCritic().critique([(PROBLEM, attempts(name)[0][1]) for name in "ab"]))
    written.append(CritiqueFailure(rollout_id="c", critic="program", reason="no way to the answer"))
    path = tmp_path / "critiques.jsonl"
    write_jsonl(path, written)
    *found, lacking = ReplayCritic(path).critique((PROBLEM, attempts(name)[0][1]) for name in "cabx")
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


@pytest.mark.parametrize("reason", ["server", "timeout"])
def test_an_answer_replaces_that_no_server_answered(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "critiques.jsonl"
    unanswered = CritiqueFailure(rollout_id="a", critic="program", reason=reason)
    ((_, rollout),) = attempts("a")
    (answer,) = ProgramCritic().critique([(PROBLEM, rollout)])
    write_jsonl(path, [unanswered, unanswered, answer])  # what resuming leaves when it is killed
    assert list(ReplayCritic(path).critique([(PROBLEM, rollout)])) == [answer]
    write_jsonl(path, [answer, unanswered])
    with pytest.raises(StepalignError, match="rollout a is answered twice"):
        ReplayCritic(path)


# ── what kept results depend on ─────────────────────────────────────────────────────────────────────────────────

MADE_WITH = {"critic.kind": "program", "critic.checks.max_length": 4.0}


def made(names: str, path: Path, **changed: Any) -> list[str]:
    """Critique attempts, one or some of them changed. Returns the names that were asked for."""
    critic = Counting()
    given = [(PROBLEM, replace(rollout, **changed.get(rollout.id, {}))) for _, rollout in attempts(names)]
    critique_all(critic, given, path, made_with=changed.get("made_with", MADE_WITH))
    return critic.asked[::-1]


def test_more_rollouts_in_any_order_go_on(tmp_path: Path) -> None:
    path = tmp_path / "critiques.jsonl"
    assert made("ab", path) == ["a", "b"]
    assert made("cadb", path) == ["c", "d"]
    assert made("abcd", path) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"text": TEXT.replace("Add", "Sum")},
        {"grade": Grade(correct=False, outcome="wrong")},
        {"response_start": 3},
    ],
)
def test_a_result_of_another_text_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "critiques.jsonl"
    made("ab", path)
    before = path.read_bytes()
    for names in ("ab", "abc"):
        with pytest.raises(StepalignError, match=r"critiques\.jsonl: the result of rollout b is of another"):
            made(names, path, b=changed)
    assert path.read_bytes() == before
    assert made("ab", path) == []


def test_a_text_that_has_no_result_yet_may_change(tmp_path: Path) -> None:
    path = tmp_path / "critiques.jsonl"
    failure = CritiqueFailure(rollout_id="a", critic="program", reason="server")
    with pytest.raises(KeyboardInterrupt):
        critique_all(Counting(dies_after=0), attempts("ab"), path, made_with=MADE_WITH)
    path.write_text(f"{to_json(failure)}\n")
    assert made("ab", path, a={"text": TEXT.replace("Add", "Sum")}) == ["a", "b"]


def test_results_by_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "critiques.jsonl"
    made("ab", path)
    with pytest.raises(StepalignError, match=r"(?s)critiques\.jsonl: .* other settings.*max_length: 4\.0 → 5\.0"):
        made("ab", path, made_with=MADE_WITH | {"critic.checks.max_length": 5.0})
    settings = path.with_name("critiques-settings.json")
    settings.write_text("{}")
    with pytest.raises(StepalignError, match=r"critiques-settings\.json: not a valid .*made_with"):
        made("ab", path)
    settings.unlink()
    with pytest.raises(StepalignError, match=r"critiques\.jsonl: .*critiques-settings\.json.* is missing"):
        made("ab", path)
