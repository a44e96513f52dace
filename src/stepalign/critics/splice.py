"""Splice mode: the model judges and corrects, the program copies.

The model returns JSON (`SplicedCritique`, sent to the server as `response_format`): the case, a verdict a step, and
the correction from the first wrong step on. The correct steps are the solver's own text, put in by the program, so
the copy is exact by construction and costs no output tokens. What comes out is the same `ParsedCritique` that copy
mode reads. In case B the steps behind the completed one are the solver's own too.

A server that ignores `response_format` leaves it to the model: JSON in fences, with text around it, with raw line
breaks or single backslashes before LaTeX commands is read as what was meant.
"""

import json
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepalign.critics import schema
from stepalign.critics.schema import CritiqueFormatError, ParsedCritique
from stepalign.io import explain
from stepalign.records import Case, Verdict
from stepalign.trace import Trace


class SplicedCritique(BaseModel):
    """What the model returns. The one source of the JSON schema; defaults serve models that leave keys out."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    case: Case
    verdicts: list[bool] = Field(description="One for each step in order, true for a correct step")
    first_wrong_step: int = Field(default=0, ge=0, description="Counted from 1; 0 if there is none")
    reason: str = Field(default="", description="Why that step is wrong, short, without quoting it")
    corrected_step: str = Field(default="", description="That step as it should have been, its heading included")
    continuation: str = Field(default="", description="The rest of the solution, with the final answer in a box")


def response_format() -> dict[str, Any]:
    """The request's `response_format`: every key required, none other allowed."""
    whole = SplicedCritique.model_json_schema(mode="serialization")
    properties = {
        name: {key: value for key, value in one.items() if key not in ("title", "default")}
        for name, one in whole["properties"].items()
    }
    return {
        "type": "json_schema",
        "json_schema": {
            "name": "critique",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }


def parse(text: str, trace: Trace) -> ParsedCritique:
    """Read a spliced critique and put the solver's own text in.

    Raises:
        CritiqueFormatError: with what could not be accepted.
    """
    found = _read(text)
    wrong = [number for number, correct in enumerate(found.verdicts, start=1) if not correct]
    first = wrong[0] if wrong else 0
    if found.first_wrong_step != first:
        raise CritiqueFormatError(
            f"puts the first wrong step at {found.first_wrong_step}, its verdicts at {first or 'none'}"
        )
    schema.fit(found.case, first or None, len(found.verdicts), trace)
    verdicts = tuple(
        Verdict(step=number, correct=correct, reason=" ".join(found.reason.split()) if number == first else "")
        for number, correct in enumerate(found.verdicts, start=1)
    )
    if not first:
        return ParsedCritique("A", verdicts, schema.original(trace, None))
    if not found.corrected_step.strip():
        raise CritiqueFormatError(f"has no corrected step {first}")
    continuation = found.continuation
    if found.case == "B" and not continuation.strip():
        continuation = _behind(trace, first)
    return ParsedCritique(
        found.case,
        verdicts,
        schema.original(trace, first),
        schema.trim(found.corrected_step).strip(),
        schema.trim(continuation).strip(),
    )


def written(critique: ParsedCritique, trace: Trace) -> str:
    """The JSON that a model would have to write for a critique; what `parse` reads as that critique."""
    first = critique.first_error or 0
    behind = critique.case == "B" and critique.continuation == schema.trim(_behind(trace, first)).strip()
    found = SplicedCritique(
        case=critique.case,
        verdicts=[verdict.correct for verdict in critique.verdicts],
        first_wrong_step=first,
        reason=critique.verdicts[first - 1].reason if first else "",
        corrected_step=critique.corrected_step,
        continuation="" if behind else critique.continuation,
    )
    return json.dumps(found.model_dump(), ensure_ascii=False)


def _behind(trace: Trace, k: int) -> str:
    """The solver's own text behind step k."""
    return trace.text[trace.section(k).end :] if k < schema.sections(trace) else ""


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────

_PLACES = 16
"""Opening braces at which JSON is looked for."""
_DECODER = json.JSONDecoder(strict=False)  # line breaks within strings are what models write


def _read(text: str) -> SplicedCritique:
    fault = "is not JSON"
    place = -1
    for _ in range(_PLACES):
        place = text.find("{", place + 1)
        if place < 0:
            break
        for attempt in (text[place:], _STRAY.sub(r"\\\\", text[place:])):
            try:
                value = _DECODER.raw_decode(attempt)[0]
            except (ValueError, RecursionError):
                continue
            try:
                return SplicedCritique.model_validate(_mended(value))
            except ValidationError as error:
                fault = f"is not the JSON that was asked for: {explain(error)}"
            break
    raise CritiqueFormatError(fault)


_STRAY = re.compile(r"\\(?![\"\\/bfnrtu])|\\(?=u(?![0-9a-fA-F]{4}))")
"""A backslash that begins no escape of JSON's: `\\(`, `\\sqrt`."""

_CONTROLS = re.compile(
    r"\x08|\x0c|\t(?=imes|ext|heta|frac|an\b|herefore|o\b|riangle)|\r(?=ight|ho\b|angle)|\n(?=eq\b|abla|otin\b)"
)
"""LaTeX commands whose backslash JSON took for an escape's: `\\boxed`, `\\frac`, `\\times`, `\\right`, `\\neq`."""
_LETTERS = {"\x08": r"\b", "\x0c": r"\f", "\t": r"\t", "\r": r"\r", "\n": r"\n"}


def _mended(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: _CONTROLS.sub(lambda match: _LETTERS[match[0]], one) if isinstance(one, str) else one
        for key, one in value.items()
    }
