"""Credit of programs by place, and programs on the page."""

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from stepalign.errors import StepalignError
from stepalign.io import write_jsonl
from stepalign.probing import display, inputs, markdown, page
from stepalign.probing.folder import Probe
from stepalign.probing.measures import measure, token_regions
from stepalign.records import Credit, Critique, Grade, Problem, Rollout, Verdict
from stepalign.unit_tests import UnitTests

TEXT = "So:\n```python\na = 1\nb = 2\nprint(b)\n```\nDone."
"""Prose of 14 characters, steps of 6, 6 and 9, prose of 9."""
PROBLEM = Problem(
    id="p", statement="Print 3.", solution="print(3)", trace_format="code", tests=UnitTests(shown=("assert 1",))
)
ROLLOUT = Rollout(
    id="r",
    problem_id="p",
    completion_ids=tuple(range(len(TEXT))),
    token_starts=tuple(range(len(TEXT))),
    text=TEXT,
    finish="stop",
    trace_format="code",
    grade=Grade(correct=False, outcome="wrong"),
)
CRITIQUE = Critique(
    rollout_id="r",
    critic="unit-tests",
    case="D",
    verdicts=(
        Verdict(step=1, correct=True, place="line 1"),
        Verdict(step=2, correct=False, place="line 2"),
        Verdict(step=3, correct=True, place="line 3"),
    ),
    correct_part="So:\n```python\na = 1",
    corrected_step="b = 3",
    continuation="print(b)\n```",
    text="(the whole)",
)
CREDITS = [0.5] * 14 + [0.1] * 6 + [-2.0] * 5 + [0.1] * 10 + [0.5] * 9
"""The wrong line has five characters, its line break is right."""


def _credit(values: list[float]) -> Credit:
    return Credit(rollout_id="r", context="stepalign", prompt="", student=(0.0,) * len(values), teacher=tuple(values))


def test_credit_is_divided_among_wrong_lines_right_lines_and_prose() -> None:
    mark = inputs.mark_from_critique(ROLLOUT, CRITIQUE)
    assert mark is not None
    assert (TEXT[mark.start : mark.end], mark.departure) == ("b = 2", mark.start + 4)
    regions = token_regions(ROLLOUT, mark)
    assert [regions.place_of(k) for k in (0, 13, 14, 20, 24, 25, 34, 35, 43)] == [
        "prose", "prose", "before", "at", "at", "after", "after", "prose", "prose",
    ]  # fmt: skip
    assert [regions.step_of(k) for k in (13, 14, 34, 35)] == [0, 1, 3, 0]
    values = measure([ROLLOUT], [mark], [_credit(CREDITS)], seed=0, resamples=10)
    found = values.contexts["stepalign"]
    means = {name: found[name].value for name in ("wrong_lines", "right_lines", "prose")}
    assert means == pytest.approx({"wrong_lines": -2.0, "right_lines": 0.1, "prose": 0.5})
    total = 23 * 0.5 + 16 * 0.1 + 5 * 2.0
    shares = {name: found[f"{name}_share"].value for name in means}
    assert shares == pytest.approx({"wrong_lines": 10 / total, "right_lines": 1.6 / total, "prose": 11.5 / total})
    assert "% prose" in display.table(values)


def test_without_a_known_error_only_prose_has_a_place() -> None:
    values = measure([ROLLOUT], [], [_credit(CREDITS)], seed=0, resamples=10)
    assert {name for name in values.contexts["stepalign"] if "lines" in name or "prose" in name} == {
        "prose",
        "prose_share",
    }


def test_the_page_has_prose_as_sections_and_code_as_it_is() -> None:
    mark = inputs.mark_from_critique(ROLLOUT, CRITIQUE)
    assert mark is not None
    probe = Probe(
        problems=(PROBLEM,), rollouts=(ROLLOUT,), critic_results=(CRITIQUE,), marks=(mark,), credits=(_credit(CREDITS),)
    )
    _, blocks = page.pack(probe)
    head = json.loads(zlib.decompress(base64.b64decode(blocks["rollout-0"])).partition(b"\0")[0])
    assert [(section["label"], section["step"], section["first"]) for section in head["sections"]] == [
        ("prose", 0, 0), ("step 1", 1, 14), ("step 2", 2, 20), ("step 3", 3, 26), ("prose", 0, 35),
    ]  # fmt: skip
    assert ["pre", {}, "a = 1\nb = 2\nprint(b)"] in head["reading"]


def test_fenced_code_stays_as_it_is() -> None:
    assert markdown.parse("A\n```python\n# no heading\n\n  x = '**b**'\n```\n**B**") == [
        ["div", {"class": "paragraph"}, "A"],
        ["pre", {}, "# no heading\n\n  x = '**b**'"],
        ["div", {"class": "paragraph"}, ["strong", {}, "B"]],
    ]
    critique = "```python\n# a\nx = 1\n---\n# Here is the corrected step:\n---\n  # b\n---\n# On:\n---\n```\nEnd."
    assert markdown.parse(critique) == [
        ["pre", {}, "# a\nx = 1"],
        ["hr", {}],
        ["h4", {}, "Here is the corrected step:"],
        ["hr", {}],
        ["pre", {}, "  # b"],
        ["hr", {}],
        ["h4", {}, "On:"],
        ["hr", {}],
        ["div", {"class": "paragraph"}, "End."],
    ]


def test_a_rollout_of_another_format_than_its_problem_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "problems.jsonl", [PROBLEM])
    other = replace(ROLLOUT, trace_format="steps")
    write_jsonl(tmp_path / "rollouts.jsonl", [other])
    with pytest.raises(StepalignError, match="rollout r: trace_format is 'steps', its problem's is 'code'"):
        inputs.read(tmp_path)
