"""A probe's measures as text: what the command prints."""

from stepalign.probing.folder import Estimate, Measures

_COLUMNS = {
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
_SHARES = {"correct_negative", "diffuseness", "first_error"}


def table(measures: Measures) -> str:
    """A row a context with the measures' values and, below each, their intervals; baselines last."""
    rows = {**measures.contexts, **measures.baselines}
    width = max(map(len, rows), default=0)
    lines = [" " * width + "".join(f"{title:>16}" for title in _COLUMNS.values())]
    for name, found in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{_value(key, found.get(key)):>16}" for key in _COLUMNS))
        lines.append(" " * width + "".join(f"{_interval(key, found.get(key)):>16}" for key in _COLUMNS))
    counts = {key: max((found[key].n for found in rows.values() if key in found), default=0) for key in _COLUMNS}
    lines.append(f"{'n':<{width}}" + "".join(f"{count:>16}" for count in counts.values()))
    lines.append("Nats a token, shares in %; below each the 95 % interval over problems. docs/probe.md defines them.")
    return "\n".join(lines)


def _value(key: str, estimate: Estimate | None) -> str:
    return "" if estimate is None else _number(key, estimate.value)


def _interval(key: str, estimate: Estimate | None) -> str:
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
