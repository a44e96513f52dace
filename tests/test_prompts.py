"""The golden files are the rendered prompts, whole: a change of wording shows as a change of a file."""

import re
from os.path import commonprefix
from pathlib import Path

import pytest

from stepalign import config, prompts
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt, Turn
from stepalign.records import Problem

GOLDEN = Path(__file__).parent / "golden"
SHIPPED = sorted(Path(prompts.__file__).parent.glob("*.txt"))

CRITIC = {
    "problem": "What is 2 + 3 + 4?",
    "solution": "2 + 3 = 5 and 5 + 4 = 9.",
    "answer": "9",
    "attempt": "### Step 1: Add\n2 + 3 = 6\n\n### Final Answer:\n\n\\boxed{10}",
    "truncated": False,
    "steps": [{"label": "1", "text": "Add\n2 + 3 = 6"}],
    "num_judged": 2,
    "cases": "D",
}


def problem(statement: str) -> Problem:
    return Problem(id="p", statement=statement, answer="9")


def rendered(name: str, values: dict[str, object]) -> str:
    template, _ = prompts.load(name, frozenset(values))
    return prompts.render(template, values)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_every_template_begins_by_saying_whose_words_it_has(file: Path) -> None:
    header = re.match(r"\{# (.+?) #\}", file.read_text(encoding="utf-8"), re.DOTALL)
    assert header
    assert re.search(r"\b(Reconstructed|[Oo]urs)\b", header[1])


def test_every_shipped_template_has_a_golden_file() -> None:
    assert {file.name for file in SHIPPED} <= {file.name for file in GOLDEN.glob("*.txt")}


def test_the_format_reads_as_it_did() -> None:
    assert rendered("format", {}) + "\n" == (GOLDEN / "format.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["solver", "brief"])
def test_the_solver_prompt_reads_as_it_did(name: str) -> None:
    (turn,) = SolverPrompt(config.PromptsConfig(solver=name)).turns(problem("What is 2 + 3 + 4?"))
    assert turn.role == "user"
    assert turn.content + "\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["critic", "critic-splice", "critic-material"])
def test_the_critics_prompts_read_as_they_did(name: str) -> None:
    assert rendered(name, CRITIC) + "\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["critic", "critic-splice", "code/critic", "code/critic-splice"])
def test_rollouts_of_a_problem_share_a_critics_prompt_up_to_the_attempt(name: str) -> None:
    wrong = rendered(name, CRITIC | {"feedback": "1 of 3 tests pass"})
    others = {"attempt": "5 + 4 = 9", "steps": [], "num_judged": 1, "cases": "AB", "truncated": True, "feedback": ""}
    assert CRITIC["solution"] in commonprefix([wrong, rendered(name, CRITIC | others)])


def test_the_question_about_a_step_reads_as_it_did() -> None:
    values = CRITIC | {"grade": "wrong", "step": "1", "attempt": "### Step 1: Add\n2 + 3 = 6"}
    del values["truncated"]
    assert rendered("step-verdict", values) + "\n" == (GOLDEN / "step-verdict.txt").read_text(encoding="utf-8")


def test_asking_a_critic_again_reads_as_it_did() -> None:
    faults = {"faults": ["the correction ends in '99', the reference in '9'", "the answer is not JSON"]}
    assert rendered("critic-again", faults) + "\n" == (GOLDEN / "critic-again.txt").read_text(encoding="utf-8")


def test_the_critic_prompt_adds_only_a_last_line_where_the_attempt_was_cut_off() -> None:
    whole = rendered("critic", CRITIC)
    cut_off = rendered("critic", CRITIC | {"truncated": True})
    assert cut_off == whole + "\n\nThe student's solution was cut off here by the token limit."


def test_what_all_attempts_share_comes_first_in_the_critic_prompt() -> None:
    other = {key: f"another {key}" for key in CRITIC} | {"truncated": False}
    first, second = rendered("critic", CRITIC), rendered("critic", other)
    assert first.index("=== Problem Begin ===") == second.index("=== Problem Begin ===")
    assert first[: first.index("=== Problem Begin ===")] == second[: second.index("=== Problem Begin ===")]


# ── the conversation ──────────────────────────────────────────────────────────────────────────────────────────


def test_examples_are_turns_of_their_own_in_the_problems_own_wording() -> None:
    settings = config.PromptsConfig(
        system="Be brief.", examples=(config.ExampleConfig(problem="1 + 1?", solution="\\boxed{2}"),)
    )
    prompt = SolverPrompt(settings)
    system, asked, answered, last = prompt.turns(problem("2 + 2?"))
    assert system == Turn("system", "Be brief.")
    assert answered == Turn("assistant", "\\boxed{2}")
    assert asked.role == last.role == "user"
    assert asked.content.replace("1 + 1?", "2 + 2?") == last.content
    assert prompt.before == (system, asked, answered)


@pytest.mark.parametrize("text", ["{{ 7 * 7 }}", "{% include 'critic.txt' %}", "{# gone #}", "{{ problem }}", "{%"])
def test_jinja_in_a_problem_is_text(text: str) -> None:
    prompt = SolverPrompt(config.PromptsConfig())
    plain = prompt.turns(problem("PLAIN"))[-1].content
    assert prompt.turns(problem(text))[-1].content == plain.replace("PLAIN", text)


# ── templates of the user's own ───────────────────────────────────────────────────────────────────────────────


def test_a_file_of_ones_own_may_include_the_shipped_format_and_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "task.txt").write_text("Task: {{ problem }}")
    file = tmp_path / "mine.txt"
    file.write_text("{% include 'task.txt' %}\n\n\n{% include 'format.txt' %}\n")
    template, used = prompts.load(str(file), frozenset({"problem", "answer"}))
    assert used == {"problem"}
    text = prompts.render(template, {"problem": "1 + 1"})
    assert text == "Task: 1 + 1\n\n" + rendered("format", {})


def test_an_unknown_variable_is_named_with_what_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("{{ problem }} {{ sollution }}")
    with pytest.raises(StepalignError, match=r"mine\.txt: unknown variables sollution; allowed: answer, problem"):
        prompts.load(str(file), frozenset({"problem", "answer"}))


def test_the_variables_of_an_included_file_count(tmp_path: Path) -> None:
    (tmp_path / "part.txt").write_text("{{ attempt }}")
    file = tmp_path / "mine.txt"
    file.write_text("{{ problem }}{% include 'part.txt' %}")
    assert prompts.load(str(file), frozenset({"problem", "attempt"}))[1] == {"problem", "attempt"}
    with pytest.raises(StepalignError, match="unknown variables attempt"):
        prompts.load(str(file), frozenset({"problem"}))


def test_a_missing_template_is_named_with_the_shipped_ones() -> None:
    with pytest.raises(
        StepalignError,
        match=r"no template 'own-words': .*refsol, sd-zero, sdpo, second-turn, sibling, solver, step-verdict, "
        "stepalign, summary, through-error, verdicts",
    ):
        prompts.load("own-words", frozenset())
    with pytest.raises(StepalignError, match=r"no template 'stepalin'; did you mean stepalign\?"):
        prompts.load("stepalin", frozenset())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{% if problem %}", "not a valid template"),
        (b"{{ problem", "not a valid template"),
        (b"{% include 'gone.txt' %}", "gone.txt"),
        (b"\xff\xfe", "not a valid template"),
        (b"{% include 'mine.txt' %}", "mine.txt includes itself"),
    ],
)
def test_a_broken_template_is_an_error_that_names_the_file(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(StepalignError, match=re.escape(reason)) as caught:
        prompts.load(str(file), frozenset({"problem"}))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{{ problem.__class__.__mro__ }}",
        "{{ problem.format.__globals__ }}",
        "{{ problem.statement }}",
        "{{ problem + 1 }}",
    ],
)
def test_a_template_that_asks_for_what_is_not_there_or_not_allowed_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(StepalignError, match=re.escape(str(file))):
        SolverPrompt(config.PromptsConfig(solver=str(file)))
