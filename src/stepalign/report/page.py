"""The page: Jinja templates beside this file, autoescaped, with the style sheet and the figures inside."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import stepalign
from stepalign import trace as traces
from stepalign.critics.stats import OUTCOMES
from stepalign.records import Critique, CritiqueFailure, Rollout
from stepalign.report import display, figures, timeline
from stepalign.report.comparison import Comparison
from stepalign.report.panels import FIGURE_2, Panel
from stepalign.report.summary import Summary, count

_SHOWN_CHARACTERS = 20_000
"""Of one text. What is longer is in the run's folder."""


def of_run(
    summary: Summary, *, evaluation: Sequence[Panel], training: Sequence[Panel], probe: Sequence[Panel] = ()
) -> str:
    """A run's report as HTML."""
    return (
        environment()
        .get_template("run.html.jinja")
        .render(
            summary=summary,
            run=summary.run,
            timeline=Markup(timeline.svg(summary.run.timeline)),
            evaluation=[(panel.title, _svg(panel)) for panel in evaluation],
            training=[(panel.title, _svg(panel)) for panel in training],
            probe=[(panel.title, _svg(panel)) for panel in probe],
        )
    )


def of_comparison(comparison: Comparison, *, evaluation: Sequence[Panel]) -> str:
    """A comparison's page as HTML."""
    return (
        environment()
        .get_template("comparison.html.jinja")
        .render(comparison=comparison, evaluation=[(panel.title, _svg(panel)) for panel in evaluation])
    )


def _svg(panel: Panel) -> Markup:
    return Markup(figures.svg(panel))  # Matplotlib escapes the labels


@cache
def environment(*folders: Path) -> Environment:
    """The templates beside this file, and those in `folders`."""
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": display.visible,
        "duration": display.duration,
        "rate": display.rate,
        "text": shown,
    }
    environment.globals |= {
        "attempt": attempt,
        "check_outcomes": OUTCOMES,
        "count": count,
        "difference": display.difference,
        "label": display.label,
        "unit": display.unit,
        "value": display.value,
        "metrics": FIGURE_2,
        "version": stepalign.__version__,
    }
    return environment


def shown(text: str) -> Markup:
    """A foreign text, cut where it is very long, with nothing hidden in it."""
    if len(text) <= _SHOWN_CHARACTERS:
        return display.visible(text)
    return display.visible(text[:_SHOWN_CHARACTERS]) + _left_out(len(text) - _SHOWN_CHARACTERS)


def attempt(rollout: Rollout, answer: Critique | CritiqueFailure | None) -> Markup:
    """A rollout's text with the first wrong step, where a critique found one, marked."""
    first_error = answer.first_error if isinstance(answer, Critique) else None
    if first_error is None:
        return shown(rollout.text)
    try:
        wrong = traces.parse(rollout.text).section(first_error)
    except IndexError:  # a critique may count steps that the rollout does not have
        return shown(rollout.text)
    before, after = rollout.text[: wrong.start], rollout.text[wrong.end :]
    mark = Markup("<mark>{}</mark>").format(shown(rollout.text[wrong.start : wrong.end]))
    return shown(before) + mark + shown(after)


def _left_out(characters: int) -> Markup:
    return Markup('\n<span class="note">… {:,} more characters</span>').format(characters)
