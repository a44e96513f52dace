from collections import Counter
from os.path import commonprefix
from pathlib import Path

import pytest

from stepalign.critics.arithmetic.equations import evaluate, find_equations
from stepalign.error_injection import inject, sources
from stepalign.error_injection.inject import KINDS, NotInjectable, inject_error
from stepalign.records import PlantedSlip, Problem, SlipKind
from stepalign.trace import boxed, parse

GSM8K = Path(__file__).parents[2] / "../shared/data/gsm8k/model_solutions.jsonl"

EGGS = Problem(
    id="eggs",
    statement="Ducks lay 16 eggs a day. Janet eats 3, bakes with 4 and gives 2 away. The rest sells at $5 each.",
    answer="35",
)
SOLVED = """### Step 1: Eggs that are used
She eats 3, bakes with 4 and gives 2 away, so 3 + 4 + 2 = 9 eggs are used.

### Step 2: Eggs that are left
16 - 9 = 7 eggs are left.

### Step 3: Money
She sells these 7 eggs for 7 * 5 = $35 a day.

### Final Answer:
\\boxed{35}"""


def planted(*kinds: SlipKind, seed: int = 0, problem: Problem = EGGS, text: str = SOLVED) -> PlantedSlip:
    return inject_error(problem, text, rollout_id="r", seed=seed, kinds=kinds or KINDS)


def false_equations(text: str) -> list[tuple[int, int]]:
    """Where the false equations of a text are, each from its computation to its result."""
    links = [link for chain in find_equations(text) for link in chain.false_links()]
    return [(left.start, right.end) for left, right in links]


def keeps_its_promises(slip: PlantedSlip, problem: Problem) -> None:
    """What holds for every slip, whatever it was planted into."""
    right, wrong = parse(slip.correct_text), parse(slip.text)
    section = wrong.section(slip.step)
    assert wrong.before(slip.step) == right.before(slip.step)
    assert slip.start == right.section(slip.step).start + slip.start - section.start
    assert section.start <= slip.start <= slip.departure < slip.end <= section.end
    assert slip.departure == len(commonprefix([slip.text, slip.correct_text]))
    assert [s.kind for s in wrong.sections] == [s.kind for s in right.sections]
    # What follows is true under its own operands: only a result that is off makes a false equation, one, its own.
    false = false_equations(slip.text)
    assert len(false) == (slip.kind == "arithmetic")
    assert all(start < slip.start < slip.end <= end for start, end in false)
    stated, computed = evaluate(boxed(slip.text)[-1]), evaluate(problem.answer)
    assert stated is not None
    assert stated >= 0
    assert stated != computed


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_slip_is_made_once_and_carried_to_another_answer(kind: SlipKind) -> None:
    texts = set()
    for seed in range(30):
        slip = planted(kind, seed=seed)
        assert slip.kind == kind
        keeps_its_promises(slip, EGGS)
        texts.add(slip.text)
    assert len(texts) >= 2


def test_a_slip_is_carried_through_equations_prose_and_the_answer() -> None:
    slips = [planted("dropped term", seed=seed) for seed in range(30)]
    (carried,) = {slip.text for slip in slips if "3 + 4 = 7 eggs" in slip.text}
    assert carried == SOLVED.replace("3 + 4 + 2 = 9", "3 + 4 = 7").replace("16 - 9 = 7", "16 - 7 = 9").replace(
        "these 7 eggs for 7 * 5 = $35", "these 9 eggs for 9 * 5 = $45"
    ).replace("{35}", "{45}")
    slip = next(slip for slip in slips if slip.text == carried)
    assert (slip.step, carried[slip.start : slip.end]) == (1, "=")


def test_the_same_seed_gives_the_same_slip_and_kinds_are_drawn_alike() -> None:
    assert planted(seed=3) == planted(seed=3)
    drawn = Counter(planted(seed=seed).kind for seed in range(400))
    assert min(drawn[kind] for kind in KINDS) > 60


def test_a_slip_is_whole_although_its_first_digits_are_right() -> None:
    slips = (planted("arithmetic", seed=seed) for seed in range(60))
    slip = next(slip for slip in slips if slip.text[slip.start : slip.end] == "36")
    assert slip.departure == slip.start + 1


def test_a_number_that_only_loses_its_end_is_not_where_a_slip_shows() -> None:
    # 70 → 7 parts from the correct text behind the 7, where no wrong number stands.
    assert inject._first_wrong_token("70 eggs", "7 eggs") is None
    place = inject._first_wrong_token("7 eggs", "70 eggs")
    assert place is not None
    assert (place.start, place.end) == (0, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3 + 4 = 7, so \\boxed{7}", inject.NOT_STEPS),
        ("### Step 1: Add\n3 + 4 = 7", inject.NOT_STEPS),
        ("### Step 1: Add\n3 + 4 = <<3+4=7>>7\n\n### Final Answer:\n\\boxed{7}", inject.ANNOTATED),
        ("### Step 1: Add\n3 + 4 = 8\n\n### Final Answer:\n\\boxed{7}", inject.NOT_TRUE),
        ("### Step 1: Think\nIt is seven.\n\n### Final Answer:\n\\boxed{7}", inject.NO_PLACE),
        # The last equation's result is not the answer's: nothing is carried there.
        ("### Step 1: Add\n3 + 4 = 7\n\n### Final Answer:\n\\boxed{9}", inject.NO_PLACE),
    ],
)
def test_what_cannot_be_planted_says_why(text: str, reason: str) -> None:
    with pytest.raises(NotInjectable, match=reason):
        planted(text=text)


def test_a_value_that_may_also_be_something_else_is_not_changed() -> None:
    # The 7 of step 2 may be the problem's days or the result: no slip may touch it.
    problem = Problem(id="p", statement="She has 3 red and 4 blue pens. How many are sold in 7 days?", answer="49")
    text = """### Step 1: Pens
3 + 4 = 7 pens

### Step 2: Sold
7 * 7 = 49

### Final Answer:
\\boxed{49}"""
    for seed in range(20):
        assert planted(seed=seed, problem=problem, text=text).step == 2


def test_a_value_that_is_computed_twice_is_not_mistaken_for_the_other() -> None:
    # Both results are 12. With a term less the first is 8 and the second 18: the 12 in between would be neither.
    problem = Problem(id="p", statement="6 gifts, 4 gifts, 2 gifts and 144 inches of ribbon.", answer="12")
    text = """### Step 1: Gifts
6+4+2 = 12 gifts

### Step 2: Ribbon for each
144 inches are for 12 gifts, so 144/12 = 12 inches.

### Final Answer:
\\boxed{12}"""
    with pytest.raises(NotInjectable, match=inject.NO_PLACE):
        planted("dropped term", problem=problem, text=text)


@pytest.mark.skipif(not GSM8K.exists(), reason="needs the GSM8K model solutions")
def test_most_right_solutions_of_gsm8k_can_be_planted() -> None:
    right = [s for s, _ in zip(sources.model_solutions(GSM8K), range(400), strict=False) if s.correct]
    slips = []
    for solution in right:
        try:
            slip = inject_error(solution.problem, solution.text, rollout_id=solution.id, seed=1)
        except NotInjectable:
            continue
        keeps_its_promises(slip, solution.problem)
        slips.append(slip)
    assert len(slips) >= 0.8 * len(right)
    assert {slip.kind for slip in slips} == set(KINDS)
