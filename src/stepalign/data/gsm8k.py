"""`openai/gsm8k`, from the hub or its raw JSONL, and reasoning-gym's `gsm_symbolic`: word problems with solutions.

An answer of GSM8K is the solution, with calculator annotations like `<<48/2=24>>`, and a last line `#### 72`. The
reference solution has neither, the final answer no thousands separators.

Known defects of `gsm_symbolic` (a line like `James receives 48=48`, a fraction with sixteen digits) are left in.
Where its derivation's last line and the answer are written differently (`#### 36.0` and `36`), the answer is the
generator's own.
"""

import re
from collections.abc import Iterator

from stepalign import config, extras
from stepalign.data import files
from stepalign.data.normalize import Candidate, text
from stepalign.seeding import derive_seed

DATASET = "openai/gsm8k"
_OTHERWISE = 'Where there is no network, name its raw file instead: source = "gsm8k", path = "train.jsonl"'
_ANNOTATION = re.compile(r"<<[^<>]*>>")


def candidates(source: config.Gsm8kConfig) -> Iterator[Candidate]:
    """Yield GSM8K's rows; an id is the split (of a raw file: its stem) and the row, counted from 0."""
    if source.path is None:
        part: str = source.split
        rows = files.hub_rows(
            DATASET, config="main", split=part, streaming=False, otherwise=_OTHERWISE, revision=source.revision
        )
    else:
        part, rows = source.path.stem, files.rows(source.path)
    for index, (_, where, row) in enumerate(rows):
        solution, answer = _split_answer(text(row, "answer", where))
        yield Candidate(
            where=where,
            id=f"gsm8k-{part}-{index}",
            statement=text(row, "question", where),
            answer=answer.replace(",", ""),
            solution=_ANNOTATION.sub("", solution),
            source=DATASET,
        )


def symbolic(source: config.GsmSymbolicConfig) -> Iterator[Candidate]:
    """Yield `count` problems of `gsm_symbolic`, the same for one seed and release of reasoning-gym.

    The generator seeds its problem i with seed + i, so that sets of neighbouring seeds would share problems.
    Therefore its seed is derived from the recipe's.
    """
    extras.require("reasoning-gym", "source = 'gsm_symbolic'")
    import reasoning_gym

    seed = derive_seed(source.seed, "gsm_symbolic")
    generated = reasoning_gym.create_dataset("gsm_symbolic", size=source.count, seed=seed)
    for index in range(source.count):
        example = generated[index]
        yield Candidate(
            where=f"gsm_symbolic, seed {source.seed}, problem {index}",
            id=f"gsm_symbolic-{source.seed}-{index}",
            statement=example["question"],
            answer=example["answer"],
            solution=_split_answer(example["metadata"]["answer_cot"])[0],
            source="reasoning-gym/gsm_symbolic",
        )


def _split_answer(written: str) -> tuple[str, str]:
    """Split a written solution from the answer after its last `####`, which is empty where there is none."""
    solution, mark, answer = written.rpartition("####")
    return (solution.strip(), answer.strip()) if mark else (written.strip(), "")
