"""How values and foreign text are shown.

Shares become percent, differences of shares points, and text that a model or a data set wrote becomes HTML
in which no character can hide: control, zero-width and bidirectional characters appear as their code
points.
"""

import re
import unicodedata

from markupsafe import Markup, escape

from stepalign.evaluation.metrics import Metric

# C0 and C1 without tab and line feed; soft hyphen; zero-width and bidirectional controls; line and paragraph
# separators; byte-order mark; tags; lone surrogates. Joiners stay: scripts and emoji need them.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def label(metric: Metric, n: int) -> str:
    """A metric's name as the paper writes it."""
    names: dict[Metric, str] = {
        "avg": f"Avg@{n}",
        "maj": f"Maj@{n}",
        "pass": f"Pass@{n}",
        "length": "Mean answer length",
        "formatted": "Format accuracy",
        "truncated": "Truncation rate",
    }
    return names[metric]


def value(metric: Metric, number: float, places: int = 1) -> str:
    """A metric's value: `35.8 %`, or tokens `1,996.1`."""
    return f"{number:,.{places}f}" if metric == "length" else f"{100 * number:.{places}f} %"


def unit(metric: Metric) -> str:
    """What a difference of the metric is counted in."""
    return "tokens" if metric == "length" else "points"


def difference(metric: Metric, number: float) -> str:
    """A signed difference, without its unit: `+6.4`, `−1.2`, `0.0`."""
    shown = f"{abs(number if metric == 'length' else 100 * number):,.1f}"
    sign = "" if shown == "0.0" else "+" if number > 0 else "−"
    return sign + shown


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def rate(number: float) -> str:
    """Units a second, with as many digits as matter."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def visible(text: str) -> Markup:
    """Foreign text as escaped HTML, with every character that could hide or turn text round as its code."""
    parts = []
    end = 0
    for match in HIDDEN.finditer(text):
        name = unicodedata.name(match[0], "control character").lower()
        parts += [
            escape(text[end : match.start()]),
            Markup('<span class="control" title="{}">U+{:04X}</span>').format(name, ord(match[0])),
        ]
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])
