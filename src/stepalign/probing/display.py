"""A probe's measures as text, as the command prints them."""

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
    "first_token": ("1st token", "mean credit of the first token, nats"),
}
"""Title and meaning of each printed measure."""


def table(measures: CreditMeasures) -> str:
    """Format a row of values and a row of intervals for each context and baseline."""
    rows = [("", [title for title, _ in COLUMNS.values()])]
    for name, intervals in (*measures.contexts.items(), *measures.baselines.items()):
        cells = [format_cell(key, intervals.get(key)) for key in COLUMNS]
        rows += [(name, [value for value, _ in cells]), ("", [ends for _, ends in cells])]
    rows.append(("n", [str(largest_n(measures, key)) for key in COLUMNS]))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}" + "".join(f"{cell:>16}" for cell in cells) for name, cells in rows]
    lines.append("Nats a token, shares in %; below each the 95 % interval over problems. docs/probe.md defines them.")
    return "\n".join(lines)


def largest_n(measures: CreditMeasures, key: str) -> int:
    """Return the largest number of rollouts behind a measure."""
    rows = (*measures.contexts.values(), *measures.baselines.values())
    return max((intervals[key].n for intervals in rows if key in intervals), default=0)


def format_cell(key: str, interval: Interval | None) -> tuple[str, str]:
    """Format a measure's value and the ends of its interval, both empty for None, in its unit."""
    if interval is None:
        return "", ""
    scale = 100 if key in ("correct_negative", "diffuseness", "first_error") else 1
    spec = ".0f" if scale == 100 else ".2f" if key == "auroc" else "+.2f"
    value, low, high = (format(scale * number, spec) for number in (interval.value, interval.low, interval.high))
    return value, "" if interval.low == interval.high else f"[{low}, {high}]"
