"""What the policy makes of a check that fails."""

from dataclasses import replace
from typing import Any

import pytest

from critics.test_checks import GRADER, PROBLEM, TEXT, critique, rollout
from stepalign import config
from stepalign.critics import schema
from stepalign.critics.validation import ValidatedCritic, Validator
from stepalign.records import Critique, CritiqueFailure, Verdict


def validator(**policy: str) -> Validator:
    return Validator(config.ProgramCriticConfig.model_validate({"validation": policy}), GRADER)


def validated(made: Critique, **policy: str) -> Critique | CritiqueFailure:
    return validator(**policy).validate(made, PROBLEM, rollout())


def rejected(made: Critique, **policy: str) -> CritiqueFailure:
    found = validated(made, **policy)
    assert isinstance(found, CritiqueFailure)
    return found


def accepted(made: Critique, **policy: str) -> Critique:
    found = validated(made, **policy)
    assert isinstance(found, Critique)
    return found


REWRITTEN = critique(correct_part="We add 47 and 38.")
LIE = critique(continuation="### Final Answer:\n\\boxed{99}")


def test_a_critique_that_passes_keeps_its_checks() -> None:
    found = accepted(critique())
    assert (all(check.passed for check in found.checks), found.repaired) == (True, ())
    assert replace(found, checks=()) == critique()


def test_a_copy_that_is_not_verbatim_is_mended_and_the_checks_tell_what_it_was() -> None:
    found = accepted(REWRITTEN)
    assert (found.text, found.correct_part, found.fidelity) == (critique().text, critique().correct_part, 1.0)
    assert found.repaired == ("exact_copy", "normalized_copy")
    assert [check.name for check in found.checks if not check.passed] == ["exact_copy", "normalized_copy"]


def test_a_copy_within_the_tolerance_teaches_the_solvers_own_text() -> None:
    """One digit of a long copy is altered: the check lets it pass, and the altered digit does not teach."""
    whole = critique()
    altered = whole.correct_part.replace("47", "48", 1)
    assert altered != whole.correct_part
    text = whole.text.replace(whole.correct_part, altered)
    made = replace(whole, correct_part=altered, text=text, fidelity=0.99)
    settings = config.ProgramCriticConfig.model_validate({"checks": {"min_fidelity": 0.5}})
    found = Validator(settings, GRADER).validate(made, PROBLEM, rollout())
    assert isinstance(found, Critique)
    assert (found.correct_part, found.text, found.fidelity) == (whole.correct_part, whole.text, 0.99)
    assert found.repaired == ()


def test_reasons_that_quote_are_left_out() -> None:
    quoting = (Verdict(step=1, correct=True), Verdict(step=2, correct=False, reason="85 + 12 = 98 is wrong"))
    found = accepted(critique(verdicts=quoting))
    assert (found.repaired, "98" in found.text, "Step 2: Incorrect.\n" in found.text) == (
        ("error_not_quoted", "true_equations"),
        False,
        True,
    )


def test_a_text_that_says_more_than_its_parts_is_composed_anew() -> None:
    found = accepted(replace(critique(), text=critique().text + "\n85 + 12 = 98"))
    assert (found.text, found.repaired) == (critique().text, ("layout",))


def test_what_mending_does_not_mend_is_asked_for_again() -> None:
    quoting = critique(corrected_step="### Step 2: Green\nThe green ones come next.\n85 + 12 = 98")
    found = rejected(quoting)
    assert (found.reason, validator().may_retry(found), found.fallback) == ("error_not_quoted", True, None)
    assert [check.name for check in found.checks if not check.passed] == ["error_not_quoted", "true_equations"]


@pytest.mark.parametrize(
    ("action", "again", "fallback"),
    [("retry", True, None), ("fail", False, None), ("refsol", False, "refsol"), ("drop", False, "drop")],
)
def test_a_lie_is_met_as_the_policy_says(action: str, again: bool, fallback: str | None) -> None:
    found = rejected(LIE, final_answer=action)
    assert (found.reason, found.fallback) == ("final_answer", fallback)
    assert validator(final_answer=action).may_retry(found) is again
    assert "ends in '99'" in found.detail
    assert (found.rollout_id, found.critic) == (rollout().id, "c")
    assert [check.name for check in found.checks if not check.passed] == ["final_answer"]


def test_what_is_ignored_teaches_and_is_counted() -> None:
    found = accepted(LIE, final_answer="ignore")
    assert [check.name for check in found.checks if not check.passed] == ["final_answer"]


def test_the_first_check_that_fails_decides_and_all_are_told() -> None:
    both = critique(correct_part="We add 47 and 38.", continuation="### Final Answer:\n\\boxed{99}")
    assert rejected(both, exact_copy="drop").fallback == "drop"
    assert "of the correct part is copied" in rejected(both, exact_copy="drop").detail
    assert "ends in '99'" in rejected(both, exact_copy="drop").detail
    assert rejected(both).reason == "final_answer"  # the copy was mended, the lie was not


def test_a_check_that_mending_cannot_help_has_no_such_policy() -> None:
    with pytest.raises(ValueError, match="final_answer"):
        config.ValidationConfig.model_validate({"final_answer": "repair"})


def test_answers_of_a_critic_that_cannot_be_asked_again_are_checked_as_they_come() -> None:
    right = tuple(Verdict(step=k, correct=True) for k in (1, 2, 3))
    lie = critique(case="A", verdicts=right, correct_part=TEXT, corrected_step="", continuation="")
    failure = CritiqueFailure(rollout_id="gone", critic="file", reason="parse")

    class File:
        name = "file"

        def critique(self, attempts: Any) -> Any:
            ids = [one.id for _, one in attempts]
            by_id = {"good": critique(), "lie": lie, "gone": failure}
            for name in reversed(ids):
                yield replace(by_id[name], rollout_id=name)

    given = [(PROBLEM, replace(rollout(), id=name)) for name in ("good", "lie", "gone")]
    gone, refusal, good = ValidatedCritic(File(), config.ProgramCriticConfig(), GRADER).critique(given)
    assert gone == failure
    assert isinstance(refusal, CritiqueFailure)
    assert (refusal.rollout_id, refusal.reason, refusal.critic) == ("lie", "case", "c")
    assert isinstance(good, Critique)
    assert good.text == schema.text_of(good)
