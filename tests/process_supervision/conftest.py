"""Traces of a small file in the layout of ProcessBench."""

import json
from pathlib import Path

import pytest

from stepalign.chat import Chat, load_chat
from stepalign.config import ModelConfig, PromptsConfig
from stepalign.data.processbench import read
from stepalign.process_supervision.traces import LabelledTraces, to_traces
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem

REFERENCES = [
    Problem(id=f"r{n}", statement=f"Two boxes of {n} pens  and 3 more?", answer=str(2 * n + 3), solution="2 boxes")
    for n in (17, 30, 52)
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Six solutions of three problems: right ones, a false equation, a wrong setup; and one of an unknown problem."""
    rows = []
    for n in (17, 30, 52):
        statement = f"Two boxes of {n} pens and 3 more?"
        right = [f"2*{n} = {2 * n} pens", f"{2 * n}+3 = {2 * n + 3}. The answer is \\boxed{{{2 * n + 3}}}."]
        wrong = [f"2*{n} = {2 * n} pens", f"{2 * n}+3 = {2 * n + 4}", f"The answer is \\boxed{{{2 * n + 4}}}."]
        rows += [
            {"id": f"{n}-right", "problem": statement, "steps": right, "final_answer_correct": True, "label": -1},
            {"id": f"{n}-wrong", "problem": statement, "steps": wrong, "final_answer_correct": False, "label": 1},
        ]
    unknown = {"id": "unknown", "problem": "?", "steps": ["It is 5."], "final_answer_correct": False, "label": 0}
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, unknown]))
    return path


@pytest.fixture
def chat(tiny_llama: Path) -> Chat:
    return load_chat(ModelConfig(name_or_path=str(tiny_llama)), ())


@pytest.fixture
def traces(file: Path, chat: Chat) -> LabelledTraces:
    return to_traces(list(read(file)), REFERENCES, chat, SolverPrompt(PromptsConfig()))
