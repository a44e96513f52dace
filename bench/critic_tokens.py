"""Output tokens that splice mode saves: the same critiques as a model would write them in either mode.

The critiques are the program critic's on real model solutions to GSM8K (right and wrong, as steps), so nothing
depends on a weak model: copy mode's text against splice mode's JSON of the same critique, in SmolLM2's tokens.

    python bench/critic_tokens.py
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from stepalign.critics import schema, splice
from stepalign.critics.arithmetic.critic import ProgramCritic
from stepalign.records import Critique, Grade, Problem, Rollout
from stepalign.trace import Trace, parse

WRITERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
RESAMPLES = 2000


def attempts(path: Path) -> Iterator[tuple[Problem, Rollout]]:
    """Four models' solutions to each problem of GSM8K's test set, a line a step."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        reference, _, answer = re.sub(r"<<[^<>]*>>", "", row["ground_truth"]).rpartition("A:")
        problem = Problem(
            id=str(number),
            statement=row["question"],
            answer=answer.strip().replace(",", ""),
            solution=reference.strip(),
        )
        for writer in WRITERS:
            *lines, last = row[writer]["solution"].split("\n")
            steps = [f"### Step {k}: Go on\n{text}" for k, text in enumerate(lines, start=1)]
            final = f"### Final Answer:\n\\boxed{{{last.removeprefix('A:').strip()}}}"
            right = row[writer]["is_correct"]
            yield (
                problem,
                Rollout(
                    id=f"{number}-{writer}",
                    problem_id=problem.id,
                    completion_ids=(),
                    token_starts=(),
                    text="\n\n".join([*steps, final]),
                    finish="stop",
                    grade=Grade(correct=right, outcome="correct" if right else "wrong"),
                ),
            )


def to_reply(critique: schema.ParsedCritique, trace: Trace) -> str:
    """The JSON that splice mode reads as this critique."""
    first = critique.first_error or 0
    after = trace.text[trace.section(first).end :] if 0 < first < schema.num_sections(trace) else ""
    own_rest = critique.case == "B" and critique.continuation == schema.trim(after).strip()
    spliced = splice.SplicedCritique(
        case=critique.case,
        verdicts=[verdict.correct for verdict in critique.verdicts],
        first_wrong_step=first,
        reason=critique.verdicts[first - 1].reason if first else "",
        corrected_step=critique.corrected_step,
        continuation="" if own_rest else critique.continuation,
    )
    return json.dumps(spliced.model_dump(), ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k/model_solutions.jsonl"))
    parser.add_argument("--tokenizer", default="models/SmolLM2-135M-Instruct")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    given = {rollout.id: (problem, rollout) for problem, rollout in attempts(arguments.data)}

    cases, texts, origins = [], [], []
    for answer in ProgramCritic().critique(given.values()):
        if isinstance(answer, Critique):
            trace = parse(given[answer.rollout_id][1].text)
            spliced = to_reply(schema.parse(answer.text, trace), trace)
            copied = schema.text_of(splice.parse(spliced, trace))  # as JSON has it: a reason for the first error alone
            cases.append(answer.case)
            origins.append(int(given[answer.rollout_id][0].id))
            texts += [copied, spliced]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    in_copy, in_splice = np.array(lengths[::2]), np.array(lengths[1::2])
    print(f"{len(cases):,} critiques of {len(given):,} solutions, tokens of {arguments.tokenizer}")
    for case in ("all", *sorted(set(cases))):
        chosen = np.array([case in ("all", one) for one in cases])
        report(case, in_copy[chosen], in_splice[chosen], np.array(origins)[chosen])


def report(name: str, copied: np.ndarray, spliced: np.ndarray, problems: np.ndarray) -> None:
    """The ratio of the sums, with a 95 % bootstrap interval over problems, whose solutions go together."""
    by_problem = np.stack([np.bincount(problems, weights=tokens) for tokens in (spliced, copied)], axis=1)
    by_problem = by_problem[by_problem[:, 1] > 0]
    draws = np.random.default_rng(0).integers(len(by_problem), size=(RESAMPLES, len(by_problem)))
    above, below = by_problem[draws].sum(axis=1).T
    low, high = np.quantile(above / below, (0.025, 0.975))
    print(
        f"  {name:>4}: {len(copied):5,} critiques of {len(by_problem):3} problems, {copied.mean():6.1f} → "
        f"{spliced.mean():6.1f} tokens each, ratio {spliced.sum() / copied.sum():.3f} [{low:.3f}, {high:.3f}]"
    )


if __name__ == "__main__":
    main()
