"""One optimizer step by the clock: what ran when, and what waited for what."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepalign.report.figures import COLOURS, MUTED, STYLE, inline, raster

_ROWS = {
    "sample": "sampling",
    "answered": "critic",
    "critique": "waiting for it",
    "base": "base",
    "teacher": "teacher",
    "student": "student",
    "optimizer": "optimizer",
}
"""A step's stages in the order of its data, by their names in `timeline.jsonl`."""
_WIDTH, _ROW = 9.6, 0.3
_LANES = 3.0
"""The critic's row is so many times as high: each critique has a line of its own there."""

_LEAST = 5e-4
"""Seconds."""

Spans = Sequence[Sequence[float]]


def svg(step: Mapping[str, Any]) -> str:
    """A step's timeline as an inline SVG element; nothing where it has no stages."""
    with matplotlib.rc_context(STYLE):
        return inline(_figure(step)) if _rows(step) else ""


def png(step: Mapping[str, Any]) -> bytes:
    """The same as a PNG, on white."""
    with matplotlib.rc_context(STYLE):
        return raster(_figure(step)) if _rows(step) else b""


def _rows(step: Mapping[str, Any]) -> dict[str, Spans]:
    """What took any time."""
    return {name: step[name] for name in _ROWS if sum(end - start for start, end in step.get(name, ())) > _LEAST}


def _figure(step: Mapping[str, Any]) -> Figure:
    rows = _rows(step)
    heights = {name: _LANES if name == "answered" and len(spans) > 1 else 1.0 for name, spans in rows.items()}
    figure = Figure(figsize=(_WIDTH, _ROW * (sum(heights.values()) + 2)), layout="constrained")
    axes = figure.subplots()
    ticks, top = [], 0.0
    stages = [name for name in rows if name != "answered"]
    for name, spans in rows.items():
        # The colours of the bar above it on the page; the critic works elsewhere.
        colour = MUTED if name == "answered" else COLOURS[stages.index(name) % len(COLOURS)]
        _draw(axes, spans, top, heights[name], colour)
        ticks.append(top + heights[name] / 2)
        top += heights[name]
    axes.set_yticks(ticks, [_ROWS[name] for name in rows])
    axes.set_ylim(top, 0)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds")
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    return figure


def _draw(axes: Axes, spans: Spans, top: float, height: float, colour: str) -> None:
    """A row of bars; where it is high, one under the other in the order in which they begin."""
    lane = 0.8 * height / len(spans) if height > 1 else 0.0
    for place, (start, end) in enumerate(sorted(map(tuple, spans))):
        at = top + 0.1 * height + place * lane
        axes.broken_barh([(start, end - start)], (at, lane or 0.8 * height), color=colour, linewidth=0)
