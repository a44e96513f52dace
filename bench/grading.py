"""Rollouts graded a second, and what hanging answers cost.

Grades 1,000 ordinary answers, all different (whole numbers, fractions, decimals, roots, polynomials; half of
them right), with 1 and with 2 workers that are up, then the same with 5 hanging ones among them.

    python bench/grading.py
"""

import time
from fractions import Fraction

from stepalign.records import Problem, Rollout
from stepalign.rewards.math import MathGrader

COUNT = 1000
HANGING = 5
TIMEOUT_S = 2.0


def ordinary(n: int) -> tuple[str, str]:
    """The n-th reference and an answer to it, equal but written otherwise if n is even."""
    k = 2 + n // 5
    references = [f"{1000 + k}", f"{k}/7", f"{k}.5", rf"{k}\sqrt{{3}}", f"x^2 + {2 * k}x + {k * k}"]
    right = [
        rf"{1000 + k}\text{{ dollars}}",
        rf"\frac{{{Fraction(k, 7).numerator}}}{{{Fraction(k, 7).denominator}}}",
        rf"\frac{{{2 * k + 1}}}{{2}}",
        rf"\sqrt{{{3 * k * k}}}",
        f"(x + {k})^2",
    ]
    wrong = [f"{1001 + k}", f"{k}/8", f"{k}.51", rf"{k}\sqrt{{2}}", f"(x + {k})^3"]
    return references[n % 5], (right if n % 2 == 0 else wrong)[n % 5]


def rollout(name: str, problem_id: str, answer: str) -> Rollout:
    text = f"### Step 1: Work it out\nIt follows.\n---\n### Final Answer:\n$$\n\\boxed{{{answer}}}\n$$"
    return Rollout(id=name, problem_id=problem_id, completion_ids=(1,), text=text, token_starts=(0,), finish="stop")


def main() -> None:
    pairs = [ordinary(n) for n in range(COUNT)]
    problems = {str(n): Problem(id=str(n), statement="?", answer=ref) for n, (ref, _) in enumerate(pairs)}
    rollouts = [rollout(str(n), str(n), answer) for n, (_, answer) in enumerate(pairs)]
    hanging = [rollout(f"hanging {n}", str(n), f"{n}+9^{{9^{{9^9}}}}") for n in range(HANGING)]
    mixed = list(rollouts)
    for n, one in enumerate(hanging):
        mixed.insert((2 * n + 1) * COUNT // (2 * HANGING), one)

    for workers in (1, 2):
        start, plain, graded = timed(workers, rollouts, problems)
        correct = sum(one.correct for one in graded)
        _, with_hanging, graded = timed(workers, mixed, problems)
        late = sum(one.grade is not None and one.grade.outcome == "timeout" for one in graded)
        extra = with_hanging - plain
        print(f"{workers} worker(s): up in {start:.2f} s")
        print(f"  {COUNT / plain:.0f} rollouts/s, {correct} of {COUNT} correct")
        print(f"  {late} time-outs of {TIMEOUT_S} s cost {extra:.1f} s, {extra / HANGING:.2f} s each")


def timed(workers: int, rollouts: list[Rollout], problems: dict[str, Problem]) -> tuple[float, float, list[Rollout]]:
    """The seconds until new workers have answered, the seconds that grading took, and the graded rollouts."""
    with MathGrader(num_workers=workers, timeout_s=TIMEOUT_S) as grader:
        began = time.perf_counter()
        grader.same([("1", str(n)) for n in range(2 * workers)])
        up = time.perf_counter()
        graded = grader.grade(rollouts, problems)
        return up - began, time.perf_counter() - up, graded


if __name__ == "__main__":
    main()
