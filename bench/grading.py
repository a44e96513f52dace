"""Rollouts graded a second, what hanging answers cost, and the answers of GSM8K in ten spellings.

Grades 1,000 ordinary answers, all different (whole numbers, fractions, decimals, roots, polynomials; half of
them right), with 1 and with 2 workers that are up, then the same with 5 hanging ones among them. With a folder of
GSM8K, each of its answers is compared with itself in ten spellings and with ten near misses instead.

    python bench/grading.py
    python bench/grading.py ../shared/data/gsm8k
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

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


SPELLINGS: dict[str, Callable[[int], str]] = {
    "2 decimals": lambda n: f"{n}.00",
    "grouped": lambda n: f"{n:,}",
    "grouped in LaTeX": lambda n: f"{n:,}".replace(",", "{,}"),
    "grouped by thin spaces": lambda n: f"{n:,}".replace(",", r"\,"),
    "dollars": lambda n: rf"\${n}",
    "unit": lambda n: rf"{n}\text{{ apples}}",
    "named": lambda n: f"x = {n}",
    "bold": lambda n: rf"\textbf{{{n}}}",
    "fraction": lambda n: rf"\frac{{{2 * n}}}{{2}}",
    "full width": lambda n: f"{n}".translate({ord(str(digit)): chr(0xFF10 + digit) for digit in range(10)}),
}
MISSES: dict[str, Callable[[int], str]] = {
    "one more": lambda n: f"{n + 1}",
    "ten times": lambda n: f"{n or 1}0",
    "spaced digits": lambda n: " ".join(f"{n}5"),
    "negative": lambda n: f"-{n + (n == 0)}",
    "near": lambda n: f"{n}.0000001",
    "equation": lambda n: f"x + 1 = {n}",
    "false": lambda n: f"{n + 1} = {n}",
    "denied": lambda n: rf"\text{{not }} {n}",
    "arrow": lambda n: rf"{n + 1} \to {n}",
    "pair": lambda n: f"({n}, {n + 1})",
}


def gsm8k(folder: Path) -> None:
    """Compare every whole answer with its spellings and its near misses."""
    rows = [
        json.loads(line) for name in ("train", "test") for line in (folder / f"{name}.jsonl").read_text().splitlines()
    ]
    references = [row["answer"].rpartition("####")[2].strip() for row in rows]
    numbers = [int(reference.replace(",", "")) for reference in references]
    with MathGrader(num_workers=2, timeout_s=10) as grader:
        for forms, wanted in ((SPELLINGS, True), (MISSES, False)):
            began, wrong = time.perf_counter(), Counter[str]()
            for name, spell in forms.items():
                verdicts = grader.same([(ref, spell(n)) for ref, n in zip(references, numbers, strict=True)])
                wrong[name] = sum(verdict != wanted for verdict in verdicts)
            seconds = time.perf_counter() - began
            print(f"{len(numbers)} answers, {len(forms)} {'spellings' if wanted else 'near misses'}: {seconds:.0f} s")
            print(f"  wrong verdicts: {wrong.total()} {dict(+wrong)}")


def rollout(name: str, problem_id: str, answer: str) -> Rollout:
    text = f"### Step 1: Work it out\nIt follows.\n---\n### Final Answer:\n$$\n\\boxed{{{answer}}}\n$$"
    return Rollout(id=name, problem_id=problem_id, completion_ids=(1,), text=text, token_starts=(0,), finish="stop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gsm8k", type=Path, nargs="?", help="a folder with GSM8K's train.jsonl and test.jsonl")
    if (folder := parser.parse_args().gsm8k) is not None:
        return gsm8k(folder)
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
