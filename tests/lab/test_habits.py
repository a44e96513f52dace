"""Two kinds of failure told apart, with intervals over problems."""

from stepalign.lab.habits import HABITS, habits, shown
from stepalign.records import Problem, Rollout

RIGHT = "### Step 1: Add 1 and 2\n1 + 2 = 3\n\n### Step 2: Add 3 and 3\n3 + 3 = 6\n\n### Final Answer:\n\\boxed{6}"
MENDED = RIGHT.replace("1 + 2 = 3\n", "1 + 2 = 4\nWait: 1 + 2 = 3\n")
SLIPPED = RIGHT.replace("3 + 3 = 6", "3 + 3 = 7")
ASTRAY = RIGHT.replace("Add 1 and 2\n1 + 2 = 3", "Add 2 and 2\n2 + 2 = 4")


def attempt(name: str, problem: str, text: str) -> Rollout:
    return Rollout(id=name, problem_id=problem, completion_ids=(0,), text=text, token_starts=(0,), finish="stop")


def test_wrong_numbers_slips_and_mends_are_counted_apart() -> None:
    problems = {name: Problem(id=name, statement="?", answer="6", meta={"terms": [1, 2, 3]}) for name in "ab"}
    attempts = [
        attempt("1", "a", RIGHT),
        attempt("2", "a", MENDED),
        attempt("3", "b", SLIPPED),
        attempt("4", "b", ASTRAY),
    ]
    found = habits(attempts, problems, resamples=500, seed=0)
    assert {name: (found[name].value, found[name].n) for name in HABITS} == {
        "on the way": (0.75, 4),
        "slipped": (0.25, 4),
        "left": (0.125, 4),
    }
    assert (found["on the way"].low, found["on the way"].high) == (0.5, 1.0), "problems are drawn, not attempts"
    assert shown(found["on the way"]) == "75% [50%, 100%]"
