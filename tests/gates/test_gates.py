"""Gates: their verdicts, what they are made of, and a preflight of a real recipe from end to end."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import stepalign
from stepalign import cli
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.credit_grpo import CreditExample
from stepalign.config import Recipe
from stepalign.critics import sample
from stepalign.errors import StepalignError
from stepalign.evaluation.stats import Interval
from stepalign.gates import attempts, page
from stepalign.gates.gate import Gate, Preflight
from stepalign.gates.gates import Attempts, preflight_of
from stepalign.gates.numbers import right_numbers
from stepalign.previewing import display as preview
from stepalign.records import PROGRAM, CriticResult, CritiqueFailure, Grade, Problem, Rollout
from stepalign.rollouts.generate import Solver
from stepalign.views import View

MakeRecipe = Callable[..., Recipe]
NUM_PROBLEMS = 4


def gate(value: float, width: float, *, at_least: bool = True) -> Gate:
    measured = Interval(value=value, low=value - width, high=value + width, n=9)
    return Gate(name="g", title="G", measured=measured, threshold=0.5, at_least=at_least, unit="%", remedy="key")


@pytest.mark.parametrize(
    ("value", "width", "at_least", "verdict"),
    [
        (0.7, 0.1, True, "pass"),
        (0.5, 0.0, True, "pass"),
        (0.6, 0.2, True, "undecided"),
        (0.4, 0.2, True, "undecided"),
        (0.3, 0.1, True, "fail"),
        (0.3, 0.1, False, "pass"),
        (0.7, 0.1, False, "fail"),
        (0.55, 0.1, False, "undecided"),
    ],
)
def test_a_gate_decides_where_its_interval_is_on_one_side(
    value: float, width: float, at_least: bool, verdict: str
) -> None:
    assert gate(value, width, at_least=at_least).verdict == verdict


def test_one_failing_gate_fails_the_recipe_and_says_what_to_change() -> None:
    gates = (gate(0.7, 0.1), gate(0.5, 0.2), gate(0.2, 0.1))
    assert Preflight(name="r", gates=gates[:1]).verdict == "pass"
    assert Preflight(name="r", gates=gates[:2]).verdict == "undecided"
    failing = Preflight(name="r", gates=gates)
    assert failing.verdict == "fail"
    shown = page.table(replace(failing, reasons={"parse": 2, "nothing to show": 9}))
    assert shown.count("change: key") == 1
    assert "without a critique or an example: 9 nothing to show, 2 parse" in shown


def solution(text: str, *, correct: bool = True) -> Rollout:
    grade = Grade(correct=correct, outcome="correct" if correct else "wrong")
    return Rollout(id="r", problem_id="p", completion_ids=(), token_starts=(), text=text, finish="stop", grade=grade)


SUM = Problem(id="p", statement="Compute 4 + 7 + 9 + 2.", answer="22", meta={"terms": [4, 7, 9, 2]})
WORDS = Problem(id="p", statement="Ann has 5 boxes of 12 eggs and gives away half of them.", answer="30")


@pytest.mark.parametrize(
    ("problem", "text", "share"),
    [
        (SUM, "4 + 7 = 11\n11 + 9 = 20\n20 + 2 = 22", 1.0),
        (SUM, "9 + 2 = 11\n4 + 7 = 11\n11 + 11 = 22", 1.0),
        (SUM, "4 + 7 = 10\n10 + 9 = 19\n19 + 2 = 21", 1.0),  # a slip is no wrong number
        (SUM, "4 + 7 = 10\nWait: 4 + 7 = 11\n11 + 9 = 20", 1.0),
        (SUM, "4 + 7 = 11\n11 + 7 = 18", 0.75),  # 7 a second time
        (SUM, "4 + 8 = 12\n12 + 9 = 21", 0.75),
        (SUM, "The answer is 22.", None),
        (SUM, "5/0 = 3/0", None),
        (WORDS, "5 * 12 = 60\n60 / 2 = 30", 1.0),
        (WORDS, "5 * 13 = 65\n65 / 2 = 32.5", 0.75),
        (WORDS, "5 * 12 = 60\n59 - 30 = 29", 0.5),
    ],
)
def test_right_numbers_come_from_the_problem_or_an_earlier_step(
    problem: Problem, text: str, share: float | None
) -> None:
    assert right_numbers(problem, solution(text)) == share


def test_sides_are_compared_on_the_problems_that_both_attempted() -> None:
    problems = {name: replace(SUM, id=name) for name in "abc"}
    right, wrong = solution("4 + 7 = 11"), solution("4 + 7 = 12", correct=False)
    found = attempts.compare(problems, {"a": [wrong, right], "b": [wrong], "c": [right]}, {"a": [right], "b": [right]},
                             seed=0)  # fmt: skip
    assert found["solved"]["solver"].value == 0.25
    assert found["solved"]["teacher"].value == 1.0
    assert found["solved"]["difference"].value == 0.75
    assert found["solved"]["difference"].n == 2
    assert found["false equations"]["difference"].value == -0.75


def made_of(results: Sequence[CriticResult], failures: Mapping[str, int]) -> Attempts:
    step = StepExamples[Any](examples=[], failures=Counter(failures))
    critiques = {str(number): replace(result, rollout_id=str(number)) for number, result in enumerate(results)}
    return Attempts(problems={}, attempts={}, fresh={}, teacher={}, critiques=critiques, step=step, seconds=[])


def test_the_critic_s_gate_gives_the_critic_s_own_reasons(settings: Recipe) -> None:
    failure = CritiqueFailure(rollout_id="r", critic="c", reason="parse")
    made = made_of([failure, sample.CRITIQUE], {"parse": 1, "nothing to show": 5})
    (gate,) = (one for one in preflight_of(settings, made, None, None, None).gates if one.name == "critic")
    assert gate.detail == "1 of 2 (1 parse)"


def test_shares_of_rollouts_have_intervals_over_problems(settings: Recipe) -> None:
    groups = {name: [replace(solution("x"), id=f"{name}{n}", problem_id=name) for n in range(4)] for name in "ab"}
    examples = [CreditExample(rollout_id=one.id, student=View.whole((1,), (2,)), advantage=1.0, cut=one.id == "b0")
                for one in groups["b"]]  # fmt: skip
    unreachable = replace(sample.CRITIQUE, mended_by=PROGRAM, retried=("server",))
    made = replace(made_of([], {}), attempts=groups, step=StepExamples[Any](examples=examples),
                   critiques={one.id: replace(unreachable, rollout_id=one.id) for one in groups["a"]})  # fmt: skip
    found = {gate.name: gate for gate in preflight_of(settings, made, None, None, None).gates}
    dropped, cut, critic = (found[name].measured for name in ("dropped", "cut", "critic"))
    assert (dropped.value, dropped.low, dropped.high, dropped.n) == (0.5, 0.0, 1.0, 8)
    assert (cut.value, found["cut"].detail) == (0.25, "1 of 4 shortened")
    assert (critic.value, found["critic"].detail) == (0.0, "0 of 4 (4 mender: server)")


@pytest.mark.parametrize(
    ("hours", "bound", "said"),
    [(None, 5.0, "no stage was timed"), (None, 0.0, "no stage was timed"), (3.0, 5.0, None),
     (3.0, 0.0, "preflight.max_hours = 0 sets no bound")],
)  # fmt: skip
def test_the_gate_of_hours_is_there_or_says_why_not(
    hours: float | None, bound: float, said: str | None, settings: Recipe
) -> None:
    table = settings.preflight.model_copy(update={"max_hours": bound})
    found = preflight_of(settings.model_copy(update={"preflight": table}), made_of([], {}), None, None, hours)
    assert found.not_measured.get("hours") == said
    assert (found.named("hours") is not None) == (said is None)


@pytest.fixture(scope="module")
def settings(recipe_in: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    table = f"preflight={{ num_problems = {NUM_PROBLEMS}, num_samples = 2 }}"
    return recipe_in(tmp_path_factory.mktemp("recipe"), table)


@pytest.fixture(scope="module")
def measured(settings: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Preflight]:
    out = tmp_path_factory.mktemp("preflight")
    return out, stepalign.preflight(settings, out)


def test_a_preflight_measures_solver_teacher_credit_and_first_step(measured: tuple[Path, Preflight]) -> None:
    out, found = measured
    names = {gate.name for gate in found.gates} | {*found.not_measured}
    assert names >= {"solve gain", "format", "length", "cut", "dropped", "critic", "first step", "first token", "hours"}
    # A model of random weights solves nothing with any prompt, and its updates change no grade.
    assert found.sides["solved"]["solver"].value == found.sides["solved"]["teacher"].value == 0
    assert found.named("format").measured.value == 0  # type: ignore[union-attr]
    assert found.hours is not None
    assert json.loads((out / "preflight.json").read_text())["name"] == "tiny"
    html = (out / "preflight.html").read_text()
    assert all(gate.title in unescape(html) for gate in found.gates)
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    assert (out / "probe" / "probe.html").exists()


@pytest.mark.slow
def test_a_second_start_samples_nothing_and_finds_the_same(
    settings: Recipe, measured: tuple[Path, Preflight], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, found = measured

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr(Solver, "generate_rollouts", refuse)
    monkeypatch.setattr(Solver, "second_turns", refuse)
    again = stepalign.preflight(settings, out)
    assert [(one.name, one.measured) for one in again.gates] == [(one.name, one.measured) for one in found.gates]


def test_a_folder_is_that_of_one_grader_s_code(
    settings: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: object) -> None:
        raise StepalignError("the folder is taken")

    def graded_by(bound: int) -> None:
        stepalign.preflight(settings, tmp_path, grader=lambda problem, rollout: len(rollout.text) > bound)

    monkeypatch.setattr("stepalign.data.prepare", stop)
    for _ in range(2):
        with pytest.raises(StepalignError, match="the folder is taken"):
            graded_by(3)
        (tmp_path / "solver.jsonl").touch()
    with pytest.raises(StepalignError, match=r"another recipe's preflight.*differs:\n  words\.grader\.function\..*$"):
        graded_by(4)


@pytest.mark.slow
def test_the_folder_of_another_recipe_is_refused_and_thresholds_may_change(
    settings: Recipe, measured: tuple[Path, Preflight]
) -> None:
    out, _ = measured
    with pytest.raises(StepalignError, match="another recipe's preflight"):
        stepalign.preflight(settings.model_copy(update={"seed": 6}), out)
    strict = settings.preflight.model_copy(update={"max_first_token_kl": 0.0, "max_hours": 1e-9})
    found = stepalign.preflight(settings.model_copy(update={"preflight": strict}), out)
    assert {gate.name for gate in found.gates if gate.verdict == "fail"} >= {"first token", "hours"}


@pytest.mark.slow
def test_the_command_exits_with_1_where_a_gate_fails(
    settings: Recipe, measured: tuple[Path, Preflight], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, _ = measured
    file = settings.folder.parent.parent / "recipe.toml"
    overrides = [f"model.name_or_path={settings.model.name_or_path}", f"output_dir={settings.output_dir}",
                 f"preflight.num_problems={NUM_PROBLEMS}", "preflight.max_hours=1e-9"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["stepalign", "preflight", str(file), *overrides, "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "change: training.max_steps" in printed


def test_an_interrupted_sampling_goes_on(tmp_path: Path) -> None:
    made: list[str] = []

    def sample(keys: list[str]) -> list[Rollout]:
        if "c" in keys and len(made) < 3:
            raise KeyboardInterrupt
        made.extend(keys)
        return [replace(solution("x"), id=f"{key}/{number}") for key in keys for number in range(2)]

    def start() -> dict[str, list[Rollout]]:
        return attempts.resumed(tmp_path / "log.jsonl", list("abcd"), 2, sample, 1, lambda _: None, lambda *_: None)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        start()
    made.append("")
    found = start()
    assert made == ["a", "b", "", "c", "d"]
    assert [rollout.id for rollout in found["d"]] == ["d/0", "d/1"]


def hint(problem: str) -> str:
    return f"{problem}, slowly"


def test_a_page_names_a_python_context_and_the_problems_that_there_were(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe, solved = make_recipe().replace(context=hint), Interval(value=0.5, low=0.4, high=0.6, n=9)
    measured = Preflight(
        name="r", gates=(), sides={"solved": dict.fromkeys(("solver", "teacher", "difference"), solved)}
    )
    page.write(recipe, measured, tmp_path / "preflight.html", has_probe=False)
    preview.write(recipe, (), "0 trained", tmp_path / "preview.html")
    shown = (tmp_path / "preflight.html").read_text()
    assert "<dt>Sample</dt><dd>9 problems</dd>" in shown
    for text in (shown, (tmp_path / "preview.html").read_text()):
        assert re.search(r"<dt>Context</dt><dd>[\w.]+:hint</dd>", text)
