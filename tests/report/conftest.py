"""A run's folder as the loop writes it: real records, made-up numbers."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from stepalign import config
from stepalign.evaluation.metrics import score
from stepalign.io import to_json, write_atomically, write_json, write_jsonl
from stepalign.records import Critique, CritiqueFailure, Grade, Problem, Rollout, Verdict

BuildRun = Callable[..., Path]

_STATEMENT = "Mia has {a} marbles and buys {b} bags of {c}. She gives away {d}. How many marbles does she have?"


def problem(i: int) -> Problem:
    a, b, c, d = 11 + i, 2 + i % 5, 3 + i % 7, 4 + i % 3
    bought = b * c
    return Problem(
        id=f"marbles-{i:03}",
        statement=_STATEMENT.format(a=a, b=b, c=c, d=d),
        answer=str(a + bought - d),
        solution=f"She buys {b} * {c} = {bought}. She has {a} + {bought} - {d} = {a + bought - d}.",
        meta={"a": a, "b": b, "c": c, "d": d},
    )


def trace(problem: Problem, slip: int = 0) -> str:
    a, b, c, d = (int(str(problem.meta[name])) for name in "abcd")
    bought = b * c + slip
    return (
        f"### Step 1: Count the marbles that she buys\n{b} bags of {c} are {b} * {c} = {bought} marbles.\n\n"
        f"---\n\n### Step 2: Add and take away\n{a} + {bought} = {a + bought}\n"
        f"{a + bought} - {d} = {a + bought - d}\n\n---\n\n"
        f"### Final Answer:\n\\boxed{{{a + bought - d}}}\n"
    )


def rollout(problem: Problem, sample: int, *, right: bool, step: int, prefix: str, text: str = "") -> Rollout:
    text = text or trace(problem, 0 if right else 1 + sample % 3)
    cut = not right and sample % 5 == 4
    text = text[: len(text) // 2] if cut else text
    starts = tuple(range(0, len(text), 4))
    answer = "" if cut else text.rpartition("\\boxed{")[2].partition("}")[0]
    outcome = "correct" if right else "missing" if cut else "wrong"
    return Rollout(
        id=f"{prefix}-{problem.id}-{sample}",
        problem_id=problem.id,
        sample=sample,
        completion_ids=(7,) * len(starts),
        text=text,
        token_starts=starts,
        finish="length" if cut else "stop",
        policy_step=step,
        grade=Grade(correct=right, outcome=outcome, final_answer=answer),
    )


def critique(problem: Problem, rollout: Rollout) -> Critique | CritiqueFailure:
    if rollout.finish == "length":
        return CritiqueFailure(
            rollout_id=rollout.id, critic="program", reason="parse", detail="step 2 holds no equation"
        )
    right = rollout.correct
    verdicts = tuple(
        Verdict(step=k, correct=right or k != 1, reason="" if right else "b * c is off") for k in (1, 2, 3)
    )
    summary = "\n".join(
        f"Step {v.step}: Correct." if v.correct else f"Step {v.step}: Incorrect -- {v.reason}" for v in verdicts
    )
    if right:
        text = f"### Summary\n{summary}\n\n# Your solution is fully correct.\n---\n{rollout.text}"
        return Critique(
            rollout_id=rollout.id,
            critic="program",
            case="A",
            verdicts=verdicts,
            correct_part=rollout.text,
            text=text,
        )
    mended = trace(problem)
    text = (
        f"### Summary\n{summary}\n\n# Your solution has an error at Step 1. Below is your correct work, "
        "the corrected step, and the remainder of the solution.\n"
        "# You made an error at Step 1. Here is the corrected step:\n---\n"
        f"{mended}"
    )
    return Critique(
        rollout_id=rollout.id,
        critic="program",
        case="D",
        verdicts=verdicts,
        correct_part="",
        corrected_step=mended.partition("---")[0],
        continuation=mended.partition("---")[2],
        text=text,
    )


@pytest.fixture(scope="session")
def build_run_in() -> BuildRun:
    """Write a run's folder into a folder and return it."""

    def build(
        parent: Path,
        name: str = "marbles",
        *,
        template: str = "stepalign",
        critic: bool = True,
        steps: int = 6,
        evaluate_every: int = 3,
        gain: float = 0.3,
        problems: int = 20,
        samples: int = 6,
        seed: int = 0,
        first_problem: int = 0,
        edit: Callable[[Rollout], Rollout] = lambda rollout: rollout,
    ) -> Path:
        draw = random.Random(seed)
        folder = parent / name
        settings = config.Recipe.model_validate(
            {
                "name": name,
                "seed": seed,
                "model": {"name_or_path": "models/SmolLM2-135M-Instruct"},
                "problems": {"train": {"source": "sums"}, "holdout": problems},
                "context": {"template": template},
                "training": {"max_steps": 6, "rollouts_per_step": 16, "eval_steps": evaluate_every},
                "evaluation": {"num_samples": samples},
            }
            | ({"critic": {"kind": "program", "on_failure": "refsol"}} if critic else {})
        )
        write_atomically(folder / "recipe.toml", config.dump(settings))
        write_json(
            folder / "manifest.json",
            {
                "stepalign": "0.1.0",
                "created": "2025-01-31T12:00:00+00:00",
                "python": "3.11.9",
                "platform": "Linux-6.1-x86_64",
                "packages": {"torch": "2.9.0", "transformers": "5.10.0"},
                "hardware": {"cpu": "a CPU", "cores": 2, "memory_gib": 15.6, "gpus": []},
                "git_commit": "0123456789abcdef0123456789abcdef01234567",
                "seed": seed,
                "problems": {
                    "train": 282,
                    "evaluation": problems,
                    "dropped": {"duplicate": 3, "missing answer": 1},
                },
            },
        )
        train = [problem(100 + i) for i in range(40)]
        held_out = [problem(first_problem + i) for i in range(problems)]
        write_jsonl(folder / "problems" / "train.jsonl", train)
        write_jsonl(folder / "problems" / "evaluation.jsonl", held_out)

        lines = []
        for step in range(1, steps + 1):
            rollouts, answers = [], []
            for sample, chosen in enumerate(draw.sample(train, 16)):
                right = draw.random() < 0.3 + gain * step / steps
                rollouts.append(edit(rollout(chosen, sample, right=right, step=step - 1, prefix=f"step-{step:06}")))
                answers.append(critique(chosen, rollouts[-1]))
            write_jsonl(folder / "rollouts" / f"step-{step:06}.jsonl", rollouts)
            failed = sum(answer.kind == "failure" for answer in answers) if critic else 0
            if critic:
                write_jsonl(folder / "critiques" / f"step-{step:06}.jsonl", answers)
            tokens = sum(len(r.completion_ids) for r in rollouts)
            kl = 0.9 * 0.96**step * draw.uniform(0.9, 1.1)
            lines.append(
                {
                    "step": step,
                    "epoch": step * 16 / 282,
                    "lr": 5e-6,
                    "loss": kl * draw.uniform(0.97, 1.03),
                    "kl": kl,
                    "entropy_student": 1.1 * 0.985**step * draw.uniform(0.95, 1.05),
                    "entropy_teacher": 0.7 * draw.uniform(0.95, 1.05),
                    "agreement": min(1.0, 0.7 + 0.008 * step + draw.uniform(-0.02, 0.02)),
                    "first_token_kl": 0.2,
                    "grad_norm": 1.3,
                    "tokens": tokens,
                    "teacher_tokens": 4 * tokens,
                    "student_tokens": 2 * tokens,
                    "rollouts": 16,
                    "completion_tokens": tokens,
                    "correct": sum(r.correct for r in rollouts) / 16,
                    "formatted": sum(r.finish == "stop" for r in rollouts) / 16,
                    "truncated": sum(r.finish == "length" for r in rollouts) / 16,
                    "cases": {
                        case: sum(answer.kind == "critique" and answer.case == case for answer in answers)
                        for case in "AD"
                    }
                    if critic
                    else {},
                    "failures": {"parse": failed} if failed else {},
                    "outcomes": {"trained": 16, "fallback": failed, "dropped": 0, "cut": 0},
                    "seconds": {
                        "sample": 14.2 * draw.uniform(0.9, 1.1),
                        "grade": 0.8,
                        "critique": 0.2,
                        "teacher": 6.1,
                        "student": 12.4,
                        "optimizer": 0.3,
                    },
                }
            )
        if lines:
            write_atomically(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

        difficulty = [draw.uniform(-0.1, 0.7) for _ in held_out]
        for step in range(0, steps + 1, evaluate_every):
            rollouts = [
                rollout(
                    one,
                    sample,
                    right=draw.random() < chance + gain * step / 6,
                    step=step,
                    prefix=f"evaluation-{step:06}",
                )
                for one, chance in zip(held_out, difficulty, strict=True)
                for sample in range(samples)
            ]
            evaluation = score(rollouts, n=samples, resamples=200, seed=seed, step=step)
            write_jsonl(folder / "evaluations" / f"step-{step:06}.jsonl", rollouts)
            write_atomically(folder / "evaluations" / f"step-{step:06}.json", to_json(evaluation) + "\n")
        return folder

    return build


@pytest.fixture
def build_run(build_run_in: BuildRun, tmp_path: Path) -> BuildRun:
    """Write a run's folder under `tmp_path/runs` and return it."""
    return partial(build_run_in, tmp_path / "runs")
