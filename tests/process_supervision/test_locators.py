"""The whole benchmark with each kind of locator, on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import stepalign
from stepalign.config import Recipe
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_jsonl
from stepalign.process_supervision.benchmark import ProcessBenchmark
from stepalign.records import Problem, StepValues
from tests.process_supervision.conftest import REFERENCES

pytestmark = pytest.mark.usefixtures("no_figures")

Bench = Callable[..., ProcessBenchmark]


@pytest.fixture
def bench(make_recipe: Callable[..., Recipe], file: Path, tmp_path: Path) -> Bench:
    """A function: measure a locator on the file."""
    write_jsonl(tmp_path / "references.jsonl", REFERENCES)
    source = f'{{ source = "file", path = "{tmp_path}/references.jsonl" }}'

    def run(*overrides: str, out: str = "out") -> ProcessBenchmark:
        recipe = make_recipe(f"problems.train={source}", "problems.holdout=0", "sampling.max_new_tokens=4", *overrides)
        return stepalign.process_bench(recipe, file, tmp_path / out)

    return run


def shares(found: ProcessBenchmark, index: int = 0) -> dict[str, float]:
    return {name: value.value for name, value in found.scores[index].accuracies.items()}


def test_false_equations_are_found_told_nothing(bench: Bench) -> None:
    found = bench("locator.kind=equations")
    assert shares(found)["wrong"] == 3 / 4  # not the one of the problem without a known answer
    assert shares(found)["right"] == 1
    assert found.scores[0].told == ()


def test_origins_are_told_nothing(bench: Bench) -> None:
    found = bench("locator.kind=origins")
    assert found.scores[0].told == ()
    assert found.scores[0].accuracies["wrong"].n == 4


def test_the_derivation_knows_grade_answer_and_solution(bench: Bench) -> None:
    found = bench("locator.kind=derivation")
    assert shares(found) == {"wrong": 1, "right": 1, "F1": 1}
    assert found.scores[0].told == ("grade", "answer", "solution")
    assert found.scores[0].missing == 0


def test_the_critic_is_asked_where_the_answer_is_known_and_resumes(bench: Bench, tmp_path: Path) -> None:
    first = bench()
    assert shares(first) == {"wrong": 1, "right": 1, "F1": 1}
    assert first.scores[0].told == ("grade", "answer", "solution")
    assert (first.traces, first.answer_known) == (7, 6)
    assert first.seconds is not None
    critiques = tmp_path / "out" / "critiques.jsonl"
    critiques.write_text("".join(critiques.read_text().splitlines(keepends=True)[:3]))
    second = bench()
    assert second.scores == first.scores
    assert second.seconds is None
    hidden = bench("locator.show_solution=false", out="hidden")
    assert hidden.scores[0].told == ("grade", "answer")
    assert {problem.solution for problem in read_jsonl(tmp_path / "out" / "traces" / "problems.jsonl", Problem)} == {
        "2 boxes"
    }


def test_credit_scores_each_step_under_each_context(bench: Bench, tmp_path: Path) -> None:
    found = bench("locator.kind=credit", 'locator.contexts=["refsol", "stepalign", "sd-zero"]')
    assert [(one.name, one.told) for one in found.scores[::4]] == [
        ("lowest credit, refsol", ("grade", "solution")),
        ("mean credit, refsol", ("grade", "solution")),
        ("lowest credit, stepalign", ("grade", "critique")),
        ("mean credit, stepalign", ("grade", "critique")),
        ("lowest credit, sd-zero", ("grade",)),
        ("mean credit, sd-zero", ("grade",)),
    ]
    assert all(one.missing == 0 for one in found.scores)
    assert found.scores[0].accuracies["right"].value == 1  # the grade is known
    # The probe of the same traces counts the lowest step alike.
    measures = json.loads((tmp_path / "out" / "probe" / "measures.json").read_text())
    for name, one in zip(("refsol", "stepalign", "sd-zero"), found.scores[::8], strict=True):
        assert measures["contexts"][name]["first_error"]["value"] == one.accuracies["first error"].value
    again = bench("locator.kind=credit", 'locator.contexts=["refsol", "stepalign", "sd-zero"]')
    assert (again.tokens, again.seconds) == (found.tokens, found.seconds)
    assert found.tokens > 0


def test_verdicts_score_each_step_and_resume(bench: Bench, tmp_path: Path) -> None:
    found = bench("locator.kind=verdicts")
    assert [(one.name, one.rule, one.told) for one in found.scores] == [
        ("verdicts", "", ("grade", "answer", "solution")),
        ("verdicts", "lowest step, the grade known", ("grade", "answer", "solution")),
        ("verdicts", "lowest step, a threshold", ("answer", "solution")),
        ("verdicts", "first step, a threshold", ("answer", "solution")),
        ("verdicts", "first step, a threshold, the grade known", ("grade", "answer", "solution")),
    ]
    assert found.scores[0].accuracies["right"].value == 1  # the grade is known
    assert found.scores[0].accuracies["wrong"] == found.scores[1].accuracies["wrong"]
    assert all(one.missing == 0 for one in found.scores)
    path = tmp_path / "out" / "locations.jsonl"
    first = path.read_bytes()
    path.write_bytes(b"".join(first.splitlines(keepends=True)[:4]))
    again = bench("locator.kind=verdicts")
    assert (again.scores, again.tokens, again.tokens > 0) == (found.scores, found.tokens, True)
    assert again.seconds
    untold = bench("locator.kind=verdicts", "locator.told=[]", out="untold")
    assert untold.scores[3].told == ()
    assert untold.scores[0].accuracies["wrong"].n == 4  # an unknown answer is no hindrance


def test_a_combination_is_measured(bench: Bench) -> None:
    parts = '[{kind = "equations"}, {kind = "credit"}, {kind = "verdicts"}]'
    found = bench("locator.kind=combined", f"locator.locators={parts}", "locator.rule=vote")
    assert found.scores[0].name == "vote of false equations, mean credit, refsol, verdicts"
    assert found.scores[0].missing == 0
    assert found.tokens > 0


def test_step_values_are_sampled_and_kept(bench: Bench, tmp_path: Path) -> None:
    found = bench("locator.kind=step_values", "locator.num_rollouts=2")
    values = read_jsonl(tmp_path / "out" / "step-values.jsonl", StepValues)
    assert len(values) == 6
    assert found.tokens == sum(one.prompt_tokens + one.completion_tokens for one in values)
    assert found.scores[0].told == ("grade", "answer")
    assert shares(found)["wrong"] == 0  # a random model never reaches an answer: step 1 has value 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["locator.kind=credit", 'locator.contexts=["sibling"]'], "'sibling' shows another rollout"),
        (["locator.kind=credit", 'locator.contexts=["gone"]'], "no template 'gone'"),
        (["locator.kind=guess"], "unknown kind"),
        (["locator.kind=verdicts", "locator.prompt=gone"], "no template 'gone'"),
        (["locator.kind=verdicts", 'locator.model={name_or_path="gone"}'], "gone"),
    ],
)
def test_what_a_locator_lacks_is_said_first(bench: Bench, tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(StepalignError, match=said):
        bench(*overrides)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_benchmark_is_refused(bench: Bench, tmp_path: Path) -> None:
    template = tmp_path / "verdict.txt"
    template.write_text("{{ problem }} {{ step }} right or wrong?")
    locator = ("locator.kind=verdicts", f"locator.prompt={template}")
    bench(*locator)
    with pytest.raises(StepalignError, match="it holds another benchmark"):
        bench(*locator, "seed=9")
    template.write_text("{{ problem }} {{ step }} wrong or right?")
    with pytest.raises(StepalignError, match=r"words\..*verdict\.txt: "):
        bench(*locator)


def test_what_was_refused_before_a_result_may_be_mended(bench: Bench) -> None:
    steps = ("locator.kind=step_values", "locator.num_rollouts=1")
    with pytest.raises(StepalignError, match=r"sampling\.max_new_tokens = 9999 exceed the model's context"):
        bench(*steps, "sampling.max_new_tokens=9999")
    assert bench(*steps).traces == 7
