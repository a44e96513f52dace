"""A folder of planted slips: problems, rollouts, ground-truth critiques and the slips themselves, as JSON lines.

    stepalign plant model_solutions.jsonl --model models/SmolLM2-135M-Instruct --out planted

`problems.jsonl`, `rollouts.jsonl` (each correct trace and, under its slip's id, the one with a slip), `critiques.jsonl`
(the ground truth for both), `slips.jsonl`, `natural.jsonl` (every solution as it was found, labelled by its final
answer only) and `manifest.json` with what could not be planted, by reason.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stepalign import config
from stepalign import data as problems
from stepalign.chat import Chat, load_chat
from stepalign.error_injection import sources
from stepalign.error_injection.inject import KINDS, NotPlantable, plant
from stepalign.error_injection.records import as_rollout, critique_of_correct, critique_of_slip
from stepalign.error_injection.sources import Solution
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_json, write_jsonl
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, PlantedSlip, Problem, Rollout, SlipKind

SYMBOLIC = "gsm_symbolic"


@dataclass(frozen=True, kw_only=True)
class PlantedSet:
    """What `plant_all` made. Every slip has a rollout, the correct rollout it came from, and a critique of each."""

    problems: list[Problem] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)
    critiques: list[Critique] = field(default_factory=list)
    slips: list[PlantedSlip] = field(default_factory=list)
    natural: list[Rollout] = field(default_factory=list)
    """Every solution as it was found, right or wrong by its final answer."""
    not_planted: Counter[str] = field(default_factory=Counter)
    """Right solutions without a slip, by reason."""


def plant_set(
    source: str,
    out: Path,
    *,
    model: config.ModelConfig,
    prompts: config.PromptsConfig | None = None,
    problems_file: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    kinds: Sequence[SlipKind] = KINDS,
) -> PlantedSet:
    """Plant slips into every correct solution of a source, and write the folder `out`.

    Args:
        source: a JSONL file of model solutions, of graded rollouts or of problems with reference solutions (records,
            or GSM8K's), or `gsm_symbolic`.
        out: the folder.
        model: whose tokenizer makes the solutions completions.
        prompts: what that solver is shown of a problem; by default the shipped template alone.
        problems_file: the problems (JSONL) that rollouts belong to.
        limit: plant at most this many slips; `gsm_symbolic`, which has no end, gives 200 problems without it.
        seed: decides which slips.
        kinds: which kinds may be planted.

    Raises:
        StepalignError: the source is none of these, or nothing could be planted.
    """
    chat = load_chat(model)
    found = plant_all(
        _solutions(source, problems_file, limit),
        chat,
        SolverPrompt(prompts or config.PromptsConfig()),
        limit=limit,
        seed=seed,
        kinds=kinds,
    )
    if not found.slips:
        raise StepalignError(f"{source}: no slip could be planted: {dict(found.not_planted)}")
    for name in ("problems", "rollouts", "critiques", "slips", "natural"):
        write_jsonl(out / f"{name}.jsonl", getattr(found, name))
    right = sum(rollout.correct for rollout in found.natural)
    write_json(
        out / "manifest.json",
        {
            "source": source,
            "seed": seed,
            "problems": len(found.problems),
            "solutions": {"right": right, "wrong": len(found.natural) - right},
            "planted": len(found.slips),
            "kinds": dict(Counter(slip.kind for slip in found.slips)),
            "not planted": dict(found.not_planted),
        },
    )
    return found


def plant_all(
    solutions: Iterable[Solution],
    chat: Chat,
    prompt: SolverPrompt,
    *,
    limit: int | None = None,
    seed: int = 0,
    kinds: Sequence[SlipKind] = KINDS,
) -> PlantedSet:
    """Plant a slip into every correct solution until there are `limit` of them."""
    found = PlantedSet()
    for solution in solutions:
        if limit is not None and len(found.slips) == limit:
            break
        problem = solution.problem
        if not found.problems or found.problems[-1] != problem:
            found.problems.append(problem)
        right = solution.rollout or as_rollout(
            problem, solution.text, rollout_id=solution.id, correct=solution.correct, chat=chat, prompt=prompt
        )
        found.natural.append(right)
        if not solution.correct:
            continue
        try:
            slip = plant(problem, solution.text, rollout_id=f"{solution.id}/slip", seed=seed, kinds=kinds)
        except NotPlantable as reason:
            found.not_planted[str(reason)] += 1
            continue
        wrong = as_rollout(problem, slip.text, rollout_id=slip.rollout_id, correct=False, chat=chat, prompt=prompt)
        found.slips.append(slip)
        found.rollouts.extend([right, wrong])
        found.critiques.extend([critique_of_correct(right), critique_of_slip(slip)])
    return found


def kinds_of(names: Sequence[str]) -> list[SlipKind]:
    """Kinds by their names; all of them for no name.

    Raises:
        StepalignError: naming what is allowed.
    """
    if unknown := sorted(set(names) - set(KINDS)):
        raise StepalignError(f"no kind of slip {unknown[0]!r}; allowed: {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in names or not names]


def _solutions(source: str, problems_file: Path | None, limit: int | None) -> Iterable[Solution]:
    if source == SYMBOLIC:
        # About one derivation in seven has an equation that does not hold, or no place for a slip.
        generated = config.GsmSymbolicConfig(count=2 * limit if limit else 200)
        return sources.derivations(problems.load(generated).problems)
    path = Path(source)
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError) as error:
        raise StepalignError(f"{source}: neither a JSONL file nor {SYMBOLIC!r}: {error}") from None
    columns = first.keys() if isinstance(first, dict) else set()
    if "ground_truth" in columns:
        return sources.model_solutions(path)
    if "completion_ids" in columns:
        if problems_file is None:
            raise StepalignError(f"{source}: rollouts need the file of their problems: --problems FILE")
        return sources.rollouts(read_jsonl(path, Rollout), read_jsonl(problems_file, Problem))
    written = config.Gsm8kConfig(path=path) if "question" in columns else config.FileConfig(path=path)
    return sources.derivations(problems.load(written).problems)
