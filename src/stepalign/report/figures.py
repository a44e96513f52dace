"""Panels drawn with Matplotlib: as SVG that takes its colours and fonts from the page, and as PNG.

Curves differ in colour (Okabe and Ito's palette, safe for the colour-blind), line style and marker, so that
they stay apart in black and white. The same input gives the same bytes.
"""

import io
import re
from collections.abc import Sequence
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

# Colours of the drawing that the page's style sheet sets, so that a figure follows the page into the dark.
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


def svg(panel: Panel) -> str:
    """A panel as an inline SVG element. Its text is text, its colours are the page's variables."""
    with matplotlib.rc_context(STYLE):
        return inline(_figure([panel], columns=1))


def inline(figure: Figure) -> str:
    """A figure, made and saved under `STYLE`, as an SVG element in the page's own colours and fonts."""
    drawing = vector(figure)
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # unused, and the same in every figure of a page
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    return drawing.replace("'DejaVu Sans'", "var(--sans)")


def vector(figure: Figure) -> str:
    """A figure, made and saved under `STYLE`, as an SVG document on nothing, the same bytes each time."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return buffer.getvalue()


def png(panels: Sequence[Panel]) -> bytes:
    """Panels in two columns as one PNG, on white."""
    with matplotlib.rc_context(STYLE):
        return raster(_figure(panels, columns=min(2, len(panels))))


def raster(figure: Figure) -> bytes:
    """A figure, made and saved under `STYLE`, as a PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def _figure(panels: Sequence[Panel], columns: int) -> Figure:
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
    axes.set_xlabel(panel.over)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    if panel.unit == "share":
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %"))
    else:
        axes.set_ylabel(panel.unit)
    if len(panel.curves) > 1:
        longest = max(len(printable(curve.label)) for curve in panel.curves)
        axes.legend(
            ncols=max(1, min(len(panel.curves), 44 // longest)),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.22),
        )


def _draw_curve(axes: Axes, curve: Curve, number: int) -> None:
    # Past the sixth curve colours come again, with another line and marker.
    colour, style = COLOURS[number % len(COLOURS)], (number + number // len(COLOURS)) % len(LINES)
    if len(curve.low) == 1:
        axes.vlines(curve.steps, curve.low, curve.high, color=colour, alpha=0.4, linewidth=6)
    elif curve.low:
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.14, linewidth=0)
    axes.plot(
        curve.steps,
        curve.values,
        color=colour,
        linestyle=LINES[style],
        marker=MARKERS[style],
        markevery=max(1, len(curve.steps) // 12),
        label=printable(curve.label),
    )


def printable(label: str) -> str:
    """A label as the font can draw it and the legend can hold it: of a long path, the end.

    Matplotlib would leave out of the legend what begins with `_`.
    """
    font = get_font(findfont("DejaVu Sans"))
    drawn = "".join(character if font.get_char_index(ord(character)) else "?" for character in label)
    drawn = drawn if len(drawn) <= 40 else "…" + drawn[-39:]
    return f" {drawn}" if drawn.startswith("_") else drawn
