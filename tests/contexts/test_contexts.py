import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepalign import contexts, prompts
from stepalign.errors import StepalignError
from stepalign.records import Critique, Grade, Problem, Rollout, Verdict

GOLDEN = Path(__file__).parents[1] / "golden"

PROBLEM = Problem(id="p", statement="What is 2 + 3 + 4?", solution="2 + 3 = 5 and 5 + 4 = 9.", answer="9")
ATTEMPT = "### Step 1: Add 2 and 3\n2 + 3 = 6\n\n### Step 2: Add 4\n6 + 4 = 10\n\n### Final Answer:\n\n\\boxed{10}"
ROLLOUT = Rollout(id="r", problem_id="p", completion_ids=(1,), text=ATTEMPT, token_starts=(0,), finish="stop")
CRITIQUE = Critique(
    rollout_id="r",
    critic="program",
    case="D",
    verdicts=(
        Verdict(step=1, correct=False, reason="2 + 3 is 5"),
        Verdict(step=2, correct=True),
        Verdict(step=3, correct=False, reason="the answer is 9"),
    ),
    correct_part="(nothing)",
    corrected_step="### Step 1: Add 2 and 3\n2 + 3 = 5",
    continuation="### Step 2: Add 4\n5 + 4 = 9\n\n### Final Answer:\n\n\\boxed{9}",
    text="### Summary\nStep 1: Incorrect -- 2 + 3 is 5\n(and so on)",
)
RIGHT = Critique(
    rollout_id="r",
    critic="program",
    case="A",
    verdicts=(Verdict(step=1, correct=True), Verdict(step=2, correct=True)),
    correct_part=ATTEMPT,
    text="### Summary\nStep 1: Correct.",
)


LATER = Critique(
    rollout_id="r",
    critic="program",
    case="D",
    verdicts=(Verdict(step=1, correct=True), Verdict(step=2, correct=False), Verdict(step=3, correct=False)),
    correct_part="### Step 1: Add 2 and 3\n2 + 3 = 6",
    corrected_step="### Step 2: Add 4\n5 + 4 = 9",
    continuation="### Final Answer:\n\n\\boxed{9}",
    text="(the whole)",
)
BETWEEN = ("through-error", "correction", "prefix", "paraphrased")


GRADED = replace(ROLLOUT, grade=Grade(correct=False, outcome="wrong", feedback="The final answer 10 is wrong."))
SIBLING = replace(
    ROLLOUT,
    id="s",
    sample=1,
    text=f"<think>hm</think>\n{ATTEMPT.replace('6', '5').replace('10', '9')}",
    grade=Grade(correct=True, outcome="correct"),
)
OTHER = Problem(id="q", statement="What is 1 + 1?", solution="1 + 1 = 2.", answer="2")
OTHERS = ("sibling", "feedback", "sdpo", "demonstration", "other-demonstration", "past", "sd-zero", "hint")


def own(folder: Path, text: str) -> contexts.Context:
    file = folder / "mine.txt"
    file.write_text(text, encoding="utf-8")
    return contexts.load(str(file))


def shown(
    context: contexts.Context,
    critique: Critique | None = None,
    problem: Problem = PROBLEM,
    rollout: Rollout = ROLLOUT,
    keep: float = 1.0,
    sibling: Rollout | None = None,
) -> str:
    source = contexts.ContextInput(
        problem=problem, rollout=rollout, critique=critique, sibling=sibling, demonstration=OTHER
    )
    return context.render(source, keep=keep)


@pytest.mark.parametrize(
    ("golden", "name", "critique"),
    [
        ("refsol", "refsol", None),
        ("stepalign", "stepalign", CRITIQUE),
        ("quoted", "quoted", CRITIQUE),
        ("quoted-correct", "quoted", RIGHT),
        ("verdicts", "verdicts", CRITIQUE),
        ("brief-feedback", "brief-feedback", CRITIQUE),
        ("brief-reference", "brief-reference", None),
        *((design, design, CRITIQUE) for design in BETWEEN),
        *((f"{design}-correct", design, RIGHT) for design in BETWEEN),
        *((design, design, None) for design in (*OTHERS, "feedback-request")),
        ("second-turn", "second-turn", CRITIQUE),
    ],
)
def test_a_teachers_message_reads_as_it_did(golden: str, name: str, critique: Critique | None) -> None:
    message = shown(contexts.load(name), critique, rollout=GRADED, sibling=SIBLING)
    assert message + "\n" == (GOLDEN / f"{golden}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "critique", "solution"),
    [
        ("refsol", False, True),
        ("stepalign", True, False),
        ("quoted", True, False),
        ("verdicts", True, False),
        *((design, True, False) for design in BETWEEN),
    ],
)
def test_what_a_design_needs_follows_from_what_it_shows(name: str, critique: bool, solution: bool) -> None:
    context = contexts.load(name)
    assert (context.needs_critique, context.needs_solution) == (critique, solution)


def test_all_designs_begin_with_the_problem_and_end_with_the_solvers_format() -> None:
    format_text = prompts.render(prompts.load("format", frozenset())[0], {})
    for name in ("refsol", "stepalign", "quoted", "verdicts", *BETWEEN):
        message = shown(contexts.load(name), CRITIQUE)
        assert message.startswith(PROBLEM.statement)
        assert message.endswith(format_text)


def test_between_the_regimes_each_design_shows_its_own_share_of_the_attempt() -> None:
    prefix, wrong, corrected, rest = "2 + 3 = 6", "6 + 4 = 10", "5 + 4 = 9", "\\boxed{9}"
    shows = {
        "through-error": (prefix, wrong, corrected, rest),
        "correction": (corrected, rest),
        "prefix": (prefix,),
        "paraphrased": ("2 plus 3 makes 6", corrected, rest),
    }
    for name, parts in shows.items():
        message = shown(contexts.load(name), LATER)
        for part in (prefix, wrong, corrected, rest, "2 plus 3 makes 6"):
            assert (part in message) == (part in parts), (name, part)


def test_a_step_that_was_never_written_has_no_text(tmp_path: Path) -> None:
    context = own(tmp_path, "[{{ wrong_step }}]")
    assert context.needs_critique
    missing = Critique(
        rollout_id="r", critic="c", case="D", verdicts=(Verdict(step=4, correct=False),), correct_part="", text="t"
    )
    assert shown(context, missing) == "[]"
    assert shown(context, RIGHT) == "[]"
    assert shown(context, LATER) == "[### Step 2: Add 4\n6 + 4 = 10]"


def test_a_design_that_shows_a_critique_does_not_go_without() -> None:
    with pytest.raises(StepalignError, match="context stepalign: rollout r has no critique"):
        shown(contexts.load("stepalign"))
    shown(contexts.load("refsol"))


def test_only_the_faithful_designs_keep_the_wrong_step_from_the_teacher() -> None:
    for name in ("quoted", "through-error"):
        assert "2 + 3 = 6" in shown(contexts.load(name), CRITIQUE)
    for name in ("refsol", "stepalign", "verdicts", "correction", "prefix", "paraphrased"):
        assert "2 + 3 = 6" not in shown(contexts.load(name), CRITIQUE)


@pytest.mark.parametrize("text", ["{{ 7 * 7 }}", "{% for x in y %}", "{# gone #}"])
def test_jinja_in_what_models_and_data_wrote_is_text(text: str, tmp_path: Path) -> None:
    context = own(tmp_path, "{{ problem }}|{{ solution }}|{{ answer }}|{{ attempt }}|{{ critique.text }}")
    problem = Problem(id="p", statement=text, solution=text, answer=text)
    rollout = Rollout(id="r", problem_id="p", completion_ids=(), text=text, token_starts=(), finish="stop")
    critique = Critique(rollout_id="r", critic="c", case="A", verdicts=(), correct_part="", text=text)
    assert shown(context, critique, problem, rollout) == "|".join([text] * 5)


def test_keep_cuts_what_is_shown_and_never_problem_or_answer(tmp_path: Path) -> None:
    context = own(
        tmp_path,
        "{{ problem }}|{{ answer }}|{{ solution }}|{{ attempt }}|{{ critique.text }}|{{ critique.correct_part }}"
        "|{{ critique.corrected_step }}|{{ critique.continuation }}",
    )
    whole = shown(context, CRITIQUE).split("|")
    for keep in (0.0, 0.3, 0.5, 0.999):
        problem, answer, *texts = shown(context, CRITIQUE, keep=keep).split("|")
        assert (problem, answer) == (PROBLEM.statement, PROBLEM.answer)
        for text, before in zip(texts, whole[2:], strict=True):
            kept = text.removesuffix("\n[…]")
            assert text != kept, "the cut is marked"
            assert before.startswith(kept)
            assert len(kept) == int(len(before) * keep) < len(before)


def test_keep_leaves_what_is_empty_empty(tmp_path: Path) -> None:
    context = own(tmp_path, "[{{ solution }}][{{ critique.corrected_step }}][{{ critique.continuation }}]")
    problem = Problem(id="p", statement="s", answer="a")
    assert shown(context, RIGHT, problem, keep=0.5) == "[][][]"


def test_a_template_of_ones_own_may_use_all_of_a_critique(tmp_path: Path) -> None:
    context = own(
        tmp_path,
        "{% for verdict in critique.verdicts if not verdict.correct %}{{ verdict.reason }}\n{% endfor %}"
        "{{ critique.case }} {{ critique.first_error }}\n{% include 'format.txt' %}",
    )
    assert context.needs_critique
    lines = shown(context, CRITIQUE).splitlines()
    assert lines[:3] == ["2 + 3 is 5", "the answer is 9", "D 1"]
    assert lines[3].startswith("Solve the problem step by step.")


def test_an_unknown_variable_is_refused_with_all_that_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(
        StepalignError,
        match=r"mine\.txt: unknown variables rollout; allowed: answer, attempt, correct, critique, "
        r"demonstration, feedback, paraphrase, problem, sibling, solution, wrong_step",
    ):
        own(tmp_path, "{{ rollout.text }}")


@pytest.mark.parametrize(
    "text",
    ["{{ critique.grade }}", "{{ critique.__init__.__globals__ }}", "{{ attempt - 1 }}",
     "{{ critique.verdicts[9].step }}",
     "{{ problem.statement.text }}", "{{ answer | nothing }}", "{{ 1 / 0 }}", "{{ demonstration.text }}",
     "{% for n in range(10**9) %}{% endfor %}"],
)  # fmt: skip
def test_what_a_template_must_not_ask_is_an_error_when_it_is_loaded_that_names_its_file(
    text: str, tmp_path: Path
) -> None:
    with pytest.raises(StepalignError, match=re.escape(str(tmp_path / "mine.txt"))):
        own(tmp_path, text)


def test_a_template_may_use_the_grade_and_the_graders_feedback(tmp_path: Path) -> None:
    context = own(tmp_path, "{{ 'right' if correct else 'wrong' }}: {{ feedback }}.")
    assert not context.needs_critique
    grade = Grade(correct=False, outcome="missing", feedback="there is no box")
    assert shown(context, rollout=replace(ROLLOUT, grade=grade)) == "wrong: there is no box."
    assert shown(context, rollout=replace(ROLLOUT, grade=grade), keep=0.5) == "wrong: there i\n[…]."
    assert shown(context, rollout=replace(ROLLOUT, grade=Grade(correct=True, outcome="correct"))) == "right: ."
    assert shown(context) == "wrong: ."


# ── other rollouts and other problems ─────────────────────────────────────────────────────────────────────────


def test_a_context_names_what_it_has_not_and_one_of_several_is_enough() -> None:
    def missing(name: str, rollout: Rollout = ROLLOUT, **given: Any) -> str:
        return contexts.load(name).missing(contexts.ContextInput(problem=PROBLEM, rollout=rollout, **given))

    assert missing("sibling") == "no sibling"
    assert missing("sibling", sibling=SIBLING) == ""
    assert missing("feedback") == "no feedback"
    assert missing("feedback", GRADED) == ""
    assert missing("sdpo") == "no feedback or sibling"
    assert missing("sdpo", GRADED) == missing("sdpo", sibling=SIBLING) == ""
    assert missing("other-demonstration") == "no demonstration"
    assert missing("other-demonstration", demonstration=OTHER) == ""
    assert missing("past") == missing("sd-zero") == missing("refsol") == ""


def test_feedback_stands_in_for_a_missing_sibling_only() -> None:
    sdpo = contexts.load("sdpo")
    with_sibling, without = shown(sdpo, rollout=GRADED, sibling=SIBLING), shown(sdpo, rollout=GRADED)
    assert "2 + 3 = 5" in with_sibling
    assert "is wrong" not in with_sibling
    assert "The final answer 10 is wrong." in without
    for message in (with_sibling, without):
        assert "2 + 3 = 6" not in message, "the own attempt"
        assert "hm" not in message, "the sibling's thinking"


def test_what_other_rollouts_and_problems_say_is_text_and_is_cut(tmp_path: Path) -> None:
    context = own(tmp_path, "{{ sibling }}|{{ demonstration.statement }}|{{ demonstration.solution }}")
    text = "{{ 7 * 7 }}{% raw %}"
    problem = Problem(id="q", statement=text, answer="1", solution=text)
    source = contexts.ContextInput(
        problem=PROBLEM, rollout=ROLLOUT, sibling=replace(SIBLING, text=text), demonstration=problem
    )
    assert context.render(source) == "|".join([text] * 3)
    assert context.render(source, keep=0.5) == "|".join([f"{text[: len(text) // 2]}\n[…]"] * 3)
    assert context.render(source, keep=0.0) == "|".join(["\n[…]"] * 3).strip()


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (Path(prompts.__file__).parent / "lab").glob("*.txt") if path.stem != "solver")
)
def test_every_context_of_the_lab_renders(name: str) -> None:
    message = shown(contexts.load(f"lab/{name}"), CRITIQUE, rollout=GRADED, sibling=SIBLING)
    assert PROBLEM.statement in message
