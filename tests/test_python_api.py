"""Runs from Python: rows, functions and objects in place of a recipe's tables, and the result of a run."""

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

import stepalign
from stepalign import StepalignError, TrainResult
from stepalign.config import Recipe
from stepalign.io import read_jsonl, write_jsonl
from stepalign.records import Critique, Grade, Problem, Rollout

MakeRecipe = Callable[..., Recipe]

ROWS = [
    {"question": f"Compute {n} + {n + 1}.", "target": 2 * n + 1, "worked": f"The sum is {2 * n + 1}.", "level": n}
    for n in range(7)
]
COLUMNS = {"statement": "question", "answer": "target", "solution": "worked"}
LIMIT = 40


def grade(problem: Problem, rollout: Rollout) -> Grade:
    assert problem.meta["level"] in range(7)
    correct = len(rollout.text) < LIMIT
    return Grade(correct=correct, outcome="correct" if correct else "wrong", feedback="Too long.")


def other_grade(problem: Problem, rollout: Rollout) -> bool:
    return rollout.text.count("1") > 1


def hint(problem: str, solution: str, feedback: str) -> str:
    return f"{problem}\n{feedback}\nA solution: {solution}"


class Seen(stepalign.TrainerCallback):
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def on_step_end(self, trainer: stepalign.Trainer, metrics: Mapping[str, Any]) -> None:
        self.calls.append(("step", metrics["step"]))

    def on_evaluate(self, trainer: stepalign.Trainer, evaluation: stepalign.Evaluation) -> None:
        self.calls.append(("evaluate", evaluation.step))

    def on_save(self, trainer: stepalign.Trainer) -> None:
        self.calls.append(("save", trainer.step))


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    return {"problems": ROWS, "columns": COLUMNS, "grader": grade, "context": hint}


@pytest.fixture(scope="module")
def run(
    recipe_in: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory, objects: dict[str, Any]
) -> tuple[Recipe, TrainResult, list[tuple[str, int]]]:
    """A run of four steps on rows of Python, with grader and context as functions."""
    recipe, seen = recipe_in(tmp_path_factory.mktemp("python")), Seen()
    return recipe, stepalign.train(recipe, [seen], **objects), seen.calls


def test_callbacks_are_called_after_steps_evaluations_and_checkpoints(run: Any) -> None:
    assert run[2] == [
        ("evaluate", 0), ("step", 1), ("step", 2), ("save", 2), ("step", 3), ("evaluate", 3), ("step", 4), ("save", 4),
        ("evaluate", 4),
    ]  # fmt: skip


class OneHook:
    """A callback with one hook, no subclass."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, trainer: stepalign.Trainer, metrics: Mapping[str, Any]) -> None:
        self.steps.append(metrics["step"])


def test_absent_hooks_of_a_callback_are_skipped(make_recipe: MakeRecipe, no_figures: None) -> None:
    one_hook: Any = OneHook()
    stepalign.train(make_recipe("training.max_steps=1"), [one_hook])
    assert one_hook.steps == [1]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            print,
            r"callbacks\[0\]: <built-in function print> has none of on_train_begin, on_step_end, on_evaluate",
        ),
        (
            transformers.TrainerCallback(),
            r"TrainerCallback.on_train_begin takes \(args, state, control, kwargs\), a call has \(trainer\)",
        ),
        (OneHook, r"OneHook'> is a class: an object of it is wanted"),
    ],
)
def test_a_callback_of_another_kind_is_an_error_before_the_run(
    callback: Any, message: str, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe()
    with pytest.raises(StepalignError, match=message):
        stepalign.train(recipe, [callback])
    assert not recipe.folder.exists()


def test_a_run_keeps_what_it_was_given(run: Any) -> None:
    folder = run[1].folder
    problems = read_jsonl(folder / "problems" / "train.jsonl", Problem)
    assert len(problems) == 4
    assert all(problem.solution and "level" in problem.meta for problem in problems)
    kept = (folder / "prompts" / f"grader.function.{__name__}.grade.py").read_text()
    assert "def grade" in kept
    assert "# LIMIT = 40" in kept
    assert (folder / "prompts" / f"context.function.{__name__}.hint.py").exists()
    rollouts = read_jsonl(folder / "rollouts" / "step-000001.jsonl", Rollout)
    assert {rollout.grade.feedback for rollout in rollouts if rollout.grade} == {"Too long."}


def test_the_result_has_evaluations_adapter_metrics_and_report(run: Any) -> None:
    result = run[1]
    assert [evaluation.step for evaluation in result.evaluations] == [0, 3, 4]
    assert (result.initial.step, result.final.step) == (0, 4)
    assert result.best in result.evaluations[1:]
    assert result.final.measures["avg"].low <= result.final.measures["avg"].high
    assert result.differences["avg"].n == 3
    assert (result.adapter / "adapter_config.json").exists()
    assert list(result.metrics["step"]) == [1, 2, 3, 4]
    assert "outcomes.trained" in result.metrics
    assert (result.folder / "report.html").exists()
    for page in (result._repr_html_(), result.final._repr_html_()):
        assert "<table>" in page
    assert "Avg@" in str(result)


def test_the_adapter_of_a_run_on_objects_is_evaluated_as_the_run_did(run: Any, objects: dict[str, Any]) -> None:
    recipe, result, _ = run
    evaluation = stepalign.evaluate(recipe, adapter=result.adapter, **objects)
    assert evaluation.measures == result.final.measures
    assert evaluation.problem_ids == result.final.problem_ids


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_bit(
    run: Any, recipe_in: Callable[..., Recipe], tmp_path: Path, objects: dict[str, Any]
) -> None:
    recipe = recipe_in(tmp_path)
    stepalign.train(recipe.replace(max_steps=2), **objects)
    resumed = stepalign.train(recipe, **objects)
    weights = "adapter_model.safetensors"
    assert resumed.report() == resumed.folder / "report.html"
    assert (resumed.adapter / weights).read_bytes() == (run[1].adapter / weights).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grader": other_grade}, r"grader\.function: '.*:grade' → '.*:other_grade'"),
        ({"context": lambda problem: problem}, r"context\.function: '.*:hint' → '.*<lambda>'"),
        ({"problems": ROWS[:-1]}, r"problems\.train\.function: '<7 rows.*' → '<6 rows"),
    ],
)
def test_a_run_does_not_go_on_with_another_object(
    change: dict[str, Any], message: str, run: Any, objects: dict[str, Any]
) -> None:
    with pytest.raises(StepalignError, match=message):
        stepalign.train(run[0].replace(max_steps=5), **objects | change)


def test_a_run_does_not_go_on_with_a_changed_function(
    run: Any, objects: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "LIMIT", 50)
    with pytest.raises(StepalignError, match=r"(?s)grade\.py: its words are no longer .*-# LIMIT = 40.*\+# LIMIT = 50"):
        stepalign.train(run[0].replace(max_steps=5), **objects)


def test_sampling_takes_objects_and_a_path_as_text(
    make_recipe: MakeRecipe, tmp_path: Path, objects: dict[str, Any]
) -> None:
    out = str(tmp_path / "rollouts.jsonl")
    rollouts = stepalign.sample(make_recipe("sampling.max_new_tokens=8"), out, **objects)
    assert read_jsonl(Path(out), Rollout) == rollouts
    assert len(rollouts) == 4


@pytest.mark.slow
def test_stages_take_objects_and_text_paths(make_recipe: MakeRecipe, tmp_path: Path, objects: dict[str, Any]) -> None:
    recipe = make_recipe("problems.holdout=2", "sampling.max_new_tokens=8", "evaluation.num_samples=1")
    out = str(tmp_path / "rollouts.jsonl")
    rollouts = stepalign.sample(recipe, **objects)
    write_jsonl(Path(out), rollouts)
    assert len(stepalign.evaluate(recipe, **objects).problem_ids) == 2

    def critic(problem: Problem, rollout: Rollout) -> None:
        return None

    results = stepalign.critique(recipe, rollouts, str(tmp_path / "c.jsonl"), critic=critic, **objects)
    assert [result.reason for result in results if not isinstance(result, Critique)] == 5 * ["missing"]
    probed = stepalign.probe(recipe, str(tmp_path / "probe"), rollouts=out, contexts=[hint, "refsol"], **objects)
    assert {credit.context for credit in probed.credits} == {f"{__name__}:hint", "refsol"}
    assert "<table>" in probed._repr_html_()


def test_a_folder_in_a_files_place_is_refused_before_sampling(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("model.name_or_path=no/model")
    for call in (stepalign.sample, stepalign.evaluate, lambda recipe, out: stepalign.preview(recipe, out=out)):
        with pytest.raises(StepalignError, match="a folder, a file is wanted"):
            call(recipe, tmp_path)


def test_every_path_may_be_text() -> None:
    for name in stepalign.__all__:
        function = getattr(stepalign, name)
        if not inspect.isroutine(function) and function is not TrainResult:
            continue
        for parameter in inspect.signature(function).parameters.values():
            parts = set(re.findall(r"\w+", str(parameter.annotation)))
            assert "Path" not in parts or "str" in parts, f"{name}: {parameter}"


@pytest.mark.usefixtures("no_figures")
def test_a_path_as_text_is_read(finished_run: Recipe, tmp_path: Path) -> None:
    folder = str(finished_run.folder)
    assert TrainResult(folder).evaluations == TrainResult(Path(folder)).evaluations
    assert stepalign.export_dataset(folder, str(tmp_path / "data"))["train"] > 0
    assert stepalign.export(folder, str(tmp_path / "export"), base="own/model").folder == tmp_path / "export"
    assert stepalign.push(str(tmp_path / "export"), "own/model", dry_run=True).files
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert stepalign.write_report(str(copy)) == copy / "report.html"
    assert stepalign.write_report([folder, str(copy)], str(tmp_path / "both.html")).exists()


def test_public_names_are_shown_and_the_import_is_light() -> None:
    assert dir(stepalign) == sorted(stepalign.__all__)
    for name in stepalign.__all__:
        assert getattr(stepalign, name) is not None
    script = "import stepalign, sys; print([m for m in ('torch', 'pydantic', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


USER = """
from collections.abc import Mapping
from typing import Any

import stepalign

rows: list[dict[str, Any]] = [{"statement": "1 + 1?", "answer": 2}]


def grade(problem: stepalign.Problem, rollout: stepalign.Rollout) -> bool:
    return problem.answer in rollout.text


class Watch(stepalign.TrainerCallback):
    def on_step_end(self, trainer: stepalign.Trainer, metrics: Mapping[str, Any]) -> None:
        print(trainer.step, metrics["loss"])


recipe = stepalign.Recipe(name="a", model="lab", problems=rows, lr=1e-4, max_steps=2)
result = stepalign.train(recipe, [Watch()], grader=grade, context=lambda problem: str(problem))
reveal_type(recipe)
reveal_type(result.adapter)
reveal_type(result.final)
reveal_type(stepalign.sample(recipe, "rollouts.jsonl", problems=rows))
stepalign.train(recipe, grader=3)
stepalign.sample(recipe, samples="2")
stepalign.nothing
"""


@pytest.mark.slow
def test_a_users_program_is_typed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "--follow-imports=silent"]
    source = Path(stepalign.__file__).parents[1]
    done = subprocess.run(
        [*command, "program.py"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={"MYPYPATH": str(source), "PATH": ""},
    )  # fmt: skip
    notes = [line.partition(" note: ")[2] for line in done.stdout.splitlines() if " note: Revealed" in line]
    assert [note.partition('"')[2].rstrip('"').replace("builtins.", "") for note in notes] == [
        "stepalign.config.recipe.Recipe", "pathlib.Path", "stepalign.evaluation.metrics.Evaluation | None",
        "list[stepalign.records.Rollout]",
    ]  # fmt: skip
    errors = [line for line in done.stdout.splitlines() if " error: " in line]
    assert [line.rpartition("[")[2] for line in errors] == ["arg-type]", "arg-type]", "attr-defined]"], done.stdout
