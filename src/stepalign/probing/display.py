"""A probe's measures as text: what the command prints."""

from stepalign.evaluation.credit_measures import CreditMeasures
from stepalign.evaluation.stats import Interval

COLUMNS = {
    "correct": "correct",
    "correct_negative": "negative",
    "before": "before",
    "at": "at error",
    "departure": "1st wrong",
    "after": "after",
    "contrast": "contrast",
    "diffuseness": "diffuse",
    "first_error": "1st error",
    "auroc": "AUROC",
    "first_token": "1st token",
}
MEANINGS = {
    "correct": "mean credit on fully correct solutions, nats",
    "correct_negative": "share of their tokens with credit below zero",
    "before": "mean credit before the error, nats",
    "at": "mean credit of the error's own tokens, nats",
    "departure": "mean credit of the first wrong token alone, nats",
    "after": "mean credit after the error, nats",
    "contrast": "mean credit of all else minus that of the error's tokens, nats",
    "diffuseness": "share of the negative credit, up to the wrong step's end, that falls on right steps",
    "first_error": "how often the step with the lowest credit is the wrong one",
    "auroc": "how often a wrong step scores below a right one",
    "first_token": "mean credit of the first token, nats",
}
_SHARES = {"correct_negative", "diffuseness", "first_error"}


def table(measures: CreditMeasures) -> str:
    """A row a context with the measures' values and, below each, their intervals; baselines last."""
    rows = {**measures.contexts, **measures.baselines}
    width = max(map(len, rows), default=0)
    lines = [" " * width + "".join(f"{title:>16}" for title in COLUMNS.values())]
    for name, found in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{value(key, found.get(key)):>16}" for key in COLUMNS))
        lines.append(" " * width + "".join(f"{interval(key, found.get(key)):>16}" for key in COLUMNS))
    counts = {key: max((found[key].n for found in rows.values() if key in found), default=0) for key in COLUMNS}
    lines.append(f"{'n':<{width}}" + "".join(f"{count:>16}" for count in counts.values()))
    lines.append("Nats a token, shares in %; below each the 95 % interval over problems. docs/probe.md defines them.")
    return "\n".join(lines)


def value(key: str, estimate: Interval | None) -> str:
    """A measure's value in its unit; nothing where it was not measured."""
    return "" if estimate is None else _number(key, estimate.value)


def interval(key: str, estimate: Interval | None) -> str:
    """Its interval, where that has a width."""
    if estimate is None or estimate.low == estimate.high:
        return ""
    return f"[{_number(key, estimate.low)}, {_number(key, estimate.high)}]"


def _number(key: str, value: float) -> str:
    return (
        f"{100 * value:.0f}"
        if key in _SHARES or key.endswith("_negative")
        else f"{value:+.2f}"
        if key != "auroc"
        else f"{value:.2f}"
    )
