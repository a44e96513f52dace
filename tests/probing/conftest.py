"""A planted set for the tiny model: real slips in short written solutions; and probes with made-up credit."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from stepalign import config
from stepalign.error_injection.sets import plant_set
from stepalign.probing.folder import Probe
from stepalign.probing.measures import measure
from stepalign.records import Credit, Critique, Grade, Mark, Problem, Rollout, Verdict


@pytest.fixture(scope="session")
def planted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: four correct solutions, each also with a slip. To be read only."""
    folder = tmp_path_factory.mktemp("planted")
    rows = [
        {
            "question": f"Two boxes of {n} pens and {n + 1} more?",
            "ground_truth": f"2*{n} = {2 * n}\n{2 * n}+{n + 1} = {3 * n + 1}\nA: {3 * n + 1}",
            "model": {
                "is_correct": True,
                "solution": f"2*{n} = {2 * n} pens\n{2 * n}+{n + 1} = {3 * n + 1}\nA: {3 * n + 1}",
            },
        }
        for n in (17, 30, 52, 71)
    ]
    file = folder / "solutions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plant_set(str(file), folder / "set", model=config.ModelConfig(name_or_path=str(tiny_llama)))
    return folder / "set"


BuildProbe = Callable[..., Probe]

_DESIGNS = {
    "stepalign": (0.8, -2.0, 0.6),
    "refsol": (0.1, -0.5, 0.3),
    "quoted": (0.8, 3.0, 0.7),
    "verdicts": (0.0, 0.0, 0.0),
}
"""Mean credit before, at and after the error: the paper's four regimes."""


@pytest.fixture(scope="session")
def build_probe() -> BuildProbe:
    """A probe of solutions with real text and made-up credit. `texts` replaces the solutions."""

    def build(
        rollouts: int = 4,
        *,
        tokens: int = 0,
        contexts: int = 2,
        top: int = 5,
        texts: tuple[str, ...] = (),
        seed: int = 0,
    ) -> Probe:
        draw = random.Random(seed)
        vocabulary: dict[str, int] = {}
        problems, made, critic_results, marks, credits = [], [], [], [], []
        designs = dict(list(_DESIGNS.items())[:contexts])
        for number in range(rollouts):
            problem = Problem(
                id=f"pens-{number // 2:03}",
                statement=f"Two boxes of {number // 2 + 12} pens and 3 more?",
                answer=str(2 * (number // 2 + 12) + 3),
                solution="Double it and add.",
            )
            wrong = number % 2 == 1
            text = (
                texts[number] if number < len(texts) else _solution(number // 2 + 12, slip=7 * wrong, at_least=tokens)
            )
            pieces = re.findall(r" ?[A-Za-z]+|\\s|.", text, re.DOTALL)[: tokens - 1 if tokens else None]
            text = "".join(pieces)
            ids = [vocabulary.setdefault(piece, len(vocabulary)) for piece in (*pieces, "<eos>")]
            starts = [0]
            for piece in pieces:
                starts.append(starts[-1] + len(piece))
            rollout = Rollout(
                id=f"pens/{number:03}",
                problem_id=problem.id,
                completion_ids=tuple(ids),
                text=text,
                token_starts=tuple(starts),
                finish="stop",
                grade=Grade(correct=not wrong, outcome="wrong" if wrong else "correct"),
            )
            error = (len(pieces) // 2, len(pieces) // 2 + 1)
            if wrong:
                span = starts[error[0]], starts[error[1]]
                marks.append(
                    Mark(rollout_id=rollout.id, step=1, start=span[0], end=span[1], departure=span[0], source="planted")
                )
            critic_results.append(
                Critique(
                    rollout_id=rollout.id,
                    critic="program",
                    case="D" if wrong else "A",
                    verdicts=(Verdict(step=1, correct=not wrong),),
                    correct_part="",
                    text=f"### Summary\nStep 1: {'Inc' if wrong else 'C'}orrect.\n\n{text}",
                )
            )
            student = [-draw.expovariate(2) for _ in ids]
            student_top = tuple(
                _top(draw, token, log, len(vocabulary), top) for token, log in zip(ids, student, strict=True)
            )
            for context, means in designs.items():
                teacher = [
                    min(
                        -0.0001,
                        log + draw.gauss(means[0 if not wrong or at < error[0] else 1 if at == error[0] else 2], 0.6),
                    )
                    for at, log in enumerate(student)
                ]
                credits.append(
                    Credit(
                        rollout_id=rollout.id,
                        context=context,
                        prompt=f"{problem.statement}\n\nHere is what {context} shows:\n{text}",
                        student=tuple(student),
                        teacher=tuple(teacher),
                        student_top=student_top if top else (),
                        teacher_top=tuple(
                            _top(draw, token, log, len(vocabulary), top)
                            for token, log in zip(ids, teacher, strict=True)
                        )
                        if top
                        else (),
                    )
                )
            problems += [problem] * (problem.id not in {one.id for one in problems})
            made.append(rollout)
        return Probe(
            problems=tuple(problems),
            rollouts=tuple(made),
            critic_results=tuple(critic_results),
            marks=tuple(marks),
            credits=tuple(credits),
            tokens={token: piece for piece, token in vocabulary.items()},
            measures=measure(made, marks, credits, seed=0, resamples=50),
            manifest={"created": "2025-01-31T12:00:00+00:00", "asked": {"model": {"name_or_path": "models/tiny"}}},
        )

    return build


def _solution(pens: int, *, slip: int, at_least: int) -> str:
    steps = [f"### Step 1: Count\n$2 \\cdot {pens} = {2 * pens + slip}$ pens cost $5 and $6.\n\n"]
    while 3 * len(steps) * 10 < at_least:
        steps.append(
            f"### Step {len(steps) + 1}: Again\nWe have $\\frac{{{pens}}}{{2}}$ and {pens} + {len(steps)} of them.\n\n"
        )
    return "".join(steps) + f"### Final Answer:\n\\boxed{{{2 * pens + 3 + slip}}}"


def _top(draw: random.Random, token: int, log: float, vocabulary: int, size: int) -> tuple[tuple[int, float], ...]:
    others = [(draw.randrange(vocabulary), log - draw.expovariate(1)) for _ in range(size - 1)]
    return tuple(sorted([(token, log), *others], key=lambda entry: -entry[1]))
