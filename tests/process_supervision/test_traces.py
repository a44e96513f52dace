from itertools import pairwise
from pathlib import Path

import pytest

from stepalign.chat import Chat
from stepalign.config import PromptsConfig
from stepalign.critics.arithmetic.critic import critique
from stepalign.data.processbench import read
from stepalign.io import read_jsonl
from stepalign.probing import inputs
from stepalign.process_supervision.traces import LabelledTraces, in_steps, to_traces
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, Mark, Problem


@pytest.mark.parametrize(
    "steps",
    [
        ["a"],
        ["a", "b\n\nc", "d"],
        ["## Step 1: a\nb", "## Step 2: c", "### Final Answer:\n\\boxed{2}"],
        ["**Step 1:** a", "**Step 2:** b"],
        ["Step 1: a\nStep 2: b", "Final Answer: 3"],
        ["a\nFinal Answer: 3", "b"],
        ["a", "```\n### Step 7:\n```"],
    ],
)
def test_every_step_has_its_exact_characters(steps: list[str]) -> None:
    written = in_steps(steps)
    assert written is not None
    text, spans = written
    assert [spans[0][0], spans[-1][1]] == [0, len(text)]
    assert all(left[1] == right[0] for left, right in pairwise(spans))
    for number, (step, span) in enumerate(zip(steps, spans, strict=True), start=1):
        section = text[slice(*span)]
        assert section.startswith(f"### Step {number}:\n")
        assert section.split("\n", 1)[1].strip() in (step, step.replace("### ", "").replace("## ", ""))


def test_steps_that_a_fence_hides_are_left_out(tmp_path: Path) -> None:
    assert in_steps(["a\n```", "b\n```"]) is None


def test_tokens_tile_the_completion(traces: LabelledTraces) -> None:
    for trace in traces.traces:
        ids = [trace.rollout.completion_ids[slice(*span)] for span in trace.token_spans]
        assert sum(ids, ()) == trace.rollout.completion_ids
        assert len(ids) == len(trace.spans)


def test_a_statement_finds_its_reference_white_space_aside(traces: LabelledTraces) -> None:
    known = {trace.rollout.id: (trace.problem.answer, trace.problem.solution) for trace in traces.with_answer}
    assert known["17-wrong"] == known["17-right"] == ("37", "2 boxes")
    assert [trace.rollout.id for trace in traces.traces if not trace.answer_known] == ["unknown"]


def test_without_a_reference_a_right_solution_gives_the_answer(file: Path, chat: Chat) -> None:
    traces = to_traces(list(read(file)), [], chat, SolverPrompt(PromptsConfig()))
    wrong = next(trace for trace in traces.traces if trace.rollout.id == "30-wrong")
    assert (wrong.problem.answer, wrong.problem.solution, wrong.answer_known) == ("63", "", True)


def test_the_labels_are_the_marks_of_a_probe(traces: LabelledTraces, tmp_path: Path) -> None:
    traces.write(tmp_path)
    given = inputs.read(tmp_path)
    assert len(given.rollouts) == 6
    assert {mark.rollout_id: mark.step for mark in given.marks} == {f"{n}-wrong": 2 for n in (17, 30, 52)}
    for mark in read_jsonl(tmp_path / "marks.jsonl", Mark):
        text = next(rollout.text for rollout in given.rollouts if rollout.id == mark.rollout_id)
        assert text[mark.start : mark.end].startswith("### Step 2:\n")


def test_a_limit_takes_traces_evenly(file: Path, chat: Chat) -> None:
    traces = to_traces(list(read(file)), [], chat, SolverPrompt(PromptsConfig()), limit=3)
    assert [trace.rollout.id for trace in traces.traces] == ["17-right", "30-right", "52-right"]


def test_an_answer_section_inside_a_step_belongs_to_that_step(chat: Chat, tmp_path: Path) -> None:
    steps = '["2*3 = 6", "so\\nFinal Answer: \\\\boxed{7}"]'
    row = f'{{"id": "a", "problem": "2*3?", "steps": {steps}, "final_answer_correct": false, "label": 1}}\n'
    (tmp_path / "b.jsonl").write_text(row)
    references = [Problem(id="r", statement="2*3?", answer="6", solution="2*3 = 6")]
    trace = to_traces(list(read(tmp_path / "b.jsonl")), references, chat, SolverPrompt(PromptsConfig())).traces[0]
    found = critique(trace.problem, trace.rollout)
    assert isinstance(found, Critique)
    assert found.first_error == 3
    assert trace.step_of(3) == 2
    assert trace.step_of(4) is None
