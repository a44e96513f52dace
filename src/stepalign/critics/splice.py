"""Splice mode: the model judges and corrects, the program copies.

The model returns JSON (`SplicedCritique`, sent to the server as `response_format`). The program puts in the solver's
own correct steps, so the copy is exact by construction and costs no output tokens. In case B the steps after the
completed one are the solver's own too. A server may ignore `response_format`. So JSON in fences, with text around it,
with raw line breaks or with single backslashes before LaTeX commands is read as well.
"""

import json
import re
from itertools import islice
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from stepalign.critics import schema
from stepalign.critics.schema import CritiqueFormatError, ParsedCritique
from stepalign.io import explain
from stepalign.records import Case, Rollout, Verdict
from stepalign.trace import Trace, parse_rollout


class SplicedCritique(BaseModel):
    """JSON object that the model returns. Defaults serve models that leave keys out."""

    case: Case
    verdicts: list[bool] = Field(description="One for each step in order, true for a correct step")
    first_wrong_step: int = Field(default=0, ge=0, description="Counted from 1; 0 if there is none")
    reason: str = Field(default="", description="Why that step is wrong, short, without quoting it")
    corrected_step: str = Field(default="", description="That step as it should have been, its heading included")
    continuation: str = Field(default="", description="The rest of the solution, with the final answer in a box")


def response_format(rollout: Rollout) -> dict[str, Any]:
    """Return the request's `response_format`: what the rollout's grade and number of steps leave open, nothing else.

    A right answer is of case A or B, a wrong one of D, and one that ran out of tokens of C or D. There is a verdict for
    each step, or one more for the final answer.
    """
    fields = SplicedCritique.model_json_schema()["properties"]
    properties = {
        name: {key: value for key, value in field.items() if key not in ("title", "default")}
        for name, field in fields.items()
    }
    trace = parse_rollout(rollout)
    most, fewest = schema.num_sections(trace), max(len(trace.steps), 1)
    cases = schema.allowed_cases(rollout)
    properties["case"]["enum"] = list(cases)
    properties["verdicts"] |= {"minItems": fewest, "maxItems": most}
    del properties["first_wrong_step"]["minimum"]
    properties["first_wrong_step"]["enum"] = list(range(0 if "A" in cases else 1, most + 1))
    required = {"required": list(properties), "additionalProperties": False}
    value = {"type": "object", "properties": properties, **required}
    return {"type": "json_schema", "json_schema": {"name": "critique", "strict": True, "schema": value}}


def num_judged(rollout: Rollout, trace: Trace) -> int:
    """Count the sections that a critic is asked to judge, at least one.

    They are the steps and, unless the solution is a program or was cut off before it, the final answer.
    """
    has_answer = trace.answer_section is not None or rollout.finish != "length"
    return max(len(trace.steps) + (has_answer and not trace.is_program), 1)


def parse(text: str, trace: Trace) -> ParsedCritique:
    """Read a spliced critique like `schema.parse`, and put the solver's own text in."""
    return put_together(_read(text, repair=not trace.is_program), trace)


def validate(value: Any) -> SplicedCritique:
    """Validate an object, or raise a `CritiqueFormatError` that names its fault."""
    try:
        return SplicedCritique.model_validate(value)
    except ValidationError as error:
        raise CritiqueFormatError(f"is not the JSON that was asked for: {explain(error)}") from None


def put_together(spliced: SplicedCritique, trace: Trace) -> ParsedCritique:
    """Check that a spliced critique fits the trace, and put the solver's own text in."""
    first = next((number for number, correct in enumerate(spliced.verdicts, start=1) if not correct), 0)
    schema.check_fit(spliced.case, first or None, len(spliced.verdicts), trace)
    if (named := spliced.first_wrong_step) != first:
        raise CritiqueFormatError(f"puts the first wrong step at {named}, its verdicts at {first or 'none'}")
    reasons = {first: " ".join(spliced.reason.split())}
    verdicts = tuple(
        Verdict(step=number, correct=correct, reason=reasons.get(number, ""), place=schema.place_of(trace, number))
        for number, correct in enumerate(spliced.verdicts, start=1)
    )
    if not first:
        return ParsedCritique("A", verdicts, schema.original(trace, None))
    if not spliced.corrected_step.strip():
        raise CritiqueFormatError(f"has no corrected step {first}")
    continuation = spliced.continuation
    if spliced.case == "B" and not continuation.strip() and first < schema.num_sections(trace):
        continuation = trace.text[trace.section(first).end :]
    corrected, rest = (_BLANK_LINES.sub("", schema.trim(part)) for part in (spliced.corrected_step, continuation))
    corrected, rest = schema.cut_tail(corrected, rest)
    schema.check_correction(f"{corrected}\n{rest}", trace)
    return ParsedCritique(spliced.case, verdicts, schema.original(trace, first), corrected, rest)


_BLANK_LINES = re.compile(r"\A(?:[ \t]*\n)+")
"""Blank lines before a part. The indentation of a program's line stays."""
_MAX_BRACES = 16
"""Opening braces from which JSON is tried to be read."""
_DECODER = json.JSONDecoder(strict=False)  # models write line breaks within strings


def _read(text: str, *, repair: bool) -> SplicedCritique:
    """Read the first JSON object that is a critique. `repair` restores LaTeX commands."""
    fault = CritiqueFormatError("is not JSON")
    for brace in islice(re.finditer(r"\{", text), _MAX_BRACES):
        for attempt in (text[brace.start() :], _BACKSLASH.sub(_escaped, text[brace.start() :])):
            try:
                value = _DECODER.raw_decode(attempt)[0]
            except (ValueError, RecursionError):
                continue
            try:
                return validate(_repair_latex(value) if repair else value)
            except CritiqueFormatError as error:
                fault = error
            break
    raise fault


_BACKSLASH = re.compile(r"\\(?P<escape>[\"\\/bfnrt]|u[0-9a-fA-F]{4})?")
"""A backslash, with what makes it an escape of JSON: `\\(` and `\\sqrt` are none."""


def _escaped(backslash: re.Match[str]) -> str:
    return backslash[0] if backslash["escape"] else r"\\"


_CONTROLS = re.compile(
    r"\x08|\x0c|\t(?=imes|ext|heta|frac|an\b|herefore|o\b|riangle)|\r(?=ight|ho\b|angle)|\n(?=eq\b|abla|otin\b)"
)
"""LaTeX commands whose backslash JSON reads as an escape: `\\boxed`, `\\frac`, `\\times`, `\\right`, `\\neq`."""
_LETTERS = {"\x08": r"\b", "\x0c": r"\f", "\t": r"\t", "\r": r"\r", "\n": r"\n"}


def _repair_latex(value: dict[str, Any]) -> dict[str, Any]:
    def repaired(text: str) -> str:
        return _CONTROLS.sub(lambda match: _LETTERS[match[0]], text)

    return {key: repaired(item) if isinstance(item, str) else item for key, item in value.items()}
