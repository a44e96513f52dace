"""The page: one HTML file to look at a probe with, that works from a disk and asks nothing of any network.

`html/` holds its template, its style and its scripts, which stand in the page as they are, joined. A content
security policy lets just these scripts run, by their hash, and no text become markup. What models wrote is data: in
the template escaped, in the blocks of `packing` base64, and on the page only ever the content of text nodes.

    stepalign probe recipes/probe/gsm8k.toml --out probes/gsm8k --open
"""

import base64
import hashlib
import unicodedata
from bisect import bisect_left
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from stepalign import trace as traces
from stepalign.io import write_atomically
from stepalign.probing import display, figures
from stepalign.probing import markdown as reading
from stepalign.probing.error_spans import parts
from stepalign.probing.folder import Probe
from stepalign.probing.measures import of_rollout
from stepalign.probing.packing import FLOOR, UNIT, Arrays, Table, block, encode, pack_top, script_json, to_json
from stepalign.records import Credit, CriticResult, Critique, Mark, Problem, Rollout
from stepalign.report.display import HIDDEN
from stepalign.report.page import environment

_FOLDER = Path(__file__).parent / "html"
_SCRIPTS = ("data", "text", "solution", "card", "strips", "list", "view", "events")
_SCALES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Credits in nats at which a tint may be strongest before a reader moves it."""
_SEARCHED = 2_000
"""Characters of a problem's statement that the search looks at."""


def write(probe: Probe, path: Path) -> Path:
    """Write a probe's page, and return its path.

    Raises:
        StepalignError: it cannot be written.
    """
    write_atomically(path, render(probe, drawn=figures.for_page(probe)))
    return path


def render(probe: Probe, *, drawn: Mapping[str, str]) -> str:
    """A probe's page as HTML, with the set's pictures (SVG by name) in it."""
    index, table_block, blocks = pack(probe)
    script = _script()
    return (
        environment(_FOLDER)
        .get_template("probe.html.jinja")
        .render(
            index=index,
            index_json=Markup(script_json(index)),
            token_block=Markup(table_block),
            blocks=map(Markup, blocks),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            drawn={name: Markup(svg) for name, svg in drawn.items()},  # Matplotlib escapes the labels
            model=str(probe.manifest.get("asked", {}).get("model", {}).get("name_or_path", "unknown")),
            created=str(probe.manifest.get("created", ""))[:10],
            problems=len({rollout.problem_id for rollout in probe.rollouts}),
            tokens=sum(len(rollout.completion_ids) for rollout in probe.rollouts),
            errors=_errors(probe),
            **_measures(probe),
        )
    )


def pack(probe: Probe) -> tuple[dict[str, Any], str, list[str]]:
    """The index that the page reads at once, the token table's block, and one block a rollout."""
    problems = {problem.id: problem for problem in probe.problems}
    answers = {answer.rollout_id: answer for answer in probe.answers}
    marks = {mark.rollout_id: mark for mark in probe.marks}
    credits = {(credit.rollout_id, credit.context): credit for credit in probe.credits}
    table = Table(probe.tokens)
    blocks, rows = [], []
    for rollout in probe.rollouts:
        own = [credits.get((rollout.id, context)) for context in probe.contexts]
        problem, mark = problems.get(rollout.problem_id), marks.get(rollout.id)
        blocks.append(_block(rollout, problem, answers.get(rollout.id), mark, own, table))
        rows.append(_row(rollout, problem, mark, own))
    index = {
        "unit": UNIT,
        "floor": FLOOR,
        "scale": _scale(probe),
        "contexts": list(probe.contexts),
        "hidden": HIDDEN.pattern,
        "names": _names(),
        "elements": sorted(reading.ELEMENTS),
        "mathml": sorted(reading.MATHML),
        "attributes": sorted(reading.ATTRIBUTES),
        "rollouts": rows,
    }
    return index, encode(to_json(table.texts).encode()), blocks


def _block(
    rollout: Rollout,
    problem: Problem | None,
    answer: CriticResult | None,
    mark: Mark | None,
    credits: list[Credit | None],
    table: Table,
) -> str:
    arrays = Arrays()
    ends = [*rollout.token_starts[1:], len(rollout.text)]
    head = {
        "ids": arrays.ids([table.dense(token) for token in rollout.completion_ids], table.bound),
        "pieces": [rollout.text[start:end] for start, end in zip(rollout.token_starts, ends, strict=False)],
        "sections": _sections(rollout),
        "mark": mark and _mark(rollout, mark),
        "reading": reading.read(rollout.text),
        "problem": problem
        and {"reading": reading.read(problem.statement), "answer": problem.answer, "solution": problem.solution},
        "answer": _answer(answer),
        "credits": [
            credit
            and {
                "prompt": credit.prompt,
                "student": arrays.logs(credit.student),
                "teacher": arrays.logs(credit.teacher),
                "student_top": pack_top(credit.student_top, table, arrays),
                "teacher_top": pack_top(credit.teacher_top, table, arrays),
            }
            for credit in credits
        ],
    }
    return block(head, arrays)


def _mark(rollout: Rollout, mark: Mark) -> dict[str, Any]:
    """The error in tokens, and the first wrong one of them."""
    part = parts(rollout, mark)
    first, last = part.error or (0, 0)
    wrong = first if part.departure is None else part.departure
    return {"step": mark.step, "first": first, "last": last, "wrong": wrong, "source": mark.source}


def _sections(rollout: Rollout) -> list[dict[str, Any]]:
    """The trace's sections by the first token that begins in them. The first has whatever comes before, too."""
    trace = traces.parse(rollout.text)
    found: list[dict[str, Any]] = []
    step = 0
    for section in trace.sections:
        counted = section.kind == "step" or section is trace.answer_section
        step += counted
        first = bisect_left(rollout.token_starts, section.start)
        label = f"step {step}" if section.kind == "step" else "answer" if section.kind == "answer" else ""
        if first < len(rollout.token_starts):
            found.append({"label": label, "step": step if counted else 0, "first": first})
    if not found or found[0]["first"] > 0:
        found.insert(0, {"label": "", "step": 0, "first": 0})
    return found


def _answer(answer: CriticResult | None) -> dict[str, Any] | None:
    if answer is None:
        return None
    if isinstance(answer, Critique):
        return {
            "kind": "critique",
            "critic": answer.critic,
            "case": answer.case,
            "reading": reading.read(answer.text),
        }
    return {"kind": "failure", "reason": answer.reason, "detail": answer.detail}


def _row(rollout: Rollout, problem: Problem | None, mark: Mark | None, credits: list[Credit | None]) -> dict[str, Any]:
    correct = rollout.grade.correct if rollout.grade else None
    words = (
        rollout.id,
        problem.statement[:_SEARCHED] if problem else "",
        rollout.grade.final_answer if rollout.grade else "",
    )
    return {
        "id": rollout.id,
        "search": " ".join(words).lower(),
        "correct": correct,
        "finish": rollout.finish,
        "step": mark and mark.step,
        "tokens": len(rollout.completion_ids),
        "measures": [credit and _measured(rollout, credit, mark) for credit in credits],
    }


def _measured(rollout: Rollout, credit: Credit, mark: Mark | None) -> dict[str, float | None]:
    values = credit.values
    if not values:
        return {}
    found = {
        "mean": sum(values) / len(values),
        "negative": sum(value < 0 for value in values) / len(values),
        **{key: value for key, value in of_rollout(rollout, credit, mark).items() if key in ("before", "at", "after")},
    }
    return {key: round(value, 4) for key, value in found.items()}


def _scale(probe: Probe) -> float:
    """A round credit that nine tokens in ten with any to speak of stay within."""
    values = np.abs([value for credit in probe.credits for value in credit.values])
    wanted = float(np.percentile(values[values > 0.05], 90)) if np.any(values > 0.05) else 1.0
    return next((scale for scale in _SCALES if scale >= wanted), _SCALES[-1])


def _measures(probe: Probe) -> dict[str, Any]:
    """The table of measures: titles with what they mean, rows of a value and its interval, and n."""
    measured = {**probe.measures.contexts, **probe.measures.baselines}
    titles = {key: title for key, title in display.COLUMNS.items() if any(key in found for found in measured.values())}
    return {
        "titles": [(title, display.MEANINGS[key]) for key, title in titles.items()],
        "rows": [
            (name, [(display.value(key, found.get(key)), display.interval(key, found.get(key))) for key in titles])
            for name, found in measured.items()
            if titles
        ],
        "counts": [max(found[key].n for found in measured.values() if key in found) for key in titles],
    }


def _errors(probe: Probe) -> str:
    planted = sum(mark.source == "planted" for mark in probe.marks)
    said = len(probe.marks) - planted
    kinds = [f"{planted} planted"] * (planted > 0) + [f"{said} as critiques say"] * (said > 0)
    return ", ".join(kinds) or "none known"


@cache
def _names() -> dict[str, str]:
    """The names of characters that are shown by their code points."""
    found = {}
    for code in (*range(0xD800), *range(0xE000, 0xE0080)):
        if HIDDEN.match(chr(code)) and (name := unicodedata.name(chr(code), "")):
            found[f"{code:04X}"] = name.lower()
    return found


@cache
def _script() -> str:
    scripts = [(_FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS]
    return '"use strict";\n' + "\n".join(scripts)
