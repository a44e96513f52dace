"""One HTML file that shows a probe. It works from a disk and requests nothing from a network.

`html/` holds the template, the style sheet and the scripts, which are joined into one. A content security policy
allows only that script, by its hash, and no text as markup. Foreign text is escaped in the template, base64 in the
blocks, and only ever text nodes on the page.

A block is base64 of zlib of JSON and numbers. There is one for the tokens' texts and one a rollout, unpacked when the
rollout is opened. Log-probabilities are counted in steps of `UNIT` nats below zero: a number on the page is within
`UNIT` / 2 of the record's, a credit within `UNIT`. Left out: values that the page derives, such as credit.

    stepalign probe probe/gsm8k --out probes/gsm8k --open
"""

import base64
import hashlib
import json
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from stepalign.io import write_atomically
from stepalign.probing import display, markdown
from stepalign.probing.folder import Probe
from stepalign.probing.measures import rollout_means, token_regions
from stepalign.records import Credit, CriticResult, Critique, Mark, Problem, Rollout, TopTokens
from stepalign.report.display import HIDDEN, environment
from stepalign.report.figures import inline
from stepalign.trace import parse_rollout

UNIT = 0.001
"""Nats."""

_Credits = list[Credit | None]
_FOLDER = Path(__file__).parent / "html"
_SCALES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Initial values of the scale: the credit in nats at which a tint is strongest."""


def write(probe: Probe, path: Path, drawings: Mapping[str, str]) -> Path:
    """Write a probe's page with the set's figures among the drawings (SVG documents by name), and return its path."""
    shown = {name: inline(drawing) for name, drawing in drawings.items() if not name.startswith("rollout-")}
    write_atomically(path, render(probe, figures=shown))
    return path


def render(probe: Probe, *, figures: Mapping[str, str]) -> str:
    """Render a probe's page with the set's figures (SVG by name)."""
    index, blocks = pack(probe)
    script = join_scripts()
    names = {"planted": "planted", "human": "marked by people", "critique": "as critiques say"}
    errors = Counter(names[mark.source] for mark in probe.marks)
    rows = {**probe.measures.contexts, **probe.measures.baselines}
    template = environment(_FOLDER).get_template("probe.html.jinja")
    return template.render(
        index=index,
        blocks={name: Markup(block) for name, block in blocks.items()},
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        figures={name: Markup(svg) for name, svg in figures.items()},  # Matplotlib escapes the labels
        model=str(probe.manifest.get("asked", {}).get("model", {}).get("name_or_path", "unknown")),
        created=str(probe.manifest.get("created", ""))[:10],
        problems=len({rollout.problem_id for rollout in probe.rollouts}),
        tokens=sum(len(rollout.completion_ids) for rollout in probe.rollouts),
        remarks=display.remarks(probe.manifest.get("skipped", {}), probe.manifest.get("cut", {})),
        errors=", ".join(f"{n} {source}" for source, n in errors.items() if n) or "none known",
        columns={key: display.COLUMNS[key] for key in display.COLUMNS if any(key in row for row in rows.values())},
        rows=rows,
        format_cell=display.format_cell,
        largest_n=lambda key: display.largest_n(probe.measures, key),
    )


def pack(probe: Probe) -> tuple[dict[str, Any], dict[str, str]]:
    """Build the index, which is read at once, and the blocks by name: `tokens`, `rollout-0`, …"""
    problems = {problem.id: problem for problem in probe.problems}
    critic_results = {result.rollout_id: result for result in probe.critic_results}
    marks = {mark.rollout_id: mark for mark in probe.marks}
    credits = {(credit.rollout_id, credit.context): credit for credit in probe.credits}
    blocks, rows = {"tokens": _block(probe.tokens)}, []
    for number, rollout in enumerate(probe.rollouts):
        own = [credits.get((rollout.id, context)) for context in probe.contexts]
        problem, mark = problems.get(rollout.problem_id), marks.get(rollout.id)
        blocks[f"rollout-{number}"] = _rollout_block(rollout, problem, critic_results.get(rollout.id), mark, own)
        rows.append(_row(rollout, problem, mark, own))
    # A round scale that exceeds nine in ten of the credits above 0.05 nats.
    values = np.abs([value for credit in probe.credits for value in credit.values])
    goal = np.percentile(values[values > 0.05], 90) if np.any(values > 0.05) else 1.0
    index = {
        "unit": UNIT,
        "scale": next((scale for scale in _SCALES if scale >= goal), _SCALES[-1]),
        "contexts": list(probe.contexts),
        "first": _first(rows),
        "hidden": HIDDEN.pattern,
        "names": _names(),
        "elements": sorted(markdown.ELEMENTS),
        "mathml": sorted(markdown.MATHML),
        "attributes": sorted(markdown.ATTRIBUTES),
        "rollouts": rows,
    }
    return index, blocks


def _first(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return what the page opens with: the first marked rollout, and the context with the strongest credit there."""
    with_credit = [number for number, row in enumerate(rows) if any(row["measures"])]
    marked = [number for number in with_credit if rows[number]["step"] is not None]
    number = next(iter([*marked, *with_credit]), 0)
    means = [
        max((abs(value) for name, value in (measures or {}).items() if name != "negative"), default=0.0)
        for measures in (rows[number]["measures"] if rows else ())
    ]
    return {"rollout": number, "context": means.index(max(means)) if means else 0}


@cache
def join_scripts() -> str:
    """Join the page's scripts into one."""
    scripts = ((_FOLDER / f"{name}.js").read_text("utf-8") for name in ("text", "solution", "list", "events", "page"))
    return "\n".join(['"use strict";', *scripts])


def _block(head: object, *numbers: np.ndarray) -> str:
    """Pack JSON, a zero byte, and numbers below 2²⁴: all their low bytes, all middle bytes, all high bytes."""
    flat = np.concatenate(numbers or [np.zeros(0)]).astype("<u4")
    planes = flat.view(np.uint8).reshape(-1, 4)[:, :3].T.tobytes()
    text = json.dumps(head, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode() + b"\0" + planes)).decode()


def _rollout_block(
    rollout: Rollout, problem: Problem | None, answer: CriticResult | None, mark: Mark | None, credits: _Credits
) -> str:
    numbers: list[np.ndarray] = []

    def span(values: np.ndarray) -> list[int]:
        start = sum(map(len, numbers))
        numbers.append(np.rint(values))
        return [start, start + len(values)]

    def scores(log_probs: Sequence[float], entries: Sequence[TopTokens]) -> dict[str, Any]:
        packed: dict[str, Any] = {"logs": span(np.array(log_probs) / -UNIT), "top": None}
        if len(set(map(len, entries))) == 1:  # else none, or from elsewhere
            ids, top_logs = np.array(entries).reshape(-1, 2).T
            packed["top"] = {"ids": span(ids), "logs": span(top_logs / -UNIT)}
        return packed

    ends = [*rollout.token_starts[1:], len(rollout.text)]
    regions = token_regions(rollout, mark)
    trace = parse_rollout(rollout)
    sections: list[dict[str, Any]] = [
        {"label": f"step {k}", "step": k, "first": first} for k, (first, _) in enumerate(regions.steps, start=1)
    ]
    if trace.answer_section is not None:
        sections[-1]["label"] = "answer"
    if trace.is_program and regions.steps and regions.steps[-1][1] < len(rollout.completion_ids):
        sections.append({"label": "prose", "step": 0, "first": regions.steps[-1][1]})
    sections.sort(key=lambda section: section["first"])
    if not sections or sections[0]["first"] > 0:
        sections.insert(0, {"label": "prose" if trace.is_program else "", "step": 0, "first": 0})
    first, last = regions.error or (0, 0)
    wrong = first if regions.departure is None else regions.departure
    title, reading = "", []
    if isinstance(answer, Critique):
        title, reading = f"Critique by {answer.critic}, case {answer.case}", markdown.parse(answer.text)
    elif answer:
        title, reading = f"No critique: {answer.reason}", [answer.detail]
    student = next((credit for credit in credits if credit), None)
    head = {
        "ids": rollout.completion_ids,
        "pieces": [rollout.text[start:end] for start, end in zip(rollout.token_starts, ends, strict=False)],
        "sections": sections,
        "mark": mark and {"step": mark.step, "first": first, "last": last, "wrong": wrong, "source": mark.source},
        "reading": markdown.parse(rollout.text),
        "problem": problem
        and {"reading": markdown.parse(problem.statement), "answer": problem.answer, "solution": problem.solution},
        "critique": answer and {"title": title, "reading": reading},
        "student": student and scores(student.student, student.student_top),
        "credits": [
            credit and {"prompt": credit.prompt, **scores(credit.teacher, credit.teacher_top)} for credit in credits
        ],
    }
    return _block(head, *numbers)


def _row(rollout: Rollout, problem: Problem | None, mark: Mark | None, credits: _Credits) -> dict[str, Any]:
    def measures(credit: Credit) -> dict[str, float]:
        if not credit.values:
            return {}
        values, means = np.array(credit.values), rollout_means(rollout, credit, mark)
        means = {key: means[key] for key in ("before", "at", "after") if key in means}
        means |= {"mean": float(values.mean()), "negative": float((values < 0).mean())}
        return {key: round(value, 4) for key, value in means.items()}

    grade, statement = rollout.grade, problem.statement[:2000] if problem else ""
    return {
        "id": rollout.id,
        "search": f"{rollout.id} {statement} {grade.final_answer if grade else ''}".lower(),
        "correct": grade.correct if grade else None,
        "finish": rollout.finish,
        "step": mark and mark.step,
        "tokens": len(rollout.completion_ids),
        "measures": [credit and measures(credit) for credit in credits],
    }


@cache
def _names() -> dict[str, str]:
    """Return the names of the characters that are shown by their code points."""
    characters = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x10000), *range(0xE0000, 0xE0080))]
    return {
        f"{ord(character):04X}": name.lower()
        for character in characters
        if HIDDEN.match(character) and (name := unicodedata.name(character, ""))
    }
