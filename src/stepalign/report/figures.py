"""Figures: evaluation, training and probe as panels of curves, and a step's timeline, drawn with Matplotlib.

A figure is an SVG element in the page's colours and fonts, or a PNG. Looks are those of `palette`. The same input gives
the same bytes.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stepalign.evaluation.metrics import CreditMeasures, Evaluation
from stepalign.evaluation.stats import Interval
from stepalign.report import display, palette

INK, MUTED, GRID = "#1c2024", "#60666d", "#dde1e5"

# Colours that the page's style sheet replaces, so that a figure follows the page into dark mode.
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule"} | {
    colour: f"--series-{number}" for number, colour in enumerate(palette.COLOURS, start=1)
}

STYLE = matplotlib.rc_params_from_file(Path(__file__).with_suffix(".mplstyle"), use_default_template=False)

WIDTH, _HEIGHT, _LEGEND_ROW = 4.8, 2.9, 0.18
"""Inches of a panel with one row of names below it, and of each further row."""

_STAGES = {"sample": "sampling", "answered": "critic", "critique": "critic wait"} | {
    name: name for name in ("base", "teacher", "student", "optimizer")
}
"""A step's stages in the order of its data, by their names in `timeline.jsonl`."""
_SHORTEST_S = 5e-4
Unit = Literal["share", "tokens", "nats a token"]

_TRAINING: tuple[tuple[str, Unit, dict[str, str]], ...] = (
    ("Loss", "nats a token", {"loss": "loss", "kl": "KL(teacher‖student)"}),
    ("Entropy", "nats a token", {"entropy_student": "student", "entropy_teacher": "teacher"}),
    ("Agreement of teacher and student", "share", {"agreement": "same likeliest token"}),
    ("Training rollouts", "share", {"correct": "correct", "formatted": "well formatted", "truncated": "truncated"}),
    ("Clipped tokens", "share", {"clipped": "clipped"}),
)

_PROBE: tuple[tuple[str, Unit, str], ...] = (
    ("Credit of correct rollouts", "nats a token", "correct"),
    ("Credit before the error", "nats a token", "before"),
    ("Credit at the error", "nats a token", "at"),
    ("First error found", "share", "first_error"),
)


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    """NaN leaves a gap."""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """Ends of the intervals; empty for a line without."""

    @classmethod
    def of(cls, label: str, intervals: Sequence[tuple[float, Interval]]) -> "Curve":
        """Make a curve of intervals by their place on the x axis."""
        x, y, low, high = zip(*((at, i.value, i.low, i.high) for at, i in intervals), strict=True)
        return cls(label, x, y, low, high)


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    unit: Unit
    curves: Sequence[Curve]
    x_label: str = "optimizer step"


def evaluation_panels(
    by_run: Mapping[str, Sequence[Evaluation]],
    x_label: str = "optimizer step",
    x: Callable[[str, int], float] = lambda _, step: step,
) -> list[Panel]:
    """Make Figure 2: one panel a metric, one curve an evaluated run, all of one n. `x`: place by label and step."""
    n = next((evaluations[0].n for evaluations in by_run.values() if evaluations), 0)
    panels = []
    for metric in display.FIGURE_2 if n else ():
        curves = [
            Curve.of(run, [(x(run, evaluation.step), evaluation.measures[metric]) for evaluation in evaluations])
            for run, evaluations in by_run.items()
            if evaluations
        ]
        panels.append(Panel(display.label(metric, n), "tokens" if metric == "length" else "share", curves, x_label))
    return panels


def training_panels(steps: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Make the training's panels. A metric that the algorithm does not have has no curve."""

    def finite(number: object) -> float:
        return float(number) if isinstance(number, int | float) and math.isfinite(number) else math.nan

    x = [step["step"] for step in steps]
    panels = []
    for title, unit, labels in _TRAINING:
        curves = [Curve(label, x, [finite(step.get(key)) for step in steps]) for key, label in labels.items()]
        panels.append(Panel(title, unit, [curve for curve in curves if not all(map(math.isnan, curve.y))]))
    return [panel for panel in panels if panel.curves]


def probe_panels(probes: Sequence[tuple[int, CreditMeasures]]) -> list[Panel]:
    """Make the probe's panels: one a measure, one curve a context."""
    panels = []
    for title, unit, name in _PROBE:
        points: dict[str, list[tuple[float, Interval]]] = {}
        for step, measures in probes:
            for context, intervals in measures.contexts.items():
                if name in intervals:
                    points.setdefault(context, []).append((step, intervals[name]))
        panels.append(Panel(title, unit, [Curve.of(context, at) for context, at in points.items()]))
    return [panel for panel in panels if panel.curves]


def inline(drawing: str) -> str:
    """Turn an SVG document into an element in the page's colours and fonts."""
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # unused, and the same in every figure of a page
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    return drawing.replace("'DejaVu Sans'", "var(--sans)")


def lay_out(figure: Figure) -> None:
    """Place what the figure holds. Each save would do it again, and draw everything twice."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine(None)


@matplotlib.rc_context(STYLE)
def vector(figure: Figure) -> str:
    """Save a figure as an SVG document without background."""
    lay_out(figure)
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return buffer.getvalue()


@matplotlib.rc_context(STYLE)
def raster(figure: Figure) -> bytes:
    """Save a figure as a PNG on white."""
    lay_out(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def printable(label: str) -> str:
    """Return a label that the font can draw and the legend can hold: of a long path, the end."""
    font = get_font(findfont("DejaVu Sans"))
    text = "".join(character if font.get_char_index(ord(character)) else "?" for character in label)
    text = text if len(text) <= 40 else "…" + text[-39:]
    return f" {text}" if text.startswith("_") else text  # Matplotlib leaves labels with "_" out of the legend


def looks_of(panels: Iterable[Panel]) -> dict[str, int]:
    """Return the number of each label of these panels, the same in all of them."""
    return palette.numbers(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))


@matplotlib.rc_context(STYLE)
def draw_panels(panels: Sequence[Panel], columns: int = 1, looks: Mapping[str, int] | None = None) -> Figure:
    """Draw panels, row by row, in the looks of `looks_of` these panels or of more."""
    looks = looks or looks_of(panels)
    rows = -(-len(panels) // columns)
    legend_rows = max((-(-len(panel.curves) // _legend_columns(panel)) for panel in panels), default=1)
    height = _HEIGHT + _LEGEND_ROW * (legend_rows - 1)
    figure = Figure(figsize=(WIDTH * columns, height * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid, panels, strict=False):
        for curve in panel.curves:
            draw_curve(axes, curve, looks[curve.label])
        axes.set_title(panel.title)
        axes.set_xlabel(panel.x_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        if panel.unit == "share":
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, 0), min(high, 1))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %"))
        else:
            axes.set_ylabel(panel.unit)
        if len(panel.curves) > 1:  # below the axis' label, whatever the panel's height
            axes.legend(ncols=_legend_columns(panel), loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4)
    return figure


def _legend_columns(panel: Panel) -> int:
    longest = max((len(printable(curve.label)) for curve in panel.curves), default=1)
    return max(1, min(len(panel.curves), 44 // longest))


def draw_curve(axes: Axes, curve: Curve, number: int) -> None:
    """Draw a curve with its band, in the look of this number."""
    colour, line, marker = palette.look(number)
    if len(curve.low) == 1:
        axes.vlines(curve.x, curve.low, curve.high, color=colour, alpha=0.4, linewidth=6)
    elif len(curve.low):
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.14, linewidth=0)
    axes.plot(
        curve.x,
        curve.y,
        color=colour,
        linestyle=line,
        marker=marker,
        markevery=max(1, len(curve.x) // 12),
        label=printable(curve.label),
        clip_on=False,  # a marker at 0 % or 100 % is on the axis' end
    )


@matplotlib.rc_context(STYLE)
def draw_timeline(step: Mapping[str, Any], width: float = 2 * WIDTH) -> Figure | None:
    """Draw when each stage of a step ran; None where none took any time. Critiques are grey."""
    stages = {name: sorted((start, end) for start, end in step.get(name, ())) for name in _STAGES}
    stages = {name: spans for name, spans in stages.items() if sum(end - start for start, end in spans) > _SHORTEST_S}
    if not stages:
        return None
    # Critiques overlap: each has a line of its own in a row of three times the height.
    heights = {name: 3.0 if name == "answered" and len(spans) > 1 else 1.0 for name, spans in stages.items()}
    figure = Figure(figsize=(width, 0.3 * (sum(heights.values()) + 2)), layout="constrained")
    axes = figure.subplots()
    ticks, top = [], 0.0
    for name, spans in stages.items():
        colour = palette.COLOURS[palette.STAGES[name]] if name in palette.STAGES else MUTED
        lane = 0.8 * heights[name] / len(spans) if heights[name] > 1 else 0.0
        for number, (start, end) in enumerate(spans):
            box = (top + 0.1 * heights[name] + number * lane, lane or 0.8 * heights[name])
            axes.broken_barh([(start, end - start)], box, color=colour, linewidth=0)
        ticks.append(top + heights[name] / 2)
        top += heights[name]
    axes.set_yticks(ticks, [_STAGES[name] for name in stages])
    axes.set_ylim(top, 0)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds")
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    return figure
