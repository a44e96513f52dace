"""Critiques outside of training: on the files of a real run, and on planted slips."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from stepalign import api, config, models
from stepalign.config import Recipe
from stepalign.critics import own_model, stats
from stepalign.critics.stats import Prices
from stepalign.error_injection.sets import plant_set
from stepalign.errors import StepalignError
from stepalign.evaluation import critic_benchmark
from stepalign.io import read_jsonl, write_jsonl
from stepalign.records import CriticResult, Critique, Problem, Rollout

MakeRecipe = Callable[..., Recipe]


def untimed(path: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def planted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of planted slips: eight problems of two steps, a right and a wrong solution each."""
    folder = tmp_path_factory.mktemp("planted")
    file = folder / "solutions.jsonl"
    rows = []
    for n in (17, 30, 52, 71, 26, 83, 94, 65):
        right = f"2*{n} = {2 * n} pens\n{2 * n}+{n + 1} = {3 * n + 1}\nA: {3 * n + 1}"
        rows.append(
            {
                "question": f"Two boxes of {n} pens and {n + 1} more?",
                "ground_truth": right,
                "small": {"is_correct": True, "solution": right},
                "large": {"is_correct": False, "solution": f"{n}+2 = {n + 2} pens\nA: {n + 2}"},
            }
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plant_set(str(file), folder / "set", model=config.ModelConfig(name_or_path=str(tiny_llama)))
    return folder / "set"


# ── a file of rollouts ─────────────────────────────────────────────────────────────────────────────────────────


def test_critiquing_a_runs_rollouts_gives_the_runs_critiques(finished_run: Recipe, tmp_path: Path) -> None:
    rollouts = finished_run.folder / "rollouts" / "step-000002.jsonl"
    out = tmp_path / "critiques.jsonl"
    answers = api.critique(finished_run, rollouts, out)
    assert read_jsonl(out, CriticResult) == answers  # type: ignore[arg-type]
    assert untimed(out) == untimed(finished_run.folder / "critiques" / "step-000002.jsonl")


def test_a_file_of_problems_stands_in_for_the_recipes(planted: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "critiques.jsonl"
    answers = api.critique(
        make_recipe(),
        planted / "rollouts.jsonl",
        out,
        problems_file=planted / "problems.jsonl",
        prices=Prices(prompt=1, completion=1),
    )
    assert len(answers) == 16
    report = json.loads((tmp_path / "critiques-report.json").read_text())
    assert (report["answers"], report["cost"]) == (16, 0.0)
    assert report["checks"]["exact_copy"] == {"passed": report["critiques"]}


def test_a_limit_takes_the_first_rollouts_and_a_higher_one_goes_on(
    planted: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    out, given = tmp_path / "critiques.jsonl", (make_recipe(), planted / "rollouts.jsonl")
    options = {"problems_file": planted / "problems.jsonl"}
    names = [rollout.id for rollout in read_jsonl(given[1], Rollout)]
    first = api.critique(*given, out, **options, limit=3)
    assert [result.rollout_id for result in first] == names[:3]
    assert [result.rollout_id for result in api.check_critiques(*given, out, **options, limit=2)] == names[:2]
    more = api.critique(*given, out, **options, limit=5)
    assert ([result.rollout_id for result in more], more[:3]) == (names[:5], first)


def test_the_solvers_own_base_is_loaded_once_and_asked(
    planted: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loads = []
    load_base = models.load_base
    monkeypatch.setattr(models, "load_base", lambda *arguments: loads.append(arguments) or load_base(*arguments))
    template = tmp_path / "critic.txt"
    template.write_text("{{ attempt }}")
    settings = make_recipe(
        "critic.kind=self",
        "critic.right_answers=model",
        f"critic.prompt={template}",
        "critic.max_tokens=8",
        "critic.max_attempts=1",
        "critic.max_num_seqs=6",
    )
    out, dates, opened = tmp_path / "out.jsonl", [], own_model.open_solver
    monkeypatch.setattr(own_model, "open_solver", lambda *given: dates.append(str(given[2])) or opened(*given))
    given = {"problems_file": planted / "problems.jsonl", "limit": 6}
    answers = api.critique(settings, planted / "rollouts.jsonl", out, **given)
    assert [answer.critic for answer in answers] == ["self"] * 6
    assert all(answer.completion_tokens for answer in answers)
    assert len(loads) == 1
    kept = tmp_path / "out-settings.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "date": "2024-07-26"}))  # it goes on another day
    api.critique(settings, planted / "rollouts.jsonl", out, **given | {"limit": 7})
    assert dates == [str(date.today()), "2024-07-26"]


def test_a_second_start_asks_only_for_what_is_missing(planted: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    arguments = (make_recipe(), planted / "rollouts.jsonl", tmp_path / "critiques.jsonl")
    first = api.critique(*arguments, problems_file=planted / "problems.jsonl")
    lines = arguments[2].read_text().splitlines(keepends=True)
    arguments[2].write_text("".join([*lines[:5], lines[5][:30]]))
    again = api.critique(*arguments, problems_file=planted / "problems.jsonl")
    assert again[:5] == first[:5]  # their times too: they were not made again
    assert [replace(answer, seconds=0) for answer in again] == [replace(answer, seconds=0) for answer in first]


def test_what_cannot_be_critiqued_is_an_error_that_names_it(
    finished_run: Recipe, make_recipe: MakeRecipe, planted: Path, tmp_path: Path
) -> None:
    rollouts = finished_run.folder / "rollouts" / "step-000001.jsonl"
    out = tmp_path / "critiques.jsonl"
    with pytest.raises(StepalignError, match=r"no \[critic\]"):
        api.critique(finished_run.model_copy(update={"critic": None}), rollouts, out)
    with pytest.raises(StepalignError, match=r"step-000001\.jsonl: rollout step-000001/.* in the recipe"):
        api.critique(make_recipe("problems.train.seed=99", "problems.train.digits=3"), rollouts, out)
    with pytest.raises(StepalignError, match=r"no problem 'sums-.*' in .*problems\.jsonl"):
        api.critique(finished_run, rollouts, out, problems_file=planted / "problems.jsonl")
    first, *_ = read_jsonl(rollouts, Rollout)
    broken = tmp_path / "broken.jsonl"
    write_jsonl(broken, [replace(first, grade=None)])
    with pytest.raises(StepalignError, match=r"broken\.jsonl: rollout .* is not graded"):
        api.critique(finished_run, broken, out)
    write_jsonl(broken, [first, first])
    with pytest.raises(StepalignError, match=r"broken\.jsonl: rollout .* is there twice"):
        api.critique(finished_run, broken, out)
    assert not out.exists()


def test_critiques_of_other_texts_or_by_other_settings_are_not_taken(
    planted: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    rollouts, out = tmp_path / "rollouts.jsonl", tmp_path / "critiques.jsonl"
    first, *others = read_jsonl(planted / "rollouts.jsonl", Rollout)[:4]
    write_jsonl(rollouts, [first, *others])
    options = {"problems_file": planted / "problems.jsonl"}
    kept = api.critique(make_recipe(), rollouts, out, **options)
    assert api.critique(make_recipe("critic.max_failure_share=1.0"), rollouts, out, **options) == kept
    for override in ("critic.checks.max_length=5.0", "grader.timeout_s=9.0"):
        with pytest.raises(StepalignError, match=r"(?s)critiques\.jsonl: .*differs:\n  " + override.split("=")[0]):
            api.critique(make_recipe(override), rollouts, out, **options)
    write_jsonl(rollouts, [replace(first, text=f"{first.text} "), *others])  # sampled again, by another adapter
    with pytest.raises(StepalignError, match=rf"critiques\.jsonl: the result of rollout {re.escape(first.id)} is of"):
        api.critique(make_recipe(), rollouts, out, **options)


def test_a_changed_python_critic_is_not_given_what_the_first_one_wrote(
    planted: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    def version(number: int) -> Callable[[Problem, Rollout], None]:
        def critic(problem: Problem, rollout: Rollout) -> None:
            assert number

        return critic

    given = (make_recipe(), planted / "rollouts.jsonl", tmp_path / "critiques.jsonl")
    options = {"problems_file": planted / "problems.jsonl"}
    first = api.critique(*given, **options, critic=version(1))
    assert api.critique(*given, **options, critic=version(1)) == first
    with pytest.raises(StepalignError, match=r"(?s)critiques\.jsonl: .*differs:\n  words\..*critic\.py: "):
        api.critique(*given, **options, critic=version(2))


# ── a file of critiques ────────────────────────────────────────────────────────────────────────────────────────


def test_planted_critiques_pass_every_check_and_a_lie_does_not(
    planted: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    settings, problems_file = make_recipe(), planted / "problems.jsonl"
    arguments = (settings, planted / "rollouts.jsonl")
    report = stats.summarize(api.check_critiques(*arguments, planted / "critiques.jsonl", problems_file=problems_file))
    assert report.is_sound
    assert {name for name, outcomes in report.checks.items() if outcomes.keys() != {"passed"}} <= {"reference_overlap"}
    first, second, *others = read_jsonl(planted / "critiques.jsonl", Critique)
    lie = replace(first, rollout_id=second.rollout_id)  # "fully correct" of the trace with the slip
    path = tmp_path / "lies.jsonl"
    write_jsonl(path, [first, lie, *others[1:]])
    answers = api.check_critiques(*arguments, path, problems_file=problems_file)
    report = stats.summarize(answers)
    assert not report.is_sound
    assert report.failures == {"case": 1, "missing": 1}
    assert report.checks["case"] == {"passed": 14, "fell back": 1}
    assert [check.passed for check in answers[1].checks if check.name == "case"] == [False]


# ── the benchmark ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_ground_truth_itself_finds_every_first_error(
    planted: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    settings = make_recipe("critic.kind=replay", f"critic.path={planted / 'critiques.jsonl'}")
    found = api.critic_bench(settings, planted, tmp_path / "bench")
    assert {name: (e.value, e.n) for name, e in found.planted.items()} == {
        "wrong": (1.0, 8),
        "right": (1.0, 8),
        "F1": (1.0, 16),
    }
    assert sum(estimate.n for estimate in found.kinds.values()) == 8
    # It says nothing on the naturally wrong ones: failures are misses.
    assert (found.natural["wrong"].value, found.natural["right"].value, found.natural["F1"].value) == (0, 1, 0)
    assert found.answers.failures == {"missing": 8}
    written = json.loads((tmp_path / "bench" / "benchmark.json").read_text())
    assert written["critic"] == "replay"
    assert written["planted"]["F1"]["n"] == 16


def test_the_figures_of_another_critic_are_not_taken(planted: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    locate_mend = ("critic.kind=locate-mend", "critic.mender.kind=program")
    out = tmp_path / "bench"
    found = api.critic_bench(make_recipe(*locate_mend), planted, out, limit=3)
    assert api.critic_bench(make_recipe(*locate_mend), planted, out, limit=3).planted == found.planted
    with pytest.raises(StepalignError, match=r"(?s)differs:\n  critic\.locator\.kind: 'derivation' → 'origins'"):
        api.critic_bench(make_recipe(*locate_mend, "critic.locator.kind=origins"), planted, out, limit=3)
    api.critic_bench(make_recipe(*locate_mend), planted, out)  # more of the same
    lies, out = tmp_path / "lies.jsonl", tmp_path / "replayed"
    critiques = read_jsonl(planted / "critiques.jsonl", Critique)
    write_jsonl(lies, critiques)
    replay = ("critic.kind=replay", f"critic.path={lies}")
    api.critic_bench(make_recipe(*replay), planted, out)
    write_jsonl(lies, critiques[1:])
    with pytest.raises(StepalignError, match=r"(?s)differs:\n  critic\.sha256: "):
        api.critic_bench(make_recipe(*replay), planted, out)


def test_a_critic_that_errs_by_one_step_finds_none(planted: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def late(critique: Critique) -> Critique:
        k = critique.first_error
        if k is None:
            return critique
        verdicts = [replace(v, correct=v.step != k + 1, reason="no" * (v.step == k + 1)) for v in critique.verdicts]
        return replace(critique, verdicts=tuple(verdicts))

    path = tmp_path / "late.jsonl"
    write_jsonl(path, [late(critique) for critique in read_jsonl(planted / "critiques.jsonl", Critique)])
    settings = make_recipe("critic.kind=replay", f"critic.path={path}", *IGNORE)
    found = api.critic_bench(settings, planted, tmp_path / "bench")
    assert (found.planted["wrong"].value, found.planted["right"].value) == (0, 1)


IGNORE = [
    f"critic.validation.{name}=ignore"
    for name in (
        "layout",
        "exact_copy",
        "normalized_copy",
        "error_not_quoted",
        "true_equations",
        "case",
        "verdicts",
        "final_answer",
    )
]


def test_a_limit_takes_slips_with_their_correct_traces(planted: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    found = api.critic_bench(make_recipe(), planted, tmp_path / "bench", limit=3)
    assert [found.planted[name].n for name in ("wrong", "right")] == [3, 3]
    assert sum(found.natural[name].n for name in ("wrong", "right")) == 3
    shown = critic_benchmark.table(found)
    assert "planted, wrong   " in shown
    assert "n 3" in shown
    assert len(read_jsonl(planted / "problems.jsonl", Problem)) == 8
