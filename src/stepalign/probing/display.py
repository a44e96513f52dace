"""A probe's measures as text, as the command prints them."""

from collections.abc import Mapping

from stepalign.evaluation.metrics import CreditMeasures
from stepalign.evaluation.stats import Interval

COLUMNS = {
    "correct": ("correct", "mean credit on fully correct solutions, nats"),
    "correct_negative": ("negative", "share of their tokens with credit below zero"),
    "before": ("before", "mean credit before the error, nats"),
    "at": ("at error", "mean credit of the error's own tokens, nats"),
    "departure": ("1st wrong", "mean credit of the first wrong token alone, nats"),
    "after": ("after", "mean credit after the error, nats"),
    "contrast": ("contrast", "mean credit of all else minus that of the error's tokens, nats"),
    "diffuseness": ("diffuse", "share of the negative credit, up to the wrong step's end, that falls on right steps"),
    "first_error": ("1st error", "share of wrong solutions whose step with the lowest credit is the wrong one"),
    "auroc": ("AUROC", "chance that a wrong step scores below a right one"),
    "wrong_lines": ("wrong lines", "mean credit of a program's wrong lines, nats"),
    "right_lines": ("right lines", "mean credit of the other lines of those programs, nats"),
    "prose": ("prose", "mean credit of the text around programs, nats"),
    "wrong_lines_share": ("% wrong", "share of the credit's magnitude that falls on wrong lines"),
    "right_lines_share": ("% right", "share that falls on the other lines of those programs"),
    "prose_share": ("% prose", "share that falls on the text around programs"),
    "first_token": ("1st token", "mean credit of the first token, nats"),
}
"""Title and meaning of each printed measure."""
_TITLE, _CELL, _N, _COLUMNS = 11, 20, 5, 4
"""Characters of a measure's title, of a value with its interval and of n; columns of a block: 100 characters."""


def table(measures: CreditMeasures) -> str:
    """Format a row for each measure and a column for each context and baseline, `_COLUMNS` to a block."""
    given = [*measures.contexts.items(), *measures.baselines.items()]
    blocks = []
    for start in range(0, len(given), _COLUMNS):
        some = given[start : start + _COLUMNS]
        names = [name if len(name) <= _CELL else f"…{name[1 - _CELL :]}" for name, _ in some]
        lines = [" " * _TITLE + "".join(f" {name:>{_CELL}}" for name in names) + f"{'n':>{_N}}"]
        for key, (title, _) in COLUMNS.items():
            if any(key in intervals for _, intervals in some):
                cells = [" ".join(format_cell(key, intervals.get(key))).strip() for _, intervals in some]
                numbers = "".join(f" {cell:>{_CELL}}" for cell in cells)
                lines.append(f"{title:<{_TITLE}}{numbers}{largest_n(measures, key):>{_N}}")
        blocks.append("\n".join(lines))
    note = "Nats a token, shares in %, with 95 % intervals over problems. docs/probe.md defines them."
    return "\n\n".join([*blocks, note])


def remarks(skipped: Mapping[str, int], cut: Mapping[str, int]) -> list[str]:
    """Say what has no credit or contrast, by context and reason, and how many of the teacher's prompts were cut."""
    counts = {**skipped, **{f"{context}: teacher prompt cut": number for context, number in cut.items()}}
    return [f"{reason} ({number})" for reason, number in counts.items()]


def largest_n(measures: CreditMeasures, key: str) -> int:
    """Return the largest number of rollouts behind a measure."""
    rows = (*measures.contexts.values(), *measures.baselines.values())
    return max((intervals[key].n for intervals in rows if key in intervals), default=0)


def format_cell(key: str, interval: Interval | None) -> tuple[str, str]:
    """Format a measure's value and the ends of its interval, both empty for None, in its unit."""
    if interval is None:
        return "", ""
    scale = 100 if key in ("correct_negative", "diffuseness", "first_error") or key.endswith("_share") else 1
    spec = ".0f" if scale == 100 else ".2f" if key == "auroc" else "+.2f"
    ends = (interval.value, interval.low, interval.high)
    value, low, high = (format(scale * number, spec).replace("-", "−") for number in ends)
    return value, "" if interval.low == interval.high else f"[{low}, {high}]"
