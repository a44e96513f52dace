"""A recipe built in Python: keywords, tables as objects or dicts, and errors like those of a file."""

from pathlib import Path
from typing import Any

import pytest

from stepalign import config
from stepalign.config import Recipe, trl
from stepalign.config.registry import Table, key_paths, nested
from stepalign.errors import StepalignError
from stepalign.objects import with_objects
from stepalign.records import Problem

ROWS = [{"statement": "1 + 1?", "answer": 2}]


def recipe(**keywords: Any) -> Recipe:
    return Recipe(**{"name": "a", "model": "a/model", "problems": ROWS} | keywords)


def grade(problem: Problem, rollout: object) -> bool:
    return True


def test_keywords_tables_and_dicts_give_the_recipe_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        'name = "a"\nmodel = { name_or_path = "a/model" }\nproblems = { holdout = 3, train = { source = "sums" } }\n'
        'optimizer = { lr = 1e-4 }\ncritic = { kind = "program" }\ncontext = { template = "lab/stepalign" }\n'
        "sampling = { temperature = 0.5 }\nevaluation = { num_samples = 4, sampling = { temperature = 0.1 } }\n"
        'algorithm = { kind = "grpo" }\ntraining = { num_generations = 4, max_steps = 7 }\n'
    )
    made = Recipe(
        name="a",
        model="a/model",
        problems=config.SumsConfig(),
        holdout=3,
        lr=1e-4,
        critic="program",
        context="lab/stepalign",
        sampling={"temperature": 0.5},
        evaluation=config.EvaluationConfig(num_samples=4),
        algorithm=config.GRPOConfig(),
        training=config.TrainingConfig(num_generations=4),
        max_steps=7,
        **{"evaluation.sampling.temperature": 0.1},
    )
    assert config.dump(made) == config.dump(config.load(file))
    assert made.context.fallback_template == "lab/refsol"
    assert made.replace(context="code/my-context.txt").context.fallback_template == "refsol"
    assert made.replace(context="code/stepalign").context.fallback_template == "code/refsol"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"lrr": 1}, r"Recipe: not valid\n  lrr: unknown key; did you mean optimizer\.lr\?"),
        ({"learning_rate": 1}, r"Recipe: not valid\n  learning_rate: TRL's name; here it is optimizer\.lr$"),
        ({"training": {"num_train_epochs": 1}}, r"training\.num_train_epochs: TRL's name; here it is .*max_steps, in"),
        ({"resume_from_checkpoint": True}, r"TRL's name; here the same call resumes a run"),
        (
            {"algorithm": "grpo", "num_generations": 2, "beta": 0.1},
            r"  beta: TRL's name; here it is algorithm\.kl_coef",
        ),
        ({"optimizer": {"lrr": 1}}, r"  optimizer\.lrr: unknown key; did you mean lr\?"),
        ({"lr": "high"}, r"  optimizer\.lr: .*valid number \(found 'high'\)"),
        ({"temperature": 1.0}, r"temperature means sampling\.temperature or evaluation\.sampling\.temperature"),
        ({"problems": {"DataFrame": 1}}, r"  problems\.DataFrame: unknown key"),
        ({"problems": 5}, r"problems: a list, a DataFrame, .* is wanted, found 5"),
        (
            {"problems": {"q": ["1 + 1?"], "answer": [2]}},
            r"rows \(.*\) are wanted, found a dict with the keys q, answer",
        ),
        ({"evaluation_problems": {"q": ["1 + 1?"]}}, r"rows \(.*\) are wanted, found a dict with the keys q"),
        ({"columns": [("statement", "q")]}, r"columns: a map like .* is wanted, found \[\('statement', 'q'\)\]"),
        ({"grader": 3}, "grader: a function, an object, a name or a table is wanted, found 3"),
        ({"context": [grade]}, "context: a function, an object, a name or a table is wanted"),
        ({"critic": "progam"}, r"critic\.kind: unknown kind; did you mean program\?"),
        ({"grader": {"kind": "python", "function": "no name"}}, r"grader\.function: 'module:name' is wanted"),
        ({"grader": {"kind": "python", "function": [1]}}, r"grader\.function: 'module:name' is wanted"),
        ({"rollouts_per_step": 3, "num_generations": 2}, r"training: rollouts_per_step = 3 is not a multiple"),
    ],
)
def test_a_fault_is_named_as_in_a_file(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(StepalignError, match=message):
        recipe(**keywords)


def test_an_argument_of_a_function_with_trl_s_name_is_one_of_a_recipe() -> None:
    with pytest.raises(StepalignError, match=r"reward_funcs: TRL's name; here it is grader"):
        with_objects(recipe(), reward_funcs=grade)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", trl.KEYS)
def test_a_name_of_trl_s_is_that_of_a_key_and_no_key_itself(name: str) -> None:
    *tables, key = trl.KEYS[name].split(" ")[0].rstrip(",").split(".")
    found: list[type[Table]] = [Recipe]
    for part in tables:
        found = [inner for table in found for inner in inner_tables(table, part)]
    assert any(key in table.model_fields for table in found)
    if name != "beta":  # of distillation; GRPO's is another
        assert name not in {path[-1] for path in key_paths(Recipe, {})}


def test_fp16_is_answered_with_what_can_be_trained() -> None:
    with pytest.raises(StepalignError, match="fp16: TRL's name; here training has no loss scale"):
        recipe(fp16=True)


def inner_tables(table: type[Table], key: str) -> list[type[Table]]:
    """Return the table behind a key, or those of all kinds that may stand there."""
    family, inner = nested(table, key, {})
    return list(family.tables.values()) if family else [inner] if inner else []


def test_rows_may_stand_for_both_parts_of_the_problems() -> None:
    both = recipe(problems={"train": ROWS, "evaluation": ROWS}).problems
    assert both == recipe(problems=ROWS, evaluation_problems=ROWS).problems


def test_one_tracker_needs_no_list() -> None:
    assert recipe(report_to="wandb").tracking.report_to == ("wandb",)


def test_a_faulty_table_is_an_error_like_a_faulty_recipe() -> None:
    with pytest.raises(StepalignError, match=r"OptimizerConfig: not valid\n  lrr: unknown key; did you mean lr\?"):
        config.OptimizerConfig(lrr=1)  # type: ignore[call-arg]


def test_values_are_laid_over_a_recipe_and_the_rest_stays() -> None:
    first = recipe(critic="program", sampling={"temperature": 0.5, "top_k": 7}, teacher=config.EMATeacherConfig())
    second = first.replace(max_steps=3, sampling={"temperature": 0.7}, context=lambda problem: problem, grader=grade)
    assert (second.sampling.temperature, second.sampling.top_k, second.training.max_steps) == (0.7, 7, 3)
    assert second.critic == first.critic
    assert second.teacher == first.teacher
    assert second.grader.function.value is grade  # type: ignore[attr-defined]
    assert first.context.kind == "template"


def test_objects_are_written_by_name_and_a_file_with_them_says_so(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(config.dump(recipe(grader=grade)))
    with pytest.raises(StepalignError, match=r"problems\.train\.function: .* was an object in Python"):
        config.load(file, trust=True)
    named = config.load(file, ["problems.train.source=sums"], trust=True)
    assert named.grader.function.name == f"{__name__}:grade"  # type: ignore[attr-defined]


def test_other_rows_have_another_name() -> None:
    one, other = (config.PythonObject.of_rows([{"answer": n}]).name for n in (1, 2))
    assert one != other
    assert one == config.PythonObject.of_rows(({"answer": 1},)).name.replace("tuple", "list")


@pytest.mark.parametrize("kind", ["grader", "critic", "context", "problems.train"])
def test_a_file_that_runs_python_is_refused_without_trust(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text('name = "a"\nmodel = { name_or_path = "m" }\nproblems = { train = { source = "sums" } }\n')
    tag = "source" if kind == "problems.train" else "kind"
    overrides = [f"{kind}.{tag}=python", f"{kind}.function=os:system"]
    with pytest.raises(StepalignError, match=rf"{kind}\.function = 'os:system': Python .* --trust"):
        config.load(base, overrides)
    config.load(base, overrides, trust=True)


def test_a_recipe_takes_columns_and_evaluation_problems_as_training_does() -> None:
    rows = {"problems": ROWS, "evaluation_problems": [*ROWS, *ROWS], "columns": {"statement": "q"}}
    made = recipe(**rows)
    assert config.dump(made) == config.dump(with_objects(recipe(), **rows))
    assert made.problems.evaluation.columns.meta == ("*",)  # type: ignore[union-attr]
    assert recipe(columns=config.ColumnsConfig(answer="a")).problems.train.columns.answer == "a"  # type: ignore[attr-defined]
    with pytest.raises(StepalignError, match="exclude each other"):
        recipe(**rows, holdout=1)


def test_columns_without_problems_and_both_hold_outs_are_settled() -> None:
    with pytest.raises(StepalignError, match="columns are those of `problems`"):
        with_objects(recipe(problems=config.SumsConfig()), columns={"statement": "q"})
    both = with_objects(recipe(holdout=1), problems=ROWS, evaluation_problems=ROWS, columns={"statement": "q"})
    assert both.problems.holdout == 0
    assert both.problems.evaluation.columns.statement == "q"  # type: ignore[union-attr]
    assert both.problems.train.columns.meta == ("*",)  # type: ignore[attr-defined]


def test_columns_are_those_of_rows_that_the_recipe_has() -> None:
    later = with_objects(recipe(), columns={"statement": "q"})
    assert later.problems == recipe(columns={"statement": "q"}).problems
    others = with_objects(later, evaluation_problems=[*ROWS, *ROWS])
    assert others.problems.evaluation.columns == later.problems.train.columns  # type: ignore[union-attr]
    assert with_objects(later, evaluation_problems=config.SumsConfig()).problems.evaluation == config.SumsConfig()


def test_a_hold_out_takes_the_place_of_evaluation_problems_laid_below_it(tmp_path: Path) -> None:
    base = recipe(evaluation_problems=ROWS)
    assert base.replace(holdout=1).problems.evaluation is None
    file = tmp_path / "own.toml"
    file.write_text('extends = "quickstart"\nname = "own"\n[problems]\nholdout = 3\n')
    loaded = config.load(file)
    assert loaded.problems.evaluation is None
    rows = loaded.replace(problems={"evaluation": [{"statement": "A", "answer": 1}]}).problems
    assert (rows.evaluation.source, rows.train) == ("python", loaded.problems.train)  # type: ignore[union-attr]
    assert loaded.problems.holdout == 3
    assert config.load(file, ["problems.evaluation.source=sums"]).problems.holdout == 0


def test_a_key_of_a_list_s_tables_is_not_found_by_its_name() -> None:
    with pytest.raises(StepalignError, match=r"problem: unknown key; did you mean problems\?"):
        recipe(problem=ROWS)
