"""Slips and correct traces as the records that other stages read: graded rollouts and ground-truth critiques.

A ground-truth critique says what a perfect critic would: the first wrong step is the slip's, the steps after it are
correct by their own arithmetic as in the paper's example B.2, the copy is verbatim, and the corrected step and the
continuation are the correct trace's own.
"""

from stepalign.chat import Chat
from stepalign.critics.arithmetic.equations import find
from stepalign.critics.schema import compose, prefix, trim
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, Grade, PlantedSlip, Problem, Rollout, SlipKind, Verdict
from stepalign.trace import Trace, boxed, parse

CRITIC = "planted"

_REASONS: dict[SlipKind, str] = {
    "arithmetic": "its result is miscalculated.",
    "sign": "it computes with another operation than the problem asks for.",
    "copied number": "a number in it is miscopied.",
    "dropped term": "a term is left out of it.",
}
"""None of them quotes the slip."""


def as_rollout(
    problem: Problem, text: str, *, rollout_id: str, correct: bool, chat: Chat, prompt: SolverPrompt
) -> Rollout:
    """A text as if the solver had sampled it: its ids with an EOS behind them, and the grade that is known.

    Args:
        problem: what it solves.
        text: the completion.
        rollout_id: the record's.
        correct: whether its final answer is.
        chat: the solver's tokenizer.
        prompt: what the solver is shown of the problem.

    Raises:
        StepalignError: the tokenizer does not give the text back character for character.
    """
    eos = chat.tokenizer.eos_token_id
    ids = (*chat.encode_text(text), min(chat.eos_ids) if eos is None else eos)
    again, starts = chat.decode(ids)
    if again != text:
        raise StepalignError(f"rollout {rollout_id}: the tokenizer changes its text: {again[:60]!r} …")
    boxes = boxed(text)
    return Rollout(
        id=rollout_id,
        problem_id=problem.id,
        prompt_ids=chat.prompt_ids(prompt.turns(problem)),
        completion_ids=ids,
        text=text,
        token_starts=starts,
        finish="stop",
        grade=Grade(
            correct=correct,
            outcome="correct" if correct else "wrong" if boxes else "missing",
            final_answer=problem.answer if correct else "".join(boxes[-1:]),
        ),
    )


def critique_of_slip(slip: PlantedSlip) -> Critique:
    """The ground truth on a trace with a slip: case D."""
    wrong, right = parse(slip.text), parse(slip.correct_text)
    section = right.section(slip.step)
    verdicts = tuple(_verdict(slip, wrong, k) for k in range(1, _sections(wrong) + 1))
    correct_part = prefix(wrong, slip.step)
    corrected_step = trim(right.content(section))
    continuation = trim(right.text[section.end :])
    return Critique(
        rollout_id=slip.rollout_id,
        critic=CRITIC,
        case="D",
        verdicts=verdicts,
        correct_part=correct_part,
        corrected_step=corrected_step,
        continuation=continuation,
        text=compose("D", verdicts, correct_part, corrected_step, continuation),
    )


def critique_of_correct(rollout: Rollout) -> Critique:
    """The ground truth on a correct trace: case A."""
    verdicts = tuple(Verdict(step=k, correct=True) for k in range(1, _sections(parse(rollout.text)) + 1))
    text = compose("A", verdicts, rollout.text)
    return Critique(
        rollout_id=rollout.id,
        critic=CRITIC,
        case="A",
        verdicts=verdicts,
        correct_part=trim(rollout.text),
        text=text,
    )


def _sections(trace: Trace) -> int:
    return len(trace.steps) + (trace.answer_section is not None)


def _verdict(slip: PlantedSlip, wrong: Trace, k: int) -> Verdict:
    if k == slip.step:
        return Verdict(step=k, correct=False, reason=_REASONS[slip.kind])
    section = wrong.section(k)
    if section.kind == "answer":
        return Verdict(step=k, correct=False, reason=f"it rests on Step {slip.step}.")
    false = k > slip.step and any(chain.false_links() for chain in find(wrong.content(section)))
    return Verdict(step=k, correct=not false, reason="an equation in it does not hold." if false else "")
