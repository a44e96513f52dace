"""Splice mode: what the model returns is put together with the solver's own text."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from stepalign.config import SelfCriticConfig
from stepalign.critics import sample, schema, splice
from stepalign.critics.llm import first_message, load_template
from stepalign.critics.schema import CritiqueFormatError
from stepalign.records import FinishReason, Grade, Rollout, Verdict
from stepalign.trace import parse, parse_rollout

TEXT = "We add.\n\n### Step 1: a\n47 + 38 = 85\n\n---\n\n### Step 2: b\n85 + 12 = 98\n\n### Final Answer:\n\\boxed{98}"
TRACE = parse(TEXT)
GOOD = {
    "case": "D",
    "verdicts": [True, False, True],
    "first_wrong_step": 2,
    "reason": "85 + 12\nis 97.",
    "corrected_step": "### Step 2: b\n85 \\times 1 + 12 = \\frac{194}{2}\n",
    "continuation": "### Final Answer:\n\\boxed{97}",
}


def rejection(text: str) -> str:
    with pytest.raises(CritiqueFormatError) as error:
        splice.parse(text, TRACE)
    return str(error.value)


def test_the_correct_part_is_the_solvers_own_and_the_rest_the_models() -> None:
    found = splice.parse(json.dumps(GOOD), TRACE)
    assert found.correct_part == schema.original(TRACE, 2) == "We add.\n\n### Step 1: a\n47 + 38 = 85"
    assert found.verdicts == (
        Verdict(step=1, correct=True),
        Verdict(step=2, correct=False, reason="85 + 12 is 97."),
        Verdict(step=3, correct=True),
    )
    assert found.corrected_step == "### Step 2: b\n85 \\times 1 + 12 = \\frac{194}{2}"
    assert schema.parse(schema.text_of(found), TRACE) == found


def test_a_right_solution_is_copied_whole() -> None:
    found = splice.parse('{"case": "A", "verdicts": [true, true, true]}', TRACE)
    assert (found.case, found.correct_part, found.corrected_step) == ("A", TEXT, "")


def test_behind_an_unjustified_step_the_solution_is_the_solvers_own() -> None:
    given = GOOD | {"case": "B", "verdicts": [False, True, True], "first_wrong_step": 1, "continuation": ""}
    found = splice.parse(json.dumps(given), TRACE)
    assert (found.correct_part, found.continuation) == ("We add.", TEXT[TEXT.index("### Step 2") :])


@pytest.mark.parametrize(
    "put",
    [
        lambda text: f"Here is my judgement of {{the}} attempt:\n```json\n{text}\n```\nI hope it helps.",
        lambda text: text.replace("\\\\times", "\\times").replace("\\\\frac", "\\frac").replace("\\\\boxed", "\\boxed"),
        lambda text: text.replace("\\n", "\n"),
        lambda text: text[:-1] + ', "confidence": 0.9}',
    ],
    ids=["fences and chatter", "single backslashes", "raw line breaks", "a key too many"],
)
def test_what_models_make_of_json_is_read(put: Any) -> None:
    assert splice.parse(put(json.dumps(GOOD)), TRACE) == splice.parse(json.dumps(GOOD), TRACE)


def test_latex_that_is_no_escape_at_all_is_read() -> None:
    text = json.dumps(GOOD).replace("85 \\\\times", "\\(85\\) \\cdot \\sqrt{1} \\\\times")
    assert splice.parse(text, TRACE).corrected_step.startswith("### Step 2: b\n\\(85\\) \\cdot \\sqrt{1} \\times")


def test_right_escapes_beside_wrong_ones_stay() -> None:
    step = "### Step 2: b\n\\sqrt{2} \\\\ \u00fc \\(x\\) \\unit"
    given = json.dumps(GOOD | {"corrected_step": step}).replace("\\\\(", "\\(").replace("\\\\unit", "\\unit")
    assert "\\\\sqrt" in given
    assert " \\(x\\\\)" in given
    assert splice.parse(given, TRACE).corrected_step == step


def test_a_programs_tabs_and_line_breaks_are_no_latex() -> None:
    program = parse_rollout(rollout(text="```python\ndef f(x):\n\ty = 1\n\treturn y\n```", trace_format="code"))
    lines = "\to = open(x)\neq = 1"
    given = {"case": "D", "verdicts": [True, False, True], "first_wrong_step": 2, "corrected_step": lines}
    found = splice.parse(json.dumps(given | {"continuation": "\treturn o\n```"}), program)
    assert found.corrected_step == lines


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"first_wrong_step": 1}, "puts the first wrong step at 1, its verdicts at 2"),
        ({"verdicts": [True, True, True], "first_wrong_step": 0}, "of case D, but finds no step incorrect"),
        ({"case": "A"}, "is of case A, fully correct, but finds step 2 incorrect"),
        ({"case": "A", "first_wrong_step": 0}, "is of case A, fully correct, but finds step 2 incorrect"),
        ({"verdicts": [True, False, True, True]}, "judges step 4 of a solution that has 2"),
        ({"verdicts": [], "first_wrong_step": 0, "case": "A"}, "has no verdicts"),
        ({"corrected_step": " \n"}, "has no corrected step 2"),
        ({"case": "E"}, "case: Input should be 'A', 'B', 'C' or 'D'"),
        ({"verdicts": "all right"}, "verdicts: Input should be a valid list"),
    ],
)
def test_what_cannot_be_accepted_is_said(changed: dict[str, Any], message: str) -> None:
    assert message in rejection(json.dumps(GOOD | changed))


@pytest.mark.parametrize("text", ["", "no", "{", "[1]", '{"case": "A"', "{" * 100_000, '{"a":' * 5000])
def test_what_is_no_json_is_said(text: str) -> None:
    assert "is not JSON" in rejection(text)


def rollout(
    *, correct: bool = False, finish: FinishReason = "stop", text: str = TEXT, trace_format: str = "steps"
) -> Rollout:
    return Rollout(
        id="r",
        problem_id="p",
        completion_ids=(),
        token_starts=(),
        text=text,
        finish=finish,
        grade=Grade(correct=correct, outcome="correct" if correct else "wrong"),
        trace_format=trace_format,
    )


@pytest.mark.parametrize(
    ("asked", "cases", "steps", "verdicts"),
    [
        (rollout(), ["D"], [1, 2, 3], (2, 3)),
        (rollout(correct=True), ["A", "B"], [0, 1, 2, 3], (2, 3)),
        (rollout(finish="length"), ["C", "D"], [1, 2, 3], (2, 3)),
        (rollout(text="no steps"), ["D"], [1], (1, 1)),
    ],
)
def test_the_servers_schema_has_only_what_grade_and_steps_leave_open(
    asked: Rollout, cases: list[str], steps: list[int], verdicts: tuple[int, int]
) -> None:
    properties = splice.response_format(asked)["json_schema"]["schema"]["properties"]
    assert properties["case"]["enum"] == cases
    assert properties["first_wrong_step"]["enum"] == steps
    assert (properties["verdicts"]["minItems"], properties["verdicts"]["maxItems"]) == verdicts


def test_the_servers_schema_asks_for_every_key_and_no_other() -> None:
    wanted = splice.response_format(rollout())["json_schema"]
    assert wanted["strict"] is True
    assert wanted["schema"]["required"] == list(splice.SplicedCritique.model_fields) == list(GOOD)
    assert wanted["schema"]["additionalProperties"] is False
    assert "default" not in json.dumps(wanted)


PROGRAM = "```python\ndef f(x):\n    y = x\n    return y\n```"
NO_STEPS = "the whole solution, as step 1"
NO_PROGRAM = "false for the missing program, as step 1"
BOTH = "true or false for step 1, then for the final answer; at least one is false"
CUT = TEXT[: TEXT.index("\n\n### Final")]


@pytest.mark.parametrize(
    ("asked", "judged", "verdicts"),
    [
        (rollout(), "true or false for each of the 2 steps, then for the final answer; at least one is false", 3),
        (rollout(correct=True), "true or false for each of the 2 steps, then for the final answer", 3),
        (
            rollout(text=CUT),
            "true or false for each of the 2 steps, then for the final answer; at least one is false",
            3,
        ),
        (rollout(finish="length", text=CUT), "true or false for each of the 2 steps; at least one is false", 2),
        (
            rollout(finish="length"),
            "true or false for each of the 2 steps, then for the final answer; at least one is false",
            3,
        ),
        (rollout(finish="length", correct=True), "true or false for each of the 2 steps, then for the final answer", 3),
        (
            rollout(finish="length", text=CUT[: CUT.index("85 +")]),
            "true or false for each of the 2 steps; at least one is false",
            2,
        ),
        (rollout(finish="length", text="### Step 1: a\n47 +"), "false for step 1", 1),
        (rollout(text="### Step 1: a\n\n### Final Answer:\n\\boxed{98}"), BOTH, 2),
        (rollout(finish="length", text="<think>47 +"), f"false for {NO_STEPS}", 1),
        (rollout(finish="length", text=""), f"false for {NO_STEPS}", 1),
        (rollout(text="It is 98."), f"false for {NO_STEPS}", 1),
        (rollout(text="### Final Answer:\n\\boxed{97}", correct=True), f"true or false for {NO_STEPS}", 1),
        (rollout(text="It is \\boxed{97}.", correct=True), f"true or false for {NO_STEPS}", 1),
        (rollout(text=PROGRAM, trace_format="code"), "true or false for each of the 3 steps; at least one is false", 3),
        (rollout(text=PROGRAM, correct=True, trace_format="code"), "true or false for each of the 3 steps", 3),
        (rollout(text=PROGRAM[:18], finish="length", trace_format="code"), "false for step 1", 1),
        (rollout(text="I cannot.", trace_format="code"), NO_PROGRAM, 1),
        (rollout(finish="length", text="<think>f", trace_format="code"), NO_PROGRAM, 1),
    ],
)
def test_every_form_of_the_message_is_read_once_it_is_filled_in(asked: Rollout, judged: str, verdicts: int) -> None:
    is_program = asked.trace_format == "code"
    settings = SelfCriticConfig(mode="splice", prompt="code/critic-splice" if is_program else None)
    message = first_message(load_template(settings), sample.PROBLEM, asked)
    assert re.search(rf"\n\n# The form\n\nFill in .*, with {judged}\. null and", message)
    forms = [json.loads(line) for line in re.findall(r'^\{"case": .*', message, re.MULTILINE)]
    cases = "A" if is_program and asked.correct else schema.allowed_cases(asked)
    assert "".join(form["case"] for form in forms) == cases
    allowed = splice.response_format(asked)["json_schema"]["schema"]["properties"]["verdicts"]
    for form in forms:
        assert len(form["verdicts"]) == verdicts
        assert allowed["minItems"] <= verdicts <= allowed["maxItems"]
        places = {"A": range(1), "B": range(1, max(verdicts, 2))}  # B completes a step, no final answer
        for first in places.get(form["case"], range(1, verdicts + 1)):
            judgement = [number != first for number in range(1, verdicts + 1)]
            filled = form | {"verdicts": judgement, "first_wrong_step": first}
            found = splice.parse(json.dumps(filled), parse_rollout(asked))
            mended = parse_rollout(replace(asked, text=schema.solution_of(found)))
            assert mended.steps if is_program else "\\boxed{" in mended.text
