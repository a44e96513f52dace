"""Wrong contexts: what stands in for what is right."""

from dataclasses import replace
from pathlib import Path

import pytest

from contexts.test_contexts import CRITIQUE, PROBLEM, ROLLOUT, SIBLING, own
from stepalign import contexts
from stepalign.contexts.wrong import check_has_wrong, wrong_inputs
from stepalign.errors import StepalignError
from stepalign.records import Critique, Grade, Rollout

WRONG = [
    replace(
        ROLLOUT,
        id=f"w{n}",
        sample=2 + n,
        text=f"WRONG {n}",
        grade=Grade(correct=False, outcome="wrong", final_answer=f"{n}"),
    )
    for n in range(3)
]
MUTE = replace(WRONG[0], id="mute", sample=9, text="WRONG mute", grade=Grade(correct=False, outcome="missing"))
SOURCE = contexts.ContextInput(problem=PROBLEM, rollout=ROLLOUT, sibling=SIBLING)


def messages(context: contexts.Context, group: list[Rollout], limit: int = 4) -> list[str]:
    return [context.render(one) for one in wrong_inputs(context, SOURCE, [ROLLOUT, SIBLING, *group], [], limit)]


@pytest.mark.parametrize("name", ["refsol", "sibling", "sdpo", "past"])
def test_a_failed_sibling_stands_in_the_solutions_place_and_nothing_else_changes(name: str) -> None:
    context = contexts.load(name)
    found = messages(context, WRONG)
    assert len(found) == 3
    shown = "2 + 3 = 5 and 5 + 4 = 9." if "solution" in context.variables else contexts.others.response(SIBLING)
    for number, message in enumerate(found):
        assert message.replace(f"WRONG {number}", shown) == context.render(SOURCE)


def test_the_number_of_wrong_contexts_is_bounded_and_may_be_none() -> None:
    context = contexts.load("refsol")
    assert len(messages(context, WRONG, limit=2)) == 2
    assert messages(context, []) == []
    assert len(messages(context, [*WRONG, replace(WRONG[0], id="again", sample=8)])) == 3, "each text once"


def test_a_shown_answer_is_the_wrong_one(tmp_path: Path) -> None:
    context = own(tmp_path, "{{ answer }}")
    assert messages(context, [*WRONG, MUTE], limit=9) == ["0", "1", "2"], "without an answer there is none to show"
    assert len(messages(contexts.load("sibling"), [*WRONG, MUTE], limit=9)) == 4


def test_a_critique_is_another_problems_beginning_after_the_own() -> None:
    def critique(name: str) -> Critique:
        return replace(CRITIQUE, rollout_id=name, text=name)

    written = [
        ("q", critique("q0")),
        ("p", critique("r")),
        ("p", critique("r2")),
        ("q", critique("q1")),
        ("o", critique("o")),
    ]
    source = replace(SOURCE, critique=written[1][1])
    context = contexts.load("stepalign")

    def found(limit: int) -> list[str]:
        return [one.critique.text for one in wrong_inputs(context, source, [], written, limit) if one.critique]

    assert found(4) == ["q1", "o", "q0"]
    assert found(2) == ["q1", "o"]


def test_a_context_that_cannot_be_wrong_is_refused() -> None:
    for name in ("refsol", "stepalign", "sdpo", "past"):
        check_has_wrong(contexts.load(name), "x")
    with pytest.raises(
        StepalignError, match=r"algorithm.credit contrasts .* 'feedback' shows none of critique, answer"
    ):
        check_has_wrong(contexts.load("feedback"), "algorithm.credit")
