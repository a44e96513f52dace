import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stepalign import config
from stepalign import data as problems
from stepalign.config import registry
from stepalign.critics import schema
from stepalign.critics.arithmetic.critic import ProgramCritic
from stepalign.critics.arithmetic.equations import evaluate, find_equations
from stepalign.critics.checks import NAMES, Checker
from stepalign.records import Critique, CritiqueFailure, FinishReason, Grade, Problem, Rollout
from stepalign.rewards.math import MathGrader
from stepalign.trace import boxed, parse

GSM8K = Path(__file__).parents[3] / "../shared/data/gsm8k/model_solutions.jsonl"

SUM = Problem(
    id="sum",
    statement="Compute 47 + 38 + 12 + 30.",
    answer="127",
    solution="### Step 1: Add 12 and 30\n12 + 30 = 42\n\n### Step 2: Add 47 and 38\n47 + 38 = 85\n\n"
    "### Step 3: Add 85 and 42\n85 + 42 = 127\n\n### Final Answer:\n\\boxed{127}",
    meta={"terms": [47, 38, 12, 30]},
)
EGGS = Problem(
    id="eggs",
    statement="Janet's ducks lay 16 eggs a day. She eats three, bakes with four, sells the rest at $2.",
    answer="18",
    solution="Janet sells 16 - 3 - 4 = 9 duck eggs a day.\nShe makes 9 * 2 = $18 every day.",
)


def attempt(text: str, *, correct: bool = False, finish: FinishReason = "stop") -> Rollout:
    grade = Grade(correct=correct, outcome="correct" if correct else "wrong")
    return Rollout(id="r", problem_id="p", completion_ids=(), token_starts=(), text=text, finish=finish, grade=grade)


def answer(problem: Problem, rollout: Rollout) -> Critique | CritiqueFailure:
    (found,) = ProgramCritic().critique([(problem, rollout)])
    return found


def critique(problem: Problem, rollout: Rollout) -> Critique:
    """A critique that keeps what every critique must keep."""
    found = answer(problem, rollout)
    assert isinstance(found, Critique)
    trace = parse(rollout.text)
    again = schema.parse(found.text, trace)
    assert (again.case, again.verdicts) == (found.case, found.verdicts)
    assert again.corrected_step == found.corrected_step
    assert found.continuation.startswith(again.continuation)  # what a solver says behind its box counts as chatter
    assert again.correct_part == found.correct_part
    assert rollout.text.startswith(found.correct_part)
    if found.case != "A":
        stated = boxed(f"{found.corrected_step}\n{found.continuation}")[-1]
        assert evaluate(stated) == evaluate(problem.answer)
    if found.case == "D" and found.first_error is not None and found.first_error <= len(trace.steps):
        assert trace.content(trace.section(found.first_error)).strip() not in found.text
    return found


def test_a_slip_is_mended_and_carried_to_the_answer_in_the_solvers_own_words() -> None:
    text = """We add from left to right.

---

### Step 1: Add 47 and 38
47 + 38 = 85

---

### Step 2: Add 12, which makes 87
85 + 12 = 87

---

### Step 3: Add 30
87 + 30 = 117

---

### Final Answer:
The sum is $\\boxed{117}$."""
    assert (
        critique(SUM, attempt(text)).text
        == """### Summary
Step 1: Correct.
Step 2: Incorrect -- 85 + 12 is 97.
Step 3: Correct.
Step 4: Incorrect -- it rests on Step 2.
# Your solution has an error at Step 2. Below is your correct work, the corrected step, and the remainder of the solution.
# This is the correct part of your solution:
---
We add from left to right.

---

### Step 1: Add 47 and 38
47 + 38 = 85
---
# You made an error at Step 2. Here is the corrected step:
---
### Step 2: Add 12, which makes 97
85 + 12 = 97
---
# Continuing the solution from the corrected step:
---
### Step 3: Add 30
97 + 30 = 127

---

### Final Answer:
The sum is $\\boxed{127}$."""  # noqa: E501
    )


def test_a_slip_of_a_word_problem_is_mended_although_the_reference_goes_another_way() -> None:
    text = """### Step 1: Eaten
16 - 3 = 12

### Step 2: Baked
12 - 4 = 8

### Step 3: Sold
8 * 2 = 16

### Final Answer:
\\boxed{16}"""
    found = critique(EGGS, attempt(text))
    assert (found.first_error, found.verdicts[0].reason) == (1, "16 - 3 is 13.")
    assert found.corrected_step == "### Step 1: Eaten\n16 - 3 = 13"
    assert found.continuation.startswith("### Step 2: Baked\n13 - 4 = 9\n\n### Step 3: Sold\n9 * 2 = 18\n\n")


def test_a_wrong_value_that_is_also_given_is_tried_both_ways() -> None:
    problem = Problem(id="p", statement="10 boxes of 6 pens, and 50 pens for 5 of us.", answer="10")
    text = "### Step 1: a\n10 * 6 = 50\n\n### Step 2: b\n50 / 5 = 11\n\n### Final Answer:\n\\boxed{11}"
    found = critique(problem, attempt(text))
    assert found.corrected_step == "### Step 1: a\n10 * 6 = 60"
    assert found.continuation == "### Step 2: b\n50 / 5 = 10\n\n### Final Answer:\n\\boxed{10}"
    found = critique(Problem(id="p", statement=problem.statement, answer="12"), attempt(text))
    assert found.continuation == "### Step 2: b\n60 / 5 = 12\n\n### Final Answer:\n\\boxed{12}"


def test_a_miscopied_term_of_a_sum_is_replaced_by_the_terms_that_are_left() -> None:
    text = """### Step 1: from 47 to 85
47 + 38 = 85
### Step 2: from 85 to 106
85 + 21 = 106
### Step 3: from 106 to 136
106 + 30 = 136
### Final Answer:
\\boxed{136}"""
    found = critique(SUM, attempt(text))
    assert [verdict.correct for verdict in found.verdicts] == [True, False, True, False]
    assert found.verdicts[1].reason == "it adds a number that is not there to be added."
    assert found.correct_part == "### Step 1: from 47 to 85\n47 + 38 = 85"
    assert found.corrected_step == "### Step 2: from 85 to 97\n85 + 12 = 97"
    assert found.continuation == "### Step 3: from 97 to 127\n97 + 30 = 127\n### Final Answer:\n\\boxed{127}"


def test_a_dropped_term_is_missed_where_the_solution_ends_too_early() -> None:
    text = "### Step 1: go\n47 + 38 = 85\n\n### Step 2: go\n85 + 30 = 115\n\n### Final Answer:\n\\boxed{115}"
    found = critique(SUM, attempt(text))
    assert (found.first_error, found.verdicts[2].reason) == (3, "the solution is not finished.")
    assert found.corrected_step == "### Step 3: go\n115 + 12 = 127"
    assert found.continuation == "### Final Answer:\n\\boxed{127}"


def test_a_term_that_is_added_twice_is_the_first_error() -> None:
    text = "### Step 1: go\n47 + 38 = 85\n\n### Step 2: go\n85 + 38 = 123\n\n### Final Answer:\n\\boxed{123}"
    found = critique(SUM, attempt(text))
    assert (found.first_error, found.corrected_step) == (2, "### Step 2: go\n85 + 12 = 97")


def test_other_orders_and_groups_of_a_sum_are_not_errors() -> None:
    text = """### Step 1: the last two
12 + 30 = 42
### Step 2: the first two
38 + 47 = 85
### Step 3: both
42 + 85 = 127
### Final Answer:
\\boxed{172}"""
    found = critique(SUM, attempt(text))
    assert (found.first_error, found.verdicts[3].reason) == (4, "the final answer is 127.")
    assert found.corrected_step == "### Final Answer:\n\\boxed{127}"
    assert found.continuation == ""


def test_what_is_still_to_be_taken_away_may_be_added_up_first() -> None:
    problem = Problem(id="s", statement="Compute 47 - 12 + 38 - 20.", answer="53", meta={"terms": [47, -12, 38, -20]})
    text = "### Step 1: go\n12 + 20 = 32\n\n### Step 2: go\n47 + 38 = 85\n\n### Step 3: go\n85 - 23 = 62"
    found = critique(problem, attempt(f"{text}\n\n### Final Answer:\n\\boxed{{62}}"))
    assert (found.first_error, found.corrected_step) == (3, "### Step 3: go\n85 - 32 = 53")


def test_terms_that_are_taken_away_keep_their_sign() -> None:
    problem = Problem(id="s", statement="Compute 47 - 12 + 38 - 20.", answer="53", meta={"terms": [47, -12, 38, -20]})
    text = "### Step 1: go\n47 - 12 = 35\n\n### Step 2: go\n35 + 83 = 118\n\n### Final Answer:\n\\boxed{118}"
    found = critique(problem, attempt(text))
    assert found.corrected_step == "### Step 2: go\n35 + 38 = 73"
    assert found.continuation == "### Step 3: go\n73 - 20 = 53\n\n### Final Answer:\n\\boxed{53}"


def test_a_miscopied_number_of_a_word_problem_is_recopied_in_the_solvers_own_way() -> None:
    text = """### Step 1: Eggs left
She has 61 - 3 = 58 eggs left.

### Step 2: Eggs to sell
Baking leaves 58 - 4 = 54 eggs.

### Step 3: Money
54 * $2 = $108

### Final Answer:
\\boxed{108}"""
    found = critique(EGGS, attempt(text))
    assert (found.first_error, found.correct_part) == (1, "")
    assert found.corrected_step == "### Step 1: Eggs left\nShe has 16 - 3 = 13 eggs left."
    assert "Baking leaves 13 - 4 = 9 eggs." in found.continuation
    assert "9 * $2 = $18" in found.continuation


def test_a_wrong_setup_goes_on_with_the_reference_solution_from_the_first_step_that_leaves_it() -> None:
    text = """### Step 1: Eggs for sale
16 - 3 - 4 = 9

### Step 2: Money
9 / 2 = $4.50

### Final Answer:
\\boxed{4.50}"""
    assert (
        critique(EGGS, attempt(text)).text
        == """### Summary
Step 1: Correct.
Step 2: Incorrect -- it does not lead to the answer.
Step 3: Incorrect -- it rests on Step 2.
# Your solution has an error at Step 2. Below is your correct work, the corrected step, and the remainder of the solution.
# This is the correct part of your solution:
---
### Step 1: Eggs for sale
16 - 3 - 4 = 9
---
# You made an error at Step 2. Here is the corrected step:
---
### Step 2:
She makes 9 * 2 = $18 every day.
---
# Continuing the solution from the corrected step:
---
### Final Answer:
\\boxed{18.00}"""  # noqa: E501
    )


def test_a_slip_and_a_wrong_setup_after_it_are_both_mended() -> None:
    text = """### Step 1: Eggs for sale
16 - 3 - 4 = 8

### Step 2: Money
8 + 2 = $10

### Final Answer:
\\boxed{10}"""
    found = critique(EGGS, attempt(text))
    assert found.corrected_step == "### Step 1: Eggs for sale\n16 - 3 - 4 = 9"
    assert found.continuation.startswith("### Step 2:\nShe makes 9 * 2 = $18 every day.\n\n### Final Answer:")


def test_a_right_answer_without_a_false_equation_is_copied_whole() -> None:
    text = "### Step 1: Eggs\n16 - 3 - 4 = 9\n\n### Step 2: Money\n9 * 2 = 18\n\n### Final Answer:\n\\boxed{18}"
    assert (
        critique(EGGS, attempt(text, correct=True)).text
        == f"""### Summary
Step 1: Correct.
Step 2: Correct.
Step 3: Correct.
# Your solution is fully correct.
---
{text}"""
    )


def test_a_right_answer_without_the_format_is_still_fully_correct() -> None:
    found = critique(EGGS, attempt("16 - 7 = 9, so $18.", correct=True))
    assert (found.case, found.correct_part) == ("A", "16 - 7 = 9, so $18.")
    assert [verdict.step for verdict in found.verdicts] == [1]


def test_a_right_answer_with_a_false_equation_is_mended_there() -> None:
    text = """### Step 1: Eggs
16 - 3 - 4 = 8

### Step 2: Money
9 * 2 = 18

### Final Answer:
\\boxed{18}"""
    assert (
        critique(EGGS, attempt(text, correct=True)).text
        == """### Summary
Step 1: Incorrect -- 16 - 3 - 4 is 9.
Step 2: Correct.
Step 3: Correct.
# Your final answer is correct, but Step 1 is not justified. Below is your correct work, the completed step, and the remainder of the solution.
# This is the correct part of your solution:
---

---
# You did not justify Step 1. Here is the completed step:
---
### Step 1: Eggs
16 - 3 - 4 = 9
---
# Continuing the solution from the completed step:
---
### Step 2: Money
9 * 2 = 18

### Final Answer:
\\boxed{18}"""  # noqa: E501
    )


def test_a_right_answer_that_its_mended_steps_do_not_reach_is_a_failure() -> None:
    found = answer(EGGS, attempt("### Step 1: a\n16 * 2 = 18\n\n### Final Answer:\n\\boxed{18}", correct=True))
    assert isinstance(found, CritiqueFailure)
    assert found.reason == "no way to the answer"


def test_a_truncated_rollout_keeps_its_complete_steps_and_is_finished() -> None:
    text = "### Step 1: first\n47 + 38 = 85\n\n### Step 2: then\n85 + 12 = 9"
    assert (
        critique(SUM, attempt(text, finish="length")).text
        == """### Summary
Step 1: Correct.
Step 2: Incorrect -- it is unfinished.
# Your solution ran out of tokens and needs completing from Step 2 on. Below is your usable work, that step completed, and the remainder of the solution.
# This is the usable part of your solution:
---
### Step 1: first
47 + 38 = 85
---
# You did not finish from Step 2 on. Here is the completed step:
---
### Step 2: first
85 + 12 = 97
---
# Continuing the solution from the completed step:
---
### Step 3: first
97 + 30 = 127

### Final Answer:
\\boxed{127}"""  # noqa: E501
    )


def test_an_unfinished_step_may_be_how_the_completed_one_begins() -> None:
    text = "### Step 1: first\n47 + 38 = 85\n\n### Step 2: first\n85 + 12 = 9"
    assert critique(SUM, attempt(text, finish="length")).corrected_step == "### Step 2: first\n85 + 12 = 97"


def test_a_truncated_rollout_with_a_slip_is_mended_from_there() -> None:
    text = "### Step 1: a\n47 + 38 = 75\n\n### Step 2: a\n75 + 12 = 87\n\n### Step 3: a\n87 +"
    found = critique(SUM, attempt(text, finish="length"))
    assert (found.case, found.first_error) == ("C", 1)
    assert found.corrected_step == "### Step 1: a\n47 + 38 = 85"
    assert found.continuation.startswith("### Step 2: a\n85 + 12 = 97\n\n### Step 3: a\n97 + 30 = 127")


def test_a_rollout_that_answers_before_its_cap_is_not_truncated() -> None:
    text = "### Step 1: a\n16 - 7 = 9\n\n### Final Answer:\n\\boxed{9}\n\nWait, "
    assert critique(EGGS, attempt(text, finish="length")).case == "D"


@pytest.mark.parametrize("text", ["The answer is \\boxed{20}.", "", "### Final Answer:\n\\boxed{20}"])
def test_without_steps_the_whole_critique_is_the_reference_solution(text: str) -> None:
    found = critique(EGGS, attempt(text))
    assert (found.first_error, found.correct_part) == (1, "")
    assert found.corrected_step == "### Step 1:\nJanet sells 16 - 3 - 4 = 9 duck eggs a day."
    assert found.continuation.startswith("### Step 2:\nShe makes 9 * 2 = $18 every day.")


def test_a_false_equation_before_the_steps_is_not_copied() -> None:
    text = "Note 16 - 3 = 12.\n\n### Step 1: a\n12 - 4 = 8\n\n### Final Answer:\n\\boxed{8}"
    found = critique(EGGS, attempt(text))
    assert (found.first_error, found.correct_part) == (1, "")
    assert "= 12" not in found.text


def test_a_missing_final_answer_is_one_step_more_than_there_are() -> None:
    text = "### Step 1: Eggs\n16 - 3 - 4 = 9\n\n### Step 2: Money\n9 * 2 = 18"
    found = critique(EGGS, attempt(text))
    assert (found.first_error, found.verdicts[2].reason) == (3, "the final answer is missing.")
    assert found.correct_part == text
    assert found.corrected_step == "### Final Answer:\n\\boxed{18}"


def test_a_tagged_reference_solution_is_renumbered() -> None:
    problem = Problem(id="s", statement=SUM.statement, answer="127", solution=SUM.solution)
    text = "### Step 1: a\n47 + 38 = 85\n\n### Step 2: b\n85 * 2 = 170\n\n### Final Answer:\n\\boxed{170}"
    found = critique(problem, attempt(text))
    assert found.corrected_step == "### Step 2: Add 12 and 30\n12 + 30 = 42"
    assert found.continuation.startswith("### Step 3: Add 85 and 42\n85 + 42 = 127")


def test_a_displayed_formula_of_the_reference_is_not_torn_apart() -> None:
    problem = Problem(id="s", statement="?", answer="4", solution="We have\n\\[\n2 + 2\n= 4\n\\]\nso 4.")
    found = critique(problem, attempt("### Step 1: a\nIt is 5.\n\n### Final Answer:\n\\boxed{5}"))
    assert found.corrected_step == f"### Step 1:\n{problem.solution}"


def test_a_reference_solution_in_algebra_is_followed_whole() -> None:
    problem = Problem(id="s", statement="They sold 88 together.", answer="8", solution="So 11h = 88.\nSo h = 8.")
    found = critique(problem, attempt("### Step 1: a\n10/10*88 = 88\n\n### Final Answer:\n\\boxed{88}"))
    assert (found.first_error, found.corrected_step) == (2, "### Step 2:\nSo 11h = 88.")
    assert found.continuation == "### Step 3:\nSo h = 8.\n\n### Final Answer:\n\\boxed{8}"


def test_of_two_stated_answers_neither_is_kept() -> None:
    text = "### Step 1: a\n16 - 3 - 4 = 9\n\n### Step 2: b\n9 * 2 = 18\n\n### Final Answer:\n"
    found = critique(EGGS, attempt(f"{text}\\boxed{{16}} or \\boxed{{9}}"))
    assert found.corrected_step == "### Final Answer:\n\\boxed{18}"


def test_an_answer_that_is_no_number_is_taken_from_the_reference() -> None:
    problem = Problem(id="s", statement="Solve.", answer="\\text{none}", solution="There is none.")
    (found,) = ProgramCritic().critique([(problem, attempt("### Step 1: a\nx = 5\n\n### Final Answer:\n\\boxed{5}"))])
    assert isinstance(found, Critique)
    assert found.continuation.endswith("\\boxed{\\text{none}}") or found.corrected_step.endswith("\\text{none}}")


def test_without_a_reference_solution_a_wrong_setup_is_a_failure() -> None:
    problem = Problem(id="p", statement=EGGS.statement, answer="18")
    text = "### Step 1: a\n16 - 3 - 4 = 9\n\n### Step 2: b\n9 + 2 = 11\n\n### Final Answer:\n\\boxed{11}"
    found = answer(problem, attempt(text))
    assert isinstance(found, CritiqueFailure)
    assert found.reason == "no way to the answer"


def test_a_wrong_step_that_the_correction_would_have_to_repeat_is_a_failure() -> None:
    text = "### Step 1: a\n16 - 3 - 4 = 9\n\n### Step 2: b\n9 * 2 = 18\n\n### Final Answer:\n\\boxed{18}"
    found = answer(EGGS, attempt(text))  # graded wrong although it is right
    assert isinstance(found, CritiqueFailure)
    assert found.reason == "not silent"


def test_a_reason_never_shows_the_wrong_number() -> None:
    text = "### Step 1: a\n16 - 7 = 7777\n\n### Step 2: b\n7777 * 2 = 15554\n\n### Final Answer:\n\\boxed{15554}"
    found = critique(EGGS, attempt(text))
    assert "7777" not in found.text
    assert "15554" not in found.text


def test_a_recipe_makes_the_critic() -> None:
    made = registry.build(config.ProgramCriticConfig(), grader=MathGrader(), folder=Path(), own=None)
    (found,) = made.critique(
        [(EGGS, attempt("### Step 1: a\n9 * 2 = 18\n\n### Final Answer:\n\\boxed{18}", correct=True))]
    )
    assert made.name == "program"
    assert isinstance(found, Critique)
    assert [check.name for check in found.checks if check.passed] == list(NAMES)


def wrong_sums(rng: random.Random) -> Iterator[tuple[str, Problem, Rollout]]:
    loaded = problems.load(config.SumsConfig(count=120, seed=3, terms=4, digits=2, subtract=True))
    for problem in loaded.problems:
        terms = [int(term) for term in problem.meta["terms"]]  # type: ignore[union-attr, arg-type, call-overload]
        kind = rng.choice(["slip", "copy", "drop", "repeat", "answer"])
        place = rng.randrange(1, len(terms))
        if kind == "copy":
            terms[place] += 10 if terms[place] > 0 else -10
        elif kind == "drop":
            del terms[place]
        elif kind == "repeat":
            terms.insert(place, terms[place])
        total, steps = terms[0], []
        for number, term in enumerate(terms[1:], start=1):
            result = total + term + 10 * (kind == "slip" and number == place)
            steps.append(f"### Step {number}: Next\n{total} {'-' if term < 0 else '+'} {abs(term)} = {result}")
            total = result
        steps.append(f"### Final Answer:\n\\boxed{{{total + (kind == 'answer')}}}")
        yield kind, problem, attempt("\n\n".join(steps))


def test_every_kind_of_wrong_sum_is_corrected_in_the_solvers_format() -> None:
    for kind, problem, rollout in wrong_sums(random.Random(0)):
        found = critique(problem, rollout)
        whole = "\n\n".join(filter(None, (found.correct_part, found.corrected_step, found.continuation)))
        assert parse(whole).formatted, kind
        assert not [link for chain in find_equations(whole) for link in chain.false_links()], kind


def real_attempts() -> Iterator[tuple[Problem, Rollout]]:
    for number, line in enumerate(GSM8K.read_text(encoding="utf-8").splitlines()[:150]):
        row = json.loads(line)
        reference, _, wanted = re.sub(r"<<[^<>]*>>", "", row["ground_truth"]).rpartition("A:")
        wanted = wanted.strip().replace(",", "")
        problem = Problem(id=str(number), statement=row["question"], answer=wanted, solution=reference.strip())
        for model in ("6b_finetuning", "175b_verification"):
            lines = row[model]["solution"].split("\n")
            steps = [f"### Step {k}: Go on\n{text}" for k, text in enumerate(lines, start=1) if text[:2] != "A:"]
            if lines[-1].startswith("A:"):
                steps.append(f"### Final Answer:\n\\boxed{{{lines[-1][2:].strip()}}}")
            yield problem, attempt("\n\n".join(steps), correct=row[model]["is_correct"])


@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K's model solutions are not beside the repository")
def test_real_solutions_get_critiques_that_are_verbatim_silent_and_end_in_the_answer() -> None:
    cases: Counter[str] = Counter()
    for problem, rollout in real_attempts():
        failed = isinstance(answer(problem, rollout), CritiqueFailure)
        cases["failed" if failed else critique(problem, rollout).case] += 1
    assert cases.total() == 300
    assert cases["A"] > 80
    assert cases["D"] > 150
    assert cases["failed"] < 5  # right answers behind a false equation


@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K's model solutions are not beside the repository")
def test_real_critiques_pass_every_check_but_the_echo_of_a_reference_that_they_repeat() -> None:
    failed: Counter[str] = Counter()
    echoes = []
    checker = Checker(config.ChecksConfig(), MathGrader(num_workers=1))
    for problem, rollout in real_attempts():
        found = answer(problem, rollout)
        if isinstance(found, Critique):
            checks = checker.check(found, problem, rollout)
            failed.update(check.name for check in checks if not check.passed)
            if "it does not lead to the answer" in found.text:  # then it goes on with the reference solution
                echoes.append(next(check for check in checks if check.name == "reference_overlap"))
    assert set(failed) == {"reference_overlap"}
    assert len(echoes) > 150
    assert sum(not check.passed for check in echoes) / len(echoes) > 0.9


@pytest.mark.parametrize("join", [" + ", "\n", " = "])
def test_a_rollout_of_8_000_terms_is_corrected_or_refused_in_time(join: str) -> None:
    piece = {" + ": "{0}", "\n": "{0} + 1 = {0}", " = ": "{0} + 1 + 2 + 3"}[join]
    body = join.join(piece.format(number) for number in range(8_000))
    problem = Problem(id="p", statement="?", answer="5", meta={"terms": list(range(8_000))})
    start = time.process_time()
    found = answer(problem, attempt(f"### Step 1: a\n{body}\n\n### Final Answer:\n\\boxed{{1}}"))
    assert time.process_time() - start < 4
    assert isinstance(found, Critique) or found.reason == "too long"


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("trace_format", ["paragraphs", "code"])
def test_a_rollout_of_another_format_is_a_failure_that_names_it(trace_format: str, correct: bool) -> None:
    text = "47 + 38 = 85\n\n85 + 12 = 98\n\n98 + 30 = 128\n\n\\boxed{128}"
    failed = answer(SUM, replace(attempt(text, correct=correct), trace_format=trace_format))
    assert isinstance(failed, CritiqueFailure)
    assert (failed.reason, failed.detail) == (
        "no steps",
        f"the problem's trace_format is {trace_format!r}, and only 'steps' is read",
    )
