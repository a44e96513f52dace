"""Pages: Jinja templates beside this file, autoescaped, with the style sheet and the figures inside."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import stepalign
from stepalign import trace as traces
from stepalign.critics.stats import OUTCOMES
from stepalign.records import Critique, CritiqueFailure, Rollout
from stepalign.report import display, figures
from stepalign.report.comparison import Comparison
from stepalign.report.display import Table
from stepalign.report.panels import FIGURE_2, Panel
from stepalign.report.summary import Summary

_MAX_CHARACTERS = 20_000
"""Of one text. Longer ones are whole in the run's folder."""


def run_page(
    summary: Summary, *, evaluation: Sequence[Panel], training: Sequence[Panel], probe: Sequence[Panel] = ()
) -> str:
    """Render a run's report as HTML."""
    return (
        environment()
        .get_template("run.html.jinja")
        .render(
            summary=summary,
            run=summary.run,
            timeline=Markup(figures.timeline_svg(summary.run.timeline, [stage.name for stage in summary.stages])),
            evaluation=_drawn(evaluation),
            training=_drawn(training),
            probe=_drawn(probe),
        )
    )


def comparison_page(comparison: Comparison, *, evaluation: Sequence[Panel], others: Sequence[Table] = ()) -> str:
    """Render a comparison as HTML."""
    template = environment().get_template("comparison.html.jinja")
    return template.render(comparison=comparison, evaluation=_drawn(evaluation), others=others)


def _drawn(panels: Sequence[Panel]) -> list[tuple[str, Markup]]:
    return [(panel.title, Markup(figures.svg(panel))) for panel in panels]  # Matplotlib escapes the labels


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
    environment.filters |= {
        "visible": display.visible,
        "duration": display.duration,
        "rate": display.rate,
        "text": long_text,
    }
    environment.globals |= {
        "rollout_text": rollout_text,
        "check_outcomes": OUTCOMES,
        "count": display.count,
        "difference": display.difference,
        "unit": display.unit,
        "label": display.label,
        "value": display.value,
        "tile_metrics": FIGURE_2,
        "version": stepalign.__version__,
    }
    return environment


def long_text(text: str) -> Markup:
    """Escape a foreign text, cut where it is very long."""
    if len(text) <= _MAX_CHARACTERS:
        return display.visible(text)
    cut = Markup('\n<span class="note">… {:,} more characters</span>').format(len(text) - _MAX_CHARACTERS)
    return display.visible(text[:_MAX_CHARACTERS]) + cut


def rollout_text(rollout: Rollout, critique: Critique | CritiqueFailure | None) -> Markup:
    """Escape a rollout's text, with the first wrong step marked where a critique names one."""
    first_error = critique.first_error if isinstance(critique, Critique) else None
    if first_error is None:
        return long_text(rollout.text)
    try:
        wrong = traces.parse(rollout.text).section(first_error)
    except IndexError:  # a critique may count steps that the rollout does not have
        return long_text(rollout.text)
    before, step, after = rollout.text[: wrong.start], rollout.text[wrong.start : wrong.end], rollout.text[wrong.end :]
    return long_text(before) + Markup("<mark>{}</mark>").format(long_text(step)) + long_text(after)
