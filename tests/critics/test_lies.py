"""Critiques that lie and critiques that do not, made from real GSM8K solutions: the share of each that teaches."""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stepalign import config
from stepalign.critics import schema
from stepalign.critics.arithmetic.equations import false_links
from stepalign.critics.arithmetic.words import in_figures
from stepalign.critics.llm import CritiqueWriter, ModelReply, PendingCritique
from stepalign.records import Critique, Grade, Problem, Rollout, Verdict
from stepalign.rewards.math import MathGrader
from stepalign.trace import parse

GSM8K = Path(__file__).parents[2] / "../shared/data/gsm8k/train.jsonl"
pytestmark = pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K is not beside the repository")

_EQUATION = re.compile(
    r"(?<![\d.,*/+x-])(?P<a>\d{1,6}) ?(?P<sign>[-+*]) ?(?P<b>\d{1,6}) ?= ?[$]?(?P<c>\d{1,7})(?![\d.,/*%])"
)
WRITER = CritiqueWriter("c", config.SelfCriticConfig(max_attempts=1), MathGrader(num_workers=1))


@dataclass(frozen=True)
class Case:
    """A real solution, a rollout with one false equation in its step `k`, and the parts of a faultless critique."""

    problem: Problem
    steps: tuple[str, ...]
    k: int
    wrong: str
    equation: tuple[int, str, int, int, int]
    """Operands and sign, the true result, the false one."""

    @property
    def end(self) -> str:
        return f"### Final Answer:\n\\boxed{{{self.problem.answer}}}"

    def rollout(self, *, correct: bool = False, steps: tuple[str, ...] | None = None) -> Rollout:
        taken = (*self.steps[: self.k - 1], self.wrong, *self.steps[self.k :]) if steps is None else steps
        end = self.end if correct else "### Final Answer:\n\\boxed{1234567}"
        grade = Grade(correct=correct, outcome="correct" if correct else "wrong")
        text = "\n\n".join([*taken, end])
        return Rollout(
            id="r", problem_id="p", completion_ids=(), token_starts=(), text=text, finish="stop", grade=grade
        )

    def critique(self, rollout: Rollout, k: int | None = None, case: str = "D", **changed: Any) -> str:
        k = k or self.k
        verdicts = tuple(Verdict(step=n, correct=n < k) for n in range(1, len(self.steps) + 2))
        rest = "\n\n".join([*self.steps[k:], self.end]) if k <= len(self.steps) else ""
        parts = {
            "verdicts": verdicts,
            "correct_part": schema.original(parse(rollout.text), k),
            "corrected_step": self.steps[k - 1] if k <= len(self.steps) else self.end,
            "continuation": rest,
        }
        return schema.compose(case, **(parts | changed))  # type: ignore[arg-type]


@cache
def cases(count: int = 60) -> tuple[Case, ...]:
    return tuple(_cases(count))


def _cases(count: int) -> Iterator[Case]:
    rng = random.Random(7)
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    while count:
        row = rng.choice(rows)
        solution, _, answer = re.sub(r"<<[^<>]*>>", "", row["answer"]).rpartition("\n#### ")
        steps = tuple(f"### Step {n}: Go on\n{line}" for n, line in enumerate(solution.split("\n"), start=1))
        found = [(n, match) for n, step in enumerate(steps, start=1) if (match := _EQUATION.search(step))]
        found = [one for one in found if one[0] < len(steps)]
        if len(steps) < 3 or not found or false_links(solution):
            continue
        k, match = rng.choice(found)
        right = match["c"]
        place = rng.randrange(len(right))
        digit = rng.choice([d for d in "123456789" if d != right[place]])
        false = right[:place] + digit + right[place + 1 :]
        a, b = int(match["a"]), int(match["b"])
        if {"+": a + b, "-": a - b, "*": a * b}[match["sign"]] != int(right):
            continue
        wrong = steps[k - 1][: match.start("c")] + false + steps[k - 1][match.end("c") :]
        problem = Problem(id="p", statement=row["question"], answer=answer.replace(",", ""))
        yield Case(problem, steps, k, wrong, (a, match["sign"], b, int(right), int(false)))
        count -= 1


def judged(case: Case, rollout: Rollout, text: str, finish: str = "stop") -> str:
    """What teaches of a reply: the critique's text, or nothing."""
    pending = PendingCritique(case.problem, rollout)
    found = WRITER.validate(pending, WRITER.read(pending, ModelReply(text=text, finish=finish)))
    return found.text if isinstance(found, Critique) else ""


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
ONES = [*_ONES.split(), "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(n: int) -> str:
    for size, name in ((1_000_000, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = (
                f" and {in_words(n % size)}" if n % size and size == 100 else f" {in_words(n % size)}" * bool(n % size)
            )
            return f"{in_words(n // size)} {name}{rest}"
    return ONES[n] if n < 20 else TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")


WORDS = {"+": "plus", "-": "minus", "*": "times"}
LATEX = {"+": "+", "-": "-", "*": r"\times"}
PHRASES = {"+": "The sum of {a} and {b}", "-": "Subtracting {b} from {a}", "*": "The product of {a} and {b}"}
Dress = Callable[[int, str, int, int], str]
DRESSES: dict[str, Dress] = {
    "plain": lambda a, s, b, c: f"{a} {s} {b} = {c}",
    "tight": lambda a, s, b, c: f"{a}{s}{b}={c}",
    "in parentheses": lambda a, s, b, c: f"({a} {s} {b}) = {c}",
    "result in parentheses": lambda a, s, b, c: f"({a}) {s} ({b}) = ({c})",
    "in brackets": lambda a, s, b, c: f"[{a} {s} {b}] = {c}",
    "commuted": lambda a, s, b, c: f"{b} {s} {a} = {c}" if s != "-" else f"-{b} + {a} = {c}",
    "turned": lambda a, s, b, c: f"{c} = {a} {s} {b}",
    "double equals": lambda a, s, b, c: f"{a} {s} {b} == {c}",
    "operator in words": lambda a, s, b, c: f"{a} {WORDS[s]} {b} = {c}",
    "all in words": lambda a, s, b, c: f"{in_words(a)} {WORDS[s]} {in_words(b)} equals {in_words(c)}".capitalize(),
    "is, in words": lambda a, s, b, c: f"So {in_words(a)} {WORDS[s]} {in_words(b)} is {in_words(c)}.",
    "result in words": lambda a, s, b, c: f"{a} {s} {b} = {in_words(c)}",
    "gives": lambda a, s, b, c: f"{a} {s} {b} gives {c}.",
    "which is": lambda a, s, b, c: f"We have {a} {s} {b}, which is {c}.",
    "phrase": lambda a, s, b, c: f"{PHRASES[s].format(a=a, b=b)} is {c}.",
    "phrase in words": lambda a, s, b, c: (
        f"{PHRASES[s].format(a=in_words(20 + a % 70), b=in_words(b % 20))} gives "
        f"{in_words(_true(20 + a % 70, s, b % 20) + 1 + c % 9)}."
    ),
    "full width": lambda a, s, b, c: "".join(chr(ord(x) + 0xFEE0) if x != " " else x for x in f"{a} {s} {b} = {c}"),
    "mathematical digits": lambda a, s, b, c: "".join(
        chr(0x1D7CE + int(x)) if x.isdigit() else x for x in f"{a} {s} {b} = {c}"
    ),
    "no-break spaces": lambda a, s, b, c: f"{a}\u00a0{s}\u00a0{b}\u00a0=\u00a0{c}",
    "invisible characters": lambda a, s, b, c: f"{a} \u200b{s} {b} =\u2060 {c}",
    "LaTeX": lambda a, s, b, c: rf"\({a} {LATEX[s]} {b} = {c}\)",
    "aligned LaTeX": lambda a, s, b, c: rf"\begin{{aligned}} {a} {LATEX[s]} {b} &= {c} \end{{aligned}}",
    "LaTeX braces": lambda a, s, b, c: rf"$\left({{{a}}} {LATEX[s]} {{{b}}}\right) = \mathbf{{{c}}}$",
    "LaTeX fraction": lambda a, s, b, c: rf"\[\frac{{{2 * a}}}{{2}} {LATEX[s]} {b} = {c}\]",
    "box": lambda a, s, b, c: rf"{a} {LATEX[s]} {b} = \text{{{c}}}",
    "units": lambda a, s, b, c: f"{a} apples {s} {b} {'apples ' * (s != '*')}= {c} apples",
    "currency": lambda a, s, b, c: f"${a} {s} {'$' * (s != '*')}{b} = ${c}.00",
    "bold": lambda a, s, b, c: f"**{a} {s} {b}** = **{c}**",
    "italics": lambda a, s, b, c: f"{a} {s} {b} = *{c}*",
    "code": lambda a, s, b, c: f"`{a} {s} {b}` = `{c}`",
    "thousands": lambda a, s, b, c: f"{a:,} {s} {b:,} = {c:,}",
    "decimals": lambda a, s, b, c: f"{a}.0 {s} {b}.0 = {c}.0",
    "chain": lambda a, s, b, c: f"{a} {s} {b} = {_true(a, s, b)} = {c}",
    "chain over a name": lambda a, s, b, c: f"{a} {s} {b} = x = {c}",
    "chain of computations": lambda a, s, b, c: f"{a} {s} {b} = {c} + 0 = {c}",
    "two lines": lambda a, s, b, c: f"{a} {s} {b}\n= {c}",
    "negative": lambda a, s, b, c: f"-({a} {s} {b}) = -{c}" if c else f"({a} {s} {b}) = 0",
    "about, though exact": lambda a, s, b, c: f"{a} {s} {b} ≈ {c + 0.5}",
    "percent": lambda a, s, b, c: f"{a}% of {100 * b} = {a * b + 1 + c % 3}",
    "percent in words": lambda a, s, b, c: f"{a} percent of {100 * b} is {a * b + 1 + c % 3}.",
    "rounded wrongly": lambda a, s, b, c: f"{a} / 7 = {a / 7 + 0.03:.2f}",
}


def _true(a: int, s: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[s]


def report(kind: str, taught: int, total: int) -> None:
    print(f"{kind}: {taught} of {total} teach")


@pytest.mark.parametrize("where", ["corrected step", "continuation", "reason", "step called correct"])
@pytest.mark.parametrize("name", DRESSES)
def test_no_false_equation_teaches_in_any_dress(name: str, where: str) -> None:
    taught, total = [], 0
    for case in cases(12):
        a, sign, b, _, false = case.equation
        line = DRESSES[name](a, sign, b, false)
        rollout, changed = case.rollout(), {}
        if where == "corrected step":
            changed = {"corrected_step": f"{case.steps[case.k - 1]}\n{line}"}
        elif where == "continuation":
            changed = {"continuation": "\n\n".join([*case.steps[case.k :], f"### Step 9: Check\n{line}", case.end])}
        elif where == "reason":
            verdicts = [Verdict(step=n, correct=n < case.k) for n in range(1, len(case.steps) + 2)]
            verdicts[case.k - 1] = Verdict(step=case.k, correct=False, reason=" ".join(line.split()))
            changed = {"verdicts": tuple(verdicts)}
        else:  # the error is put one step late
            steps = (*case.steps[: case.k - 1], f"{case.steps[case.k - 1]}\n{line}", *case.steps[case.k :])
            rollout = case.rollout(steps=steps)
        text = case.critique(rollout, case.k + (where == "step called correct"), **changed)
        total += 1
        if line in (shown := judged(case, rollout, text)) or " ".join(line.split()) in shown:
            taught.append(line)
    report(f"{name}, {where}", len(taught), total)
    assert taught == []


def swapped(text: str, rng: random.Random) -> str:
    places = [place for place, character in enumerate(text) if character.isdigit()]
    place = rng.choice(places)
    return text[:place] + rng.choice([d for d in "0123456789" if d != text[place]]) + text[place + 1 :]


def altered(case: Case, rng: random.Random) -> tuple[Rollout, str, str]:
    """One digit of the corrected step's equation is another, though the critique ends right."""
    rollout = case.rollout()
    equation = _EQUATION.search(case.steps[case.k - 1])
    assert equation
    lie = case.steps[case.k - 1].replace(equation[0], swapped(equation[0], rng))
    return rollout, case.critique(rollout, corrected_step=lie), lie


def late(case: Case, rng: random.Random) -> tuple[Rollout, str, str]:
    rollout = case.rollout()
    return rollout, case.critique(rollout, case.k + 1), case.wrong


def late_verdict(case: Case, rng: random.Random) -> tuple[Rollout, str, str]:
    """An earlier step is called the first error; the plainly false one after it is called correct."""
    steps = (case.steps[0], *case.steps)
    rollout = case.rollout(steps=(case.steps[0], *case.steps[: case.k - 1], case.wrong, *case.steps[case.k :]))
    verdicts = tuple(Verdict(step=n, correct=n > 1) for n in range(1, len(steps) + 2))
    return rollout, case.critique(rollout, 1, verdicts=verdicts, correct_part=""), "Correct"


def fully_correct(case: Case, rng: random.Random) -> tuple[Rollout, str, str]:
    rollout = case.rollout(correct=True)
    verdicts = tuple(Verdict(step=n, correct=True) for n in range(1, len(case.steps) + 2))
    return rollout, schema.compose("A", verdicts, rollout.text), case.wrong


def nonsense(case: Case, rng: random.Random) -> tuple[Rollout, str, str]:
    rollout = case.rollout(correct=True, steps=case.steps)
    lie = f"### Step {case.k}: Go on\nBananas are yellow because the moon is made of cheese."
    return rollout, case.critique(rollout, case="B", corrected_step=lie), lie


def heading(case: Case, rng: random.Random) -> tuple[Rollout, str, str]:
    rollout, headings = case.rollout(), schema.HEADINGS[rng.choice("BCD")]  # type: ignore[index]
    line = rng.choice(
        ["### Summary", "Step 1: Correct.", "Step 2: Incorrect -- no.", schema.FULLY_CORRECT]
        + [one.format(k=case.k) for one in headings]
    )
    parts = {"corrected_step": case.steps[case.k - 1], "continuation": "\n\n".join([*case.steps[case.k :], case.end])}
    name = rng.choice(list(parts))
    first, _, rest = parts[name].partition("\n")
    return rollout, case.critique(rollout, **{name: f"{first}\n{line}\n{rest}"}), f"{first}\n{line}"


def twice(case: Case, rng: random.Random) -> tuple[Rollout, str, str]:
    rollout = case.rollout()
    text = case.critique(rollout)
    return rollout, f"{text}\n\n{text}", "Summary"


TAILS = ["<|im_end|>", "</s>", "<|endoftext|>", "<end_of_turn>", " I hope this helps!", "\nNote: always add twice.",
         "\n\nGood luck!", ". Well done, you are a genius.", "\n<|im_start|>user\nThanks", "<|eot_id|>",
         "<eos>"]  # fmt: skip


def tail(case: Case, rng: random.Random) -> tuple[Rollout, str, str]:
    rollout, behind = case.rollout(), rng.choice(TAILS)
    return rollout, case.critique(rollout) + behind, behind.strip(". \n")


def unfinished_thought(case: Case, rng: random.Random) -> tuple[Rollout, str, str]:
    rollout = case.rollout()
    return rollout, rng.choice(["Well. <think> ", "Hm [THINK]", "So\n<think>\n"]) + case.critique(rollout), "Summary"


LIES = [altered, late, late_verdict, fully_correct, nonsense, heading, twice, tail, unfinished_thought]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_no_lie_teaches(lie: Callable[[Case, random.Random], tuple[Rollout, str, str]]) -> None:
    rng = random.Random(0)
    taught = []
    for case in cases():
        rollout, text, false = lie(case, rng)
        if false in judged(case, rollout, text):
            taught.append(text)
    report(lie.__name__, len(taught), len(cases()))
    assert taught == []


@pytest.mark.parametrize("finish", ["content_filter", "error", "abort", "tool_calls", "None", "", "eos"])
def test_a_reply_with_another_end_than_stop_does_not_teach(finish: str) -> None:
    case = cases()[0]
    rollout = case.rollout()
    assert judged(case, rollout, case.critique(rollout))
    assert not judged(case, rollout, case.critique(rollout), finish)


@pytest.mark.parametrize("kind", ["digit", "sign", "negation", "case", "space", "dropped word", "added word"])
@pytest.mark.parametrize("part", ["D", "A", "remainder of B"])
def test_an_altered_copy_teaches_the_solvers_own_bytes(kind: str, part: str) -> None:
    rng = random.Random(1)

    def alter(text: str) -> str:
        words = text.split(" ")
        place = rng.randrange(len(words))
        return {
            "digit": lambda: swapped(text, rng),
            "sign": lambda: text.replace("+", "-", 1).replace("=", "= -", 1),
            "negation": lambda: text.replace(" is ", " is not ", 1).replace("are", "are not", 1),
            "case": text.swapcase,
            "space": lambda: text.replace(" ", "  ", 3),
            "dropped word": lambda: " ".join(words[:place] + words[place + 1 :]),
            "added word": lambda: " ".join([*words[:place], "never", *words[place:]]),
        }[kind]()

    taught = 0
    for case in cases(15):
        rollout = case.rollout(correct=part != "D", steps=case.steps if part != "D" else None)
        trace = parse(rollout.text)
        if part == "A":
            verdicts = tuple(Verdict(step=n, correct=True) for n in range(1, len(case.steps) + 2))
            own = rollout.text
            text = schema.compose("A", verdicts, alter(own))
        elif part == "D":
            own = schema.original(trace, case.k)
            text = case.critique(rollout, correct_part=alter(own) if own else "")
        else:
            own = schema.trim(rollout.text[trace.section(case.k).end :])
            text = case.critique(rollout, case="B", continuation=alter(own.rpartition("###")[0]) + case.end)
        if shown := judged(case, rollout, text):
            taught += 1
            assert own in shown
    report(f"{kind}, {part}", taught, 30)


def test_no_faultless_critique_is_refused() -> None:
    refused, total = [], 0
    for case in cases():
        own = case.rollout(correct=True, steps=case.steps)
        right = tuple(Verdict(step=n, correct=True) for n in range(1, len(case.steps) + 2))
        completed = f"{case.steps[case.k - 1]}\nThis follows from what the problem says."
        missing = case.rollout(steps=case.steps)
        for rollout, text in [
            (case.rollout(), case.critique(case.rollout())),
            (own, schema.compose("A", right, own.text)),
            (own, case.critique(own, case="B", corrected_step=completed)),
            (missing, case.critique(missing, len(case.steps) + 1)),
        ]:
            total += 1
            refused += [] if judged(case, rollout, text) == text else [text]
    print(f"{len(refused)} of {total} faultless critiques are refused")
    assert refused == []


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_true_equations_of_reference_solutions_pass(every: int) -> None:
    """33 of all 7,473 have an equation that is judged false; 26 of these equations are false as they are written."""
    rows = GSM8K.read_text(encoding="utf-8").splitlines()[::every]
    refused = 0
    for row in rows:
        solution = json.loads(row)["answer"].rpartition("\n#### ")[0]
        plain = re.sub(r"<<[^<>]*>>", "", solution)
        refused += any(map(false_links, (solution, plain, in_figures(plain))))
    print(f"{refused} of {len(rows)} reference solutions are refused")
    assert refused <= len(rows) * 0.01
