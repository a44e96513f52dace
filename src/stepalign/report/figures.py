"""Figures drawn with Matplotlib: panels and a step's timeline, as SVG in the page's colours and fonts, and as PNG.

Curves differ in colour (Okabe and Ito's palette, safe for the colour-blind), line style and marker, so that they stay
apart in black and white. The same input gives the same bytes.
"""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stepalign.report.panels import Curve, Panel

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "X")
INK, MUTED, GRID = "#1c2024", "#60666d", "#dde1e5"

# Colours that the page's style sheet replaces, so that a figure follows the page into dark mode.
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule"} | {
    colour: f"--series-{number}" for number, colour in enumerate(COLOURS, start=1)
}

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "svg.fonttype": "none",
    "svg.hashsalt": "stepalign",
}

_WIDTH, _HEIGHT = 4.8, 2.9

_STAGES = {
    "sample": "sampling",
    "answered": "critic",
    "critique": "critic wait",
    "base": "base",
    "teacher": "teacher",
    "student": "student",
    "optimizer": "optimizer",
}
"""A step's stages in the order of its data, by their names in `timeline.jsonl`."""
_SHORTEST_S = 5e-4


@matplotlib.rc_context(STYLE)
def svg(panel: Panel) -> str:
    """Draw a panel as an inline SVG element in the page's colours and fonts."""
    return inline(_panels([panel], columns=1))


@matplotlib.rc_context(STYLE)
def png(panels: Sequence[Panel]) -> bytes:
    """Draw panels in two columns as one PNG, on white."""
    return raster(_panels(panels, columns=min(2, len(panels))))


@matplotlib.rc_context(STYLE)
def timeline_svg(step: Mapping[str, Any], coloured: Sequence[str] = ()) -> str:
    """Draw a step's timeline as an inline SVG element; nothing without stages.

    Args:
        step: spans in seconds, by stage.
        coloured: the stages with a colour, in the order of the colours; others are grey.
    """
    return inline(_timeline(stages, coloured)) if (stages := _stages(step)) else ""


@matplotlib.rc_context(STYLE)
def timeline_png(step: Mapping[str, Any], coloured: Sequence[str] = ()) -> bytes:
    """Draw the same as a PNG, on white."""
    return raster(_timeline(stages, coloured)) if (stages := _stages(step)) else b""


def inline(figure: Figure) -> str:
    """Save a figure as an SVG element in the page's colours and fonts. Call it under `STYLE`, as the next two."""
    drawing = vector(figure)
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # unused, and the same in every figure of a page
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    return drawing.replace("'DejaVu Sans'", "var(--sans)")


def vector(figure: Figure) -> str:
    """Save a figure as an SVG document without background."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return buffer.getvalue()


def raster(figure: Figure) -> bytes:
    """Save a figure as a PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def printable(label: str) -> str:
    """Return a label that the font can draw and the legend can hold: of a long path, the end.

    A leading space protects `_`, because Matplotlib leaves such labels out of the legend.
    """
    font = get_font(findfont("DejaVu Sans"))
    text = "".join(character if font.get_char_index(ord(character)) else "?" for character in label)
    text = text if len(text) <= 40 else "…" + text[-39:]
    return f" {text}" if text.startswith("_") else text


def _panels(panels: Sequence[Panel], columns: int) -> Figure:
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel)
    for axes in list(grid)[len(panels) :]:
        axes.remove()
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for number, curve in enumerate(panel.curves):
        _draw_curve(axes, curve, number)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    if panel.unit == "share":
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %"))
    else:
        axes.set_ylabel(panel.unit)
    if len(panel.curves) > 1:
        longest = max(len(printable(curve.label)) for curve in panel.curves)
        columns = max(1, min(len(panel.curves), 44 // longest))
        axes.legend(ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.22))


def _draw_curve(axes: Axes, curve: Curve, number: int) -> None:
    # Past the sixth curve colours repeat, with another line and marker.
    colour, style = COLOURS[number % len(COLOURS)], (number + number // len(COLOURS)) % len(LINES)
    if len(curve.low) == 1:
        axes.vlines(curve.x, curve.low, curve.high, color=colour, alpha=0.4, linewidth=6)
    elif curve.low:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.14, linewidth=0)
    axes.plot(
        curve.x,
        curve.y,
        color=colour,
        linestyle=LINES[style],
        marker=MARKERS[style],
        markevery=max(1, len(curve.x) // 12),
        label=printable(curve.label),
    )


def _stages(step: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return the spans of the stages that took any time."""
    stages = {name: sorted((start, end) for start, end in step.get(name, ())) for name in _STAGES}
    return {name: spans for name, spans in stages.items() if sum(end - start for start, end in spans) > _SHORTEST_S}


def _timeline(stages: Mapping[str, Sequence[tuple[float, float]]], coloured: Sequence[str]) -> Figure:
    # Critiques overlap: each has a line of its own in a row of three times the height.
    heights = {name: 3.0 if name == "answered" and len(spans) > 1 else 1.0 for name, spans in stages.items()}
    figure = Figure(figsize=(2 * _WIDTH, 0.3 * (sum(heights.values()) + 2)), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(coloured, itertools.cycle(COLOURS), strict=False))
    ticks, top = [], 0.0
    for name, spans in stages.items():
        lane = 0.8 * heights[name] / len(spans) if heights[name] > 1 else 0.0
        for number, (start, end) in enumerate(spans):
            box = (top + 0.1 * heights[name] + number * lane, lane or 0.8 * heights[name])
            axes.broken_barh([(start, end - start)], box, color=colours.get(name, MUTED), linewidth=0)
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
