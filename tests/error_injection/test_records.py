import pytest

from stepalign import config
from stepalign.chat import Chat
from stepalign.critics import schema
from stepalign.error_injection.inject import inject_error
from stepalign.error_injection.sets import to_rollout, true_critique
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import PlantedSlip, Problem
from stepalign.trace import parse, token_span

PROBLEM = Problem(id="p", statement="What is 47 + 38, less 15?", answer="70")
SOLVED = "We add.\n\n---\n\n### Step 1: Add\n47 + 38 = 85\n\n---\n\n### Step 2: Take away\n85 - 15 = 70\n\n---\n\n" + (
    "### Final Answer:\n\\boxed{70}"
)
PROMPT = SolverPrompt(config.PromptsConfig())


def slip(seed: int = 0) -> PlantedSlip:
    return inject_error(PROBLEM, SOLVED, rollout_id="r/slip", seed=seed)


def test_the_ground_truth_copies_corrects_and_continues_with_the_correct_trace(chat: Chat) -> None:
    for seed in range(12):
        wrong = slip(seed)
        critique = true_critique(PROBLEM, to_rollout(PROBLEM, wrong.text, "r/slip", False, chat, PROMPT), wrong)
        assert (critique.rollout_id, critique.critic) == ("r/slip", "planted")
        assert critique.first_error == wrong.step
        assert [v.correct for v in critique.verdicts] == [k not in (wrong.step, 3) for k in (1, 2, 3)]
        read = schema.parse(critique.text, parse(wrong.text))
        assert (read.case, read.verdicts, read.correct_part) == ("D", critique.verdicts, critique.correct_part)
        assert (read.corrected_step, read.continuation) == (critique.corrected_step, critique.continuation)
        assert wrong.text.startswith(critique.correct_part)
        pieces = (critique.correct_part, critique.corrected_step, critique.continuation)
        assert "\n\n---\n\n".join(piece for piece in pieces if piece) == SOLVED
        assert schema.trim(parse(wrong.text).content(parse(wrong.text).section(wrong.step))) not in critique.text


def test_a_rollout_has_the_texts_ids_and_the_first_wrong_token(chat: Chat) -> None:
    wrong = slip()
    rollout = to_rollout(PROBLEM, wrong.text, "r/slip", False, chat, PROMPT)
    assert chat.decode(rollout.completion_ids) == (wrong.text, rollout.token_starts)
    assert rollout.completion_ids[-1] in chat.eos_ids
    assert rollout.prompt_ids == chat.prompt_ids(PROMPT.turns(PROBLEM))
    assert rollout.grade is not None
    assert (rollout.grade.outcome, rollout.grade.final_answer) == (
        "wrong",
        parse(wrong.text).text.split("boxed{")[1][:-1],
    )
    first, behind = token_span(rollout, wrong.departure, wrong.departure + 1)
    assert behind == first + 1
    right = to_rollout(PROBLEM, SOLVED, "r", True, chat, PROMPT)
    assert right.completion_ids[:first] == rollout.completion_ids[:first]
    assert right.completion_ids[first] != rollout.completion_ids[first]


def test_the_ground_truth_on_a_correct_trace_is_all_of_it(chat: Chat) -> None:
    rollout = to_rollout(PROBLEM, SOLVED, "r", True, chat, PROMPT)
    critique = true_critique(PROBLEM, rollout)
    assert (critique.case, critique.first_error, len(critique.verdicts)) == ("A", None, 3)
    assert critique.correct_part == SOLVED
    assert schema.parse(critique.text, parse(SOLVED)).correct_part == SOLVED


def test_texts_that_part_elsewhere_are_no_slip() -> None:
    right = slip()
    with pytest.raises(ValueError, match="its texts part at character"):
        PlantedSlip(**{**vars(right), "start": 0, "end": 1})
