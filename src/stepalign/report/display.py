"""Numbers, tables and foreign text as they appear on pages, and the Jinja templates of pages.

Shares become percent, differences of shares points. Text that a model or a data set wrote becomes HTML in which no
character is hidden: control, zero-width and bidirectional characters appear as their code points.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

import stepalign
from stepalign import trace as traces
from stepalign.critics.stats import OUTCOMES
from stepalign.evaluation.metrics import Metric
from stepalign.evaluation.stats import Interval
from stepalign.records import Critique, CritiqueFailure, Rollout
from stepalign.report import palette

FIGURE_2: tuple[Metric, ...] = ("avg", "maj", "pass", "length")
_COUNTS: dict[Metric, str] = {"length": "tokens", "lines": "lines"}
"""Units of the metrics that are no shares."""

# C0 and C1 without tab and line feed; soft hyphen; zero-width and bidirectional controls; line and paragraph
# separators; byte-order mark; tags; lone surrogates. Joiners stay: scripts and emoji need them.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_MAX_CHARACTERS = 20_000
"""Of one text. Longer ones are whole in the run's folder."""


@dataclass(frozen=True)
class Cell:
    """One value of a table, with small print below it."""

    text: str
    notes: tuple[str, ...] = ()
    bold: bool = False

    def __str__(self) -> str:
        return " ".join([f"**{self.text}**" if self.bold else self.text, *self.notes])


@dataclass(frozen=True)
class Table:
    """A table with named rows, for a page or for Markdown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [f"{self.title}:", "", f"| | {' | '.join(self.columns)} |", "|---" * (len(self.columns) + 1) + "|"]
        return "\n".join([*lines, *(f"| {name} | {' | '.join(map(str, cells))} |" for name, cells in self.rows)])


def label(metric: Metric, n: int) -> str:
    """Return a metric's name as the paper writes it."""
    names = {
        "length": "Mean answer length",
        "lines": "Mean lines of code",
        "formatted": "Format accuracy",
        "truncated": "Truncation rate",
    }
    return names.get(metric, f"{metric.capitalize()}@{n}")


def value(metric: Metric, number: float, places: int = 1) -> str:
    """Return a metric's value: `35.8 %`, or tokens `1,996.1`."""
    return f"{number:,.{places}f}" if metric in _COUNTS else f"{100 * number:.{places}f} %"


def unit(metric: Metric) -> str:
    """Return the unit of the metric's differences."""
    return _COUNTS.get(metric, "points")


def difference(metric: Metric, number: float) -> str:
    """Return a signed difference, without its unit: `+6.4`, `−1.2`, `0.0`."""
    digits = f"{abs(number if metric in _COUNTS else 100 * number):,.1f}"
    return ("" if digits == "0.0" else "+" if number > 0 else "−") + digits


def value_cell(metric: Metric, interval: Interval, *notes: str, bold: bool = False) -> Cell:
    """Return a metric's value above its interval."""
    ends = f"[{value(metric, interval.low)}, {value(metric, interval.high)}]"
    return Cell(value(metric, interval.value, 2), (ends, *notes), bold)


def difference_cell(metric: Metric, change: Interval) -> Cell:
    """Return a difference of a metric above its interval."""
    ends = f"[{difference(metric, change.low)}, {difference(metric, change.high)}]"
    notes = (ends, "includes zero") if change.includes_zero else (ends,)
    return Cell(f"{difference(metric, change.value)} {unit(metric)}", notes)


def duration(seconds: float) -> str:
    """Return `42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def rate(number: float) -> str:
    """Return units a second with the digits that matter."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def count(number: int, noun: str) -> str:
    """Return `1 problem`, `30 problems`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def visible(text: str) -> Markup:
    """Escape foreign text, with each hidden or reordering character as its code point."""
    parts, end = [], 0
    for match in HIDDEN.finditer(text):
        name = unicodedata.name(match[0], "control character").lower()
        code_point = Markup('<span class="control" title="{}">U+{:04X}</span>').format(name, ord(match[0]))
        parts += [escape(text[end : match.start()]), code_point]
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def visible_text(text: str) -> str:
    """Write each hidden or reordering character as its code point, where there can be no element."""
    return HIDDEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


def long_text(text: str) -> Markup:
    """Escape a foreign text, cut where it is very long."""
    if len(text) <= _MAX_CHARACTERS:
        return visible(text)
    cut = Markup('\n<span class="note">… {:,} more characters</span>').format(len(text) - _MAX_CHARACTERS)
    return visible(text[:_MAX_CHARACTERS]) + cut


def rollout_text(rollout: Rollout, critique: Critique | CritiqueFailure | None) -> Markup:
    """Escape a rollout's text, with the first wrong step marked where a critique names one."""
    text, first_error = rollout.text, critique.first_error if isinstance(critique, Critique) else None
    try:
        wrong = None if first_error is None else traces.parse_rollout(rollout).section(first_error)
    except IndexError:  # a critique may count steps that the rollout does not have
        wrong = None
    if wrong is None:
        return long_text(text)
    mark = Markup("<mark>{}</mark>").format(long_text(text[wrong.start : wrong.end]))
    return long_text(text[: wrong.start]) + mark + long_text(text[wrong.end :])


@cache
def environment(*folders: Path) -> Environment:
    """Return the templates beside this file, and those in `folders`."""
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in (visible, visible_text, duration, rate)} | {
        "text": long_text
    }
    environment.globals |= {function.__name__: function for function in (count, difference, unit, label, value)}
    environment.globals |= {"rollout_text": rollout_text, "check_outcomes": OUTCOMES, "tile_metrics": FIGURE_2}
    environment.globals["stage_colours"] = palette.STAGES
    environment.globals["version"] = stepalign.__version__
    return environment
