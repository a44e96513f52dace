"""Write a folder of planted slips: problems, rollouts, ground-truth critiques and the slips, as JSON lines.

    stepalign plant model_solutions.jsonl --model models/SmolLM2-135M-Instruct --out planted

`rollouts.jsonl` has each correct trace and, under its slip's id, the trace with the slip; `critiques.jsonl` the ground
truth of both; `natural.jsonl` every solution of the source, labelled by its final answer only; `manifest.json` the
number of solutions without a slip, by reason. In a ground-truth critique the first wrong step is the slip's, later
steps are judged by their own arithmetic as in the paper's example B.2, and the rest is the correct trace's own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from stepalign import config
from stepalign.arguments import checked
from stepalign.chat import Chat, load_chat
from stepalign.critics.arithmetic.critic import Attempt, Correction, to_critique
from stepalign.error_injection.inject import KINDS, NotInjectable, inject_error
from stepalign.error_injection.sources import read_solutions
from stepalign.errors import StepalignError
from stepalign.io import write_json, write_jsonl
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, Grade, PlantedSlip, Problem, Rollout, SlipKind
from stepalign.trace import boxed, parse

CRITIC = "planted"
_REASONS: dict[SlipKind, str] = {
    "arithmetic": "its result is miscalculated.",
    "sign": "it computes with another operation than the problem asks for.",
    "copied number": "a number in it is miscopied.",
    "dropped term": "a term is left out of it.",
}
"""None of them quotes the slip."""


@dataclass(frozen=True, kw_only=True)
class PlantedSet:
    """Planted slips, each with its rollout, the correct rollout and a critique of both."""

    problems: list[Problem] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)
    critiques: list[Critique] = field(default_factory=list)
    slips: list[PlantedSlip] = field(default_factory=list)
    natural: list[Rollout] = field(default_factory=list)
    """Every solution of the source, right or wrong by its final answer."""
    not_planted: Counter[str] = field(default_factory=Counter)
    """Right solutions without a slip, by reason."""


@checked
def plant_set(
    source: Path | str,
    out: Path | str,
    *,
    model: config.ModelConfig,
    prompts: config.PromptsConfig | None = None,
    problems_file: Path | str | None = None,
    limit: PositiveInt | None = None,
    seed: NonNegativeInt = 0,
    kinds: Sequence[str] = (),
) -> PlantedSet:
    """Plant a slip into every correct solution of a source, and write the folder `out`.

    Args:
        source: a JSONL file of model solutions, of graded rollouts or of problems with reference solutions (records,
            or GSM8K's), or `gsm_symbolic`.
        out: the folder.
        model: the solver, whose tokenizer turns the solutions into completions.
        prompts: the solver's prompt; by default the shipped template alone.
        problems_file: the problems (JSONL) that rollouts belong to.
        limit: maximal number of slips; without it `gsm_symbolic`, which has no end, gives 200 problems.
        seed: selects the slips.
        kinds: allowed kinds; all of them for none.
    """
    source, out = str(source), Path(out)
    problems_file = Path(problems_file) if problems_file else None
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise StepalignError(f"no kind of slip {unknown[0]!r}; allowed: {', '.join(KINDS)}")
    allowed = [kind for kind in KINDS if kind in kinds or not kinds]
    prompt = SolverPrompt(prompts or config.PromptsConfig())
    chat = load_chat(model, prompt.before)
    planted = PlantedSet()
    for solution in read_solutions(source, problems_file, limit):
        if limit is not None and len(planted.slips) == limit:
            break
        problem = solution.problem
        if not planted.problems or planted.problems[-1] != problem:
            planted.problems.append(problem)
        right = solution.rollout or to_rollout(problem, solution.text, solution.id, solution.correct, chat, prompt)
        planted.natural.append(right)
        if not solution.correct:
            continue
        try:
            slip = inject_error(problem, solution.text, rollout_id=f"{solution.id}/slip", seed=seed, kinds=allowed)
        except NotInjectable as reason:
            planted.not_planted[str(reason)] += 1
            continue
        wrong = to_rollout(problem, slip.text, slip.rollout_id, False, chat, prompt)
        planted.slips.append(slip)
        planted.rollouts.extend([right, wrong])
        planted.critiques.extend([true_critique(problem, right), true_critique(problem, wrong, slip)])
    if not planted.slips:
        raise StepalignError(f"{source}: no slip could be planted: {dict(planted.not_planted)}")
    for name in ("problems", "rollouts", "critiques", "slips", "natural"):
        write_jsonl(out / f"{name}.jsonl", getattr(planted, name))
    num_right = sum(rollout.correct for rollout in planted.natural)
    manifest = {
        "source": source,
        "seed": seed,
        "problems": len(planted.problems),
        "solutions": {"right": num_right, "wrong": len(planted.natural) - num_right},
        "planted": len(planted.slips),
        "kinds": Counter(slip.kind for slip in planted.slips),
        "not planted": planted.not_planted,
    }
    write_json(out / "manifest.json", manifest)
    return planted


def to_rollout(
    problem: Problem, text: str, rollout_id: str, correct: bool, chat: Chat, prompt: SolverPrompt
) -> Rollout:
    """Tokenize a text as a finished completion of the solver, graded as `correct`."""
    eos = chat.tokenizer.eos_token_id
    ids = (*chat.encode_text(text), min(chat.eos_ids) if eos is None else eos)
    decoded, starts = chat.decode(ids)
    if decoded != text:
        raise StepalignError(f"rollout {rollout_id}: the tokenizer changes its text: {decoded[:60]!r} …")
    answer = problem.answer if correct else "".join(boxed(text)[-1:])
    grade = Grade(
        correct=correct, outcome="correct" if correct else "wrong" if answer else "missing", final_answer=answer
    )
    prompt_ids = chat.prompt_ids(prompt.turns(problem))
    return Rollout(
        id=rollout_id, problem_id=problem.id, prompt_ids=prompt_ids, completion_ids=ids, text=text,
        token_starts=starts, finish="stop", grade=grade,
    )  # fmt: skip


def true_critique(problem: Problem, rollout: Rollout, slip: PlantedSlip | None = None) -> Critique:
    """Return the ground truth on a rollout: case D with its slip, case A without one."""
    attempt = Attempt(problem, rollout)
    if slip is None:
        return to_critique(attempt, "A", None, critic=CRITIC)
    correct = parse(slip.correct_text)
    section = correct.section(slip.step)
    pieces = (correct.content(section), correct.text[section.end :])
    return to_critique(attempt, "D", Correction(slip.step, _REASONS[slip.kind], pieces), critic=CRITIC)
