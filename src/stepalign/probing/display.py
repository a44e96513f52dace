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

_SHARES = {"correct_negative", "diffuseness", "first_error"}


def table(measures: CreditMeasures) -> str:
    """Format a row of values and a row of intervals for each context and baseline."""
    rows = {**measures.contexts, **measures.baselines}
    width = max(map(len, rows), default=0)

    def line(name: str, cells: list[str]) -> str:
        return f"{name:<{width}}" + "".join(f"{cell:>16}" for cell in cells)

    lines = [line("", [title for title, _ in COLUMNS.values()])]
    for name, intervals in rows.items():
        lines.append(line(name, [format_value(key, intervals.get(key)) for key in COLUMNS]))
        lines.append(line("", [format_interval(key, intervals.get(key)) for key in COLUMNS]))
    lines.append(line("n", [str(largest_n(measures, key)) for key in COLUMNS]))
    lines.append("Nats a token, shares in %; below each the 95 % interval over problems. docs/probe.md defines them.")
    return "\n".join(lines)


def largest_n(measures: CreditMeasures, key: str) -> int:
    """Return the largest number of rollouts behind a measure."""
    rows = (*measures.contexts.values(), *measures.baselines.values())
    return max((intervals[key].n for intervals in rows if key in intervals), default=0)


def format_value(key: str, interval: Interval | None) -> str:
    """Format a measure's value in its unit; empty for None."""
    return "" if interval is None else _number(key, interval.value)


def format_interval(key: str, interval: Interval | None) -> str:
    """Format the ends of a measure's interval; empty without a width."""
    if interval is None or interval.low == interval.high:
        return ""
    return f"[{_number(key, interval.low)}, {_number(key, interval.high)}]"


def _number(key: str, value: float) -> str:
    if key in _SHARES:
        return f"{100 * value:.0f}"
    return f"{value:.2f}" if key == "auroc" else f"{value:+.2f}"
