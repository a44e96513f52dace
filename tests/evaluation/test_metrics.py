import math
import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation, Metric, compare, majority, pass_at, pool, score
from stepalign.io import read_json, to_json, write_atomically
from stepalign.records import Grade, Rollout

FORMATTED = "### Step 1: Add\n2 + 2 = 4\n\n### Final Answer:\n\\boxed{4}\n"


def rollout(problem: str, sample: int, answer: str, *, truth: str = "4", tokens: int = 5, **fields: object) -> Rollout:
    outcome = "correct" if answer == truth else "wrong" if answer else "missing"
    values = {
        "id": f"{problem}-{sample}",
        "problem_id": problem,
        "sample": sample,
        "completion_ids": (1,) * tokens,
        "token_starts": (0,) * tokens,
        "text": FORMATTED,
        "finish": "stop",
        "grade": Grade(correct=answer == truth, outcome=outcome, final_answer=answer),
    }
    return Rollout(**(values | fields))  # type: ignore[arg-type]


def attempts(problem: str, answers: str) -> list[Rollout]:
    """One sample a character; a space is a missing answer."""
    return [rollout(problem, sample, answer.strip()) for sample, answer in enumerate(answers)]


def evaluate(rollouts: list[Rollout], n: int) -> Evaluation:
    return score(rollouts, n=n, resamples=2000, seed=0, step=3)


def by_problem(rollouts: list[Rollout], n: int, metric: Metric) -> tuple[float, ...]:
    return evaluate(rollouts, n).by_problem[metric]


def test_avg_maj_and_pass_of_a_case_done_by_hand() -> None:
    # p1: 3 of 4 right. p2: 1 of 4 right, outvoted. p3: never right.
    evaluation = evaluate(attempts("p1", "4445") + attempts("p2", "4777") + attempts("p3", "6677"), n=4)
    assert evaluation.problem_ids == ("p1", "p2", "p3")
    assert evaluation.by_problem["avg"] == (0.75, 0.25, 0.0)
    assert evaluation.by_problem["maj"] == (1.0, 0.0, 0.0)
    assert evaluation.by_problem["pass"] == (1.0, 1.0, 0.0)
    assert evaluation.measures["avg"].value == pytest.approx(1 / 3)
    assert evaluation.measures["pass"].value == pytest.approx(2 / 3)
    assert evaluation.ties == 1
    assert (evaluation.step, evaluation.n) == (3, 4)


def test_lines_are_a_metric_of_programs_alone() -> None:
    def program(problem: str, sample: int, text: str) -> Rollout:
        return rollout(problem, sample, "4", text=text, trace_format="code")

    long = "A sum:\n```python\ndef f():\n\n    x = 1  # one\n    return x\n```\nIt works."
    programs = [program("p", 0, long), program("p", 1, "```python\nx = 1\n```"), program("q", 0, "no program")]
    evaluation = evaluate(programs, n=1)
    assert evaluation.by_problem["lines"] == (2.0, 0.0)
    assert list(evaluation.measures) == ["avg", "maj", "pass", "length", "lines", "formatted", "truncated"]
    solutions = evaluate(attempts("p", "4") + attempts("q", "4"), n=1)
    assert "lines" not in solutions.measures
    assert "lines" not in evaluate([*programs, rollout("r", 0, "4")], n=1).measures
    # An evaluation from before there were lines.
    assert set(compare(solutions, evaluation, resamples=50, seed=0)) == set(solutions.measures)
    assert set(pool([solutions, evaluation]).measures) == set(solutions.measures)
    with pytest.raises(ValueError, match="no measure of lines"):
        replace(evaluation, by_problem=solutions.by_problem)


@pytest.mark.parametrize(
    ("answers", "share", "tied"),
    [
        ("4455", 1 / 2, True),  # two answers tie, one is right
        ("445566", 1 / 3, True),  # three tie
        ("5566", 0.0, True),  # a tie among wrong answers is a tie too
        ("44 5", 1.0, False),
        ("4   ", 1.0, False),  # one vote is a majority: missing answers do not vote
        ("    ", 0.0, False),  # nobody votes
        ("4555", 0.0, False),
    ],
)
def test_a_tie_counts_as_a_random_choice_among_the_tied_answers(answers: str, share: float, tied: bool) -> None:
    grades = [attempt.grade for attempt in attempts("p", answers) if attempt.grade]
    assert majority(grades) == (pytest.approx(share), tied)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 1, 2), (6, 2, 3), (5, 0, 2), (5, 5, 1), (5, 4, 3)])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample(samples: int, correct: int, k: int) -> None:
    subsets = list(combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at(k, samples=samples, correct=correct) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_samples_beyond_n_sharpen_pass_and_avg_but_do_not_vote() -> None:
    rollouts = attempts("p", "554444")  # m = 6, c = 4, n = 2
    assert by_problem(rollouts, 2, "pass") == (pytest.approx(1 - math.comb(2, 2) / math.comb(6, 2)),)
    assert by_problem(rollouts, 2, "avg") == (pytest.approx(4 / 6),)
    assert by_problem(rollouts, 2, "maj") == (0.0,)


def test_length_format_and_truncation_are_means_over_samples() -> None:
    rollouts = [
        rollout("p", 0, "4", tokens=10),
        rollout("p", 1, "4", tokens=20, text="It is \\boxed{4}."),
        rollout("p", 2, "", tokens=60, finish="length", text="### Step 1: Add\n2 +"),
        rollout("p", 3, "4", tokens=30),
    ]
    assert by_problem(rollouts, 4, "length") == (30.0,)
    assert by_problem(rollouts, 4, "formatted") == (0.5,)
    assert by_problem(rollouts, 4, "truncated") == (0.25,)


def test_every_problem_weighs_the_same_however_many_samples_it_has() -> None:
    rollouts = attempts("p", "44") + attempts("q", "55555555")
    assert evaluate(rollouts, n=2).measures["avg"].value == 0.5


def test_the_order_of_rollouts_does_not_matter() -> None:
    rollouts = [attempt for i in range(9) for attempt in attempts(f"p{i}", "4556"[i % 3 :] + "4" * (i % 3))]
    shuffled = random.Random(1).sample(rollouts, len(rollouts))
    assert evaluate(shuffled, n=3) == evaluate(rollouts, n=3)


def test_the_intervals_come_from_the_seed_alone() -> None:
    rollouts = [attempt for i in range(20) for attempt in attempts(f"p{i}", "4445" if i % 3 else "5555")]
    first, again, other = (score(rollouts, n=4, resamples=200, seed=seed, step=0).measures["avg"] for seed in (0, 0, 1))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert first.value == other.value


def test_the_interval_is_as_wide_as_statistics_says() -> None:
    """At 33 % of 30 × 12: 2.5 points if samples are independent, 8.5 if a problem's samples agree."""
    draw = random.Random(0)
    independent = [
        rollout(f"p{i}", sample, "4" if draw.random() < 1 / 3 else "5") for i in range(30) for sample in range(12)
    ]
    agreeing = [rollout(f"p{i}", sample, "4" if i < 10 else "5") for i in range(30) for sample in range(12)]
    widths = [(m.high - m.low) / (2 * 1.96) for m in (evaluate(r, 12).measures["avg"] for r in (independent, agreeing))]
    assert widths[0] == pytest.approx(0.025, rel=0.25)
    assert widths[1] == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 30), rel=0.05)  # 0.086


def test_an_interval_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    """40 problems whose difficulty is drawn anew in each of 200 trials."""
    draw = random.Random(2)
    covered = 0
    for _ in range(200):
        rollouts = []
        for i in range(40):
            chance = draw.random()
            rollouts += [rollout(f"p{i}", s, "4" if draw.random() < chance else "5") for s in range(2)]
        measure = score(rollouts, n=2, resamples=300, seed=0, step=0).measures["avg"]
        covered += measure.low <= 0.5 <= measure.high
    assert 0.89 <= covered / 200 <= 0.99


def test_table_1_of_the_paper_is_made_of_whole_problems_and_whole_samples() -> None:
    """StepAlignFB's row, 35.83 / 56.67 / 90.00: 17 problems with 7 of 12 right, 10 with 1, 3 with none."""
    answers = ["4" * 7 + "5" * 5] * 17 + ["4" + "5" * 11] * 10 + ["5" * 12] * 3
    rollouts = [attempt for i, line in enumerate(answers) for attempt in attempts(f"p{i:02}", line)]
    measures = evaluate(rollouts, n=12).measures
    assert [f"{100 * measures[m].value:.2f}" for m in ("avg", "maj", "pass")] == ["35.83", "56.67", "90.00"]


@pytest.mark.parametrize(
    ("percent", "denominator"),
    [(p, 30) for p in (76.67, 26.67, 86.67, 43.33, 90.00, 56.67)] + [(p, 360) for p in (19.72, 30.56, 35.83)],
)
def test_the_recovered_values_of_table_1_are_fractions_of_30_and_360(percent: float, denominator: int) -> None:
    numerator = round(percent / 100 * denominator)
    assert f"{100 * numerator / denominator:.2f}" == f"{percent:.2f}"


def test_a_problem_with_too_few_samples_is_named() -> None:
    with pytest.raises(StepalignError, match=r"problem 'q': 3 samples, but n = 4"):
        evaluate(attempts("p", "4444") + attempts("q", "444"), n=4)


def test_an_ungraded_a_repeated_and_no_rollout_are_errors() -> None:
    with pytest.raises(StepalignError, match="'p-0': not graded"):
        evaluate([rollout("p", 0, "4", grade=None)], n=1)
    with pytest.raises(StepalignError, match="'p-0': occurs twice"):
        evaluate([rollout("p", 0, "4"), rollout("p", 0, "4")], n=1)
    with pytest.raises(StepalignError, match="no rollouts"):
        evaluate([], n=1)


def test_an_evaluation_survives_its_file(tmp_path: Path) -> None:
    evaluation = evaluate(attempts("p", "4455") + attempts("q", "5674"), n=4)
    write_atomically(tmp_path / "step-000003.json", to_json(evaluation))
    assert read_json(tmp_path / "step-000003.json", Evaluation) == evaluation


def test_a_broken_evaluation_file_is_named_with_its_fault(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"nothing\.json: No such file"):
        read_json(tmp_path / "nothing.json", Evaluation)
    path = tmp_path / "half.json"
    path.write_text('{"step": 3, "n"')
    with pytest.raises(StepalignError, match=r"half\.json: not a valid Evaluation"):
        read_json(path, Evaluation)
    evaluation = evaluate(attempts("p", "4455"), n=4)
    write_atomically(path, to_json(evaluation))
    path.write_text(path.read_text().replace('"ties":1', '"ties":-1'))
    with pytest.raises(StepalignError, match=r"ties: .*greater than or equal to 0"):
        read_json(path, Evaluation)
