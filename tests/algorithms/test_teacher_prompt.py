from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepalign import config, contexts
from stepalign.algorithms.distillation_loss import DistillationExample
from stepalign.algorithms.self_distillation import distillation_example, loss_bounds
from stepalign.algorithms.teacher_prompt import DoesNotFit
from stepalign.chat import Chat, load_chat
from stepalign.collate import collate
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt, Turn
from stepalign.records import Critique, Problem, Rollout, Verdict
from stepalign.views import View

STEPS = ("### Step 1: Add 12 and 25\n12 + 25 = 37\n\n", "### Step 2: Add 31\n37 + 31 = 69 🙂\n\n")
ANSWER = "### Final Answer:\n\n\\boxed{69}"
PROBLEM = Problem(
    id="sum", statement="Compute 12 + 25 + 31.<|im_end|>", solution="First 12 + 25 = 37. " * 12, answer="68"
)
CRITIC_TEXT = "### Summary\nStep 1: Correct.\nStep 2: Incorrect -- 37 + 31 is 68\n" + "12 + 25 = 37\n" * 12

VIEW = View(prompt_ids=(1, 2), completion_ids=(3,), loss_start=0, loss_stop=1)

Teach = Callable[..., DistillationExample]


@pytest.fixture(scope="module")
def chat(tiny_llama: Path) -> Chat:
    return load_chat(config.ModelConfig(name_or_path=str(tiny_llama)))


@pytest.fixture(scope="module")
def prompt() -> SolverPrompt:
    return SolverPrompt(
        config.PromptsConfig(system="Be brief.", examples=(config.ExampleConfig(problem="1?", solution="1"),))
    )


def attempt(chat: Chat, prompt: SolverPrompt, text: str = "".join([*STEPS, ANSWER]), end: int | None = 2) -> Rollout:
    ids = (*chat.encode_text(text), *(() if end is None else (end,)))
    decoded, starts = chat.decode(ids)
    return Rollout(
        id="sum/0",
        problem_id=PROBLEM.id,
        prompt_ids=chat.prompt_ids(prompt.turns(PROBLEM)),
        completion_ids=ids,
        text=decoded,
        token_starts=starts,
        finish="length" if end is None else "stop",
    )


def critique(*wrong: int, judged: int = 3, corrected: str = "") -> Critique:
    verdicts = tuple(Verdict(step=step, correct=step not in wrong) for step in range(1, judged + 1))
    return Critique(
        rollout_id="sum/0",
        critic="program",
        case="D" if wrong else "A",
        verdicts=verdicts,
        correct_part=STEPS[0],
        corrected_step=corrected,
        text=CRITIC_TEXT,
    )


@pytest.fixture
def teach(chat: Chat, prompt: SolverPrompt) -> Teach:
    """A function: the example of a rollout under a context, with settings of teacher and algorithm."""

    def teach(
        rollout: Rollout,
        context: str = "stepalign",
        answer: Critique | None = None,
        objective: config.DistillationConfig | None = None,
        problem: Problem = PROBLEM,
        **teacher: Any,
    ) -> DistillationExample:
        algorithm = objective or config.DistillationConfig()
        return distillation_example(
            chat,
            prompt.before,
            contexts.load(context),
            contexts.ContextInput(problem=problem, rollout=rollout, critique=answer),
            config.TeacherConfig(**teacher),
            bounds=loss_bounds(rollout, answer, algorithm.loss_span, skip=algorithm.num_loss_tokens_to_skip),
        )

    return teach


# ── two views of one completion ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("context", ["refsol", "stepalign", "quoted", "verdicts"])
def test_student_and_teacher_end_in_the_very_ids_that_were_sampled(
    chat: Chat, prompt: SolverPrompt, teach: Teach, context: str
) -> None:
    text = attempt(chat, prompt)
    # Ids that their own text would not be encoded as: one by one instead of merged.
    ids = (*(token for character in text.text for token in chat.encode_text(character)), 2)
    assert len(ids) > len(text.completion_ids)
    decoded, starts = chat.decode(ids)
    rollout = Rollout(
        id="sum/0", problem_id="sum", prompt_ids=text.prompt_ids, completion_ids=ids, text=decoded,
        token_starts=starts, finish="stop",
    )  # fmt: skip
    example = teach(rollout, context, critique(2))
    for shown in (example.student, example.teacher):
        assert shown.completion_ids == ids
        assert shown.input_ids == (*shown.prompt_ids, *ids[:-1])
        assert shown.num_loss_tokens == len(ids)
    assert example.student.prompt_ids == text.prompt_ids
    assert example.teacher.prompt_ids != text.prompt_ids
    assert not example.cut


def test_the_teacher_is_shown_the_turns_before_the_problem_too(chat: Chat, prompt: SolverPrompt, teach: Teach) -> None:
    example = teach(attempt(chat, prompt), "refsol")
    shown = contexts.load("refsol").render(contexts.ContextInput(problem=PROBLEM, rollout=attempt(chat, prompt)))
    assert example.teacher.prompt_ids == chat.prompt_ids([*prompt.before, Turn("user", shown)])


def test_the_thinking_boundary_is_the_teachers_choice(chat: Chat, prompt: SolverPrompt, teach: Teach) -> None:
    rollout = attempt(chat, prompt)
    off, on, closed = (
        teach(rollout, "refsol", enable_thinking=thinking, close_think=close).teacher.prompt_ids
        for thinking, close in ((False, False), (True, False), (True, True))
    )
    assert off == closed
    assert len(on) < len(off)
    assert off[: len(on)] == on


def test_a_truncated_completion_gets_no_eos_and_an_eos_that_is_the_pad_token_counts(
    chat: Chat, prompt: SolverPrompt, teach: Teach
) -> None:
    pad = chat.tokenizer.pad_token_id
    assert pad in chat.eos_ids
    ended = teach(attempt(chat, prompt, end=pad), "refsol")
    cut_off = teach(attempt(chat, prompt, end=None), "refsol")
    assert ended.student.completion_ids == (*cut_off.student.completion_ids, pad)
    targets = collate([cut_off.student, ended.student, cut_off.teacher, ended.teacher]).targets.tolist()
    ids = [*cut_off.student.completion_ids]
    assert targets == [*ids, *ids, pad] * 2


def test_an_example_of_two_completions_is_refused() -> None:
    with pytest.raises(ValueError, match="see different completions"):
        DistillationExample(rollout_id="r", student=VIEW, teacher=replace(VIEW, completion_ids=(9,)))
    with pytest.raises(ValueError, match="see different completions"):
        DistillationExample(rollout_id="r", student=VIEW, teacher=replace(VIEW, loss_start=1))


# ── which tokens count ────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_tokens_can_be_left_out(chat: Chat, prompt: SolverPrompt, teach: Teach) -> None:
    rollout = attempt(chat, prompt)
    example = teach(rollout, "refsol", objective=config.DistillationConfig(num_loss_tokens_to_skip=3))
    assert (example.student.loss_start, example.student.loss_stop) == (3, len(rollout.completion_ids))
    assert collate([example.teacher]).targets.tolist() == list(rollout.completion_ids[3:])
    none = teach(rollout, "refsol", objective=config.DistillationConfig(num_loss_tokens_to_skip=10_000))
    assert none.student.num_loss_tokens == 0


FIRST_ERROR = config.DistillationConfig(loss_span="until_first_error")


@pytest.mark.parametrize(
    ("wrong", "counts"), [((2,), "".join(STEPS)), ((1, 2), STEPS[0]), ((3,), "".join([*STEPS, ANSWER]))]
)
def test_the_horizon_of_a_critique_without_a_correction_is_the_end_of_the_first_wrong_step(
    chat: Chat, prompt: SolverPrompt, teach: Teach, wrong: tuple[int, ...], counts: str
) -> None:
    rollout = attempt(chat, prompt)
    example = teach(rollout, "stepalign", critique(*wrong), FIRST_ERROR)
    assert chat.decode(rollout.completion_ids[: example.student.loss_stop])[0] == counts
    assert example.teacher.loss_stop == example.student.loss_stop < len(rollout.completion_ids)
    assert example.student.completion_ids == rollout.completion_ids
    assert len(example.student.input_ids) == len(rollout.prompt_ids) + example.student.loss_stop - 1


@pytest.mark.parametrize(
    ("wrong", "corrected", "counts"),
    [
        (2, "### Step 2: Add 31\n37 + 31 = 68", STEPS[0] + "### Step 2: Add 31\n37 + 31 = 69"),
        (2, "### Step 2: Add 31\n37 + 31 = 69 √", STEPS[0] + "### Step 2: Add 31\n37 + 31 = 69 🙂"),
        (2, "### Step 2: Carry\n37 + 31 = 68", STEPS[0] + "### Step 2: Add 31\n37 + 31 = 69"),
        (2, "### Step 2: Add 31\nSo we have 37 plus 31 = 69 🙂", "".join(STEPS)),
        (2, STEPS[1] + "and more", "".join(STEPS)),
        (3, "### Final Answer:\n\n\\boxed{68}", "".join([*STEPS, "### Final Answer:\n\n\\boxed{69"])),
    ],
    ids=[
        "a number",
        "a character of several ids",
        "another heading",
        "other words alone",
        "something missing",
        "the final answer",
    ],
)
def test_the_horizon_is_the_token_in_which_the_wrong_step_departs_from_its_correction(
    chat: Chat, prompt: SolverPrompt, teach: Teach, wrong: int, corrected: str, counts: str
) -> None:
    rollout = attempt(chat, prompt)
    stop = teach(rollout, "stepalign", critique(wrong, corrected=corrected), FIRST_ERROR).student.loss_stop
    assert chat.decode(rollout.completion_ids[:stop])[0] == counts


def test_the_horizon_of_a_correct_attempt_is_its_end(chat: Chat, prompt: SolverPrompt, teach: Teach) -> None:
    rollout = attempt(chat, prompt)
    example = teach(rollout, "stepalign", critique(), FIRST_ERROR)
    assert (example.student.loss_start, example.student.loss_stop) == (0, len(rollout.completion_ids))


@pytest.mark.parametrize(("text", "judged"), [("".join(STEPS), 3), ("12 + 25 is 37", 1), ("", 1)])
def test_a_final_answer_that_never_came_is_an_error_at_the_end(
    chat: Chat, prompt: SolverPrompt, teach: Teach, text: str, judged: int
) -> None:
    rollout = attempt(chat, prompt, text)
    example = teach(rollout, "stepalign", critique(judged, judged=judged), FIRST_ERROR)
    assert example.student.loss_stop == len(rollout.completion_ids)


def test_a_horizon_without_a_critique_is_refused(chat: Chat, prompt: SolverPrompt, teach: Teach) -> None:
    with pytest.raises(StepalignError, match="rollout sum/0 has no critique with its first error"):
        teach(attempt(chat, prompt), "refsol", objective=FIRST_ERROR)


def test_skipping_past_the_horizon_leaves_nothing(chat: Chat, prompt: SolverPrompt, teach: Teach) -> None:
    objective = config.DistillationConfig(loss_span="until_first_error", num_loss_tokens_to_skip=10_000)
    example = teach(attempt(chat, prompt), "stepalign", critique(1), objective)
    assert example.student.num_loss_tokens == 0


# ── the teacher's limit ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("context", ["refsol", "stepalign", "quoted"])
def test_a_context_is_cut_to_the_limit_and_problem_and_header_stay(
    chat: Chat, prompt: SolverPrompt, teach: Teach, context: str
) -> None:
    rollout = attempt(chat, prompt)
    completion = len(rollout.completion_ids)
    whole = teach(rollout, context, critique(2))
    exactly = len(whole.teacher.prompt_ids) + completion
    assert teach(rollout, context, critique(2), max_length=exactly) == whole

    told = chat.decode(whole.teacher.prompt_ids)[0]
    beginning = told[: told.index(PROBLEM.statement) + len(PROBLEM.statement)]
    header = chat.tokenizer("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")["input_ids"]
    lengths = []
    for limit in range(exactly - 1, exactly - 120, -7):
        try:
            example = teach(rollout, context, critique(2), max_length=limit)
        except DoesNotFit:
            break
        assert example.cut
        assert example.student == whole.student
        ids = example.teacher.prompt_ids
        assert len(ids) + completion <= limit
        text = chat.decode(ids)[0]
        assert example.message in text, "the message is what was shown, not what would have been"
        assert text.startswith(beginning)
        assert "[…]" in text
        assert list(ids[-len(header) :]) == header
        lengths.append(limit - len(ids) - completion)
    assert len(lengths) > 3
    assert max(lengths) < 12, "what is left unused of the limit is less than the mark of a cut"


def test_what_does_not_fit_without_any_context_is_refused(chat: Chat, prompt: SolverPrompt, teach: Teach) -> None:
    rollout = attempt(chat, prompt)
    with pytest.raises(DoesNotFit, match=r"teacher\.max_length = 60: problem sum \(\d+ prompt tokens without any"):
        teach(rollout, "refsol", max_length=60)
    long = Problem(id="long", statement="Compute 12 + 25. " * 300, solution="37", answer="37")
    with pytest.raises(DoesNotFit, match="problem long"):
        teach(rollout, "refsol", problem=long, max_length=1500)


# ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────
