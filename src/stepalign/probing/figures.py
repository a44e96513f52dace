"""Figures of a probe: the paper's Figures 3–7, 12 and 13 for one rollout, and two for a set.

`regions` summarizes where each context's signal lands. Signs differ in colour, marker and side of the zero line;
contexts differ in colour, line style and marker. The figures therefore read in black and white.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from stepalign.evaluation.stats import Interval
from stepalign.io import write_atomically
from stepalign.probing.folder import Probe
from stepalign.probing.measures import DISTANCES, credit_by_position, distance_label, rollout_means, token_regions
from stepalign.report import palette
from stepalign.report.figures import GRID, INK, MUTED, STYLE, WIDTH, printable, raster, vector

PLUS, MINUS = palette.COLOURS[:2]

_REGIONS = {
    "correct": ("correct solutions", "should be reinforced"),
    "before": ("before the error", "should be reinforced"),
    "at": ("at the error", "should be suppressed"),
    "after": ("after the error", "builds on the error"),
}
_WIDTH = 2 * WIDTH
_GAP = 4 * "\N{NO-BREAK SPACE}"


@matplotlib.rc_context(STYLE)
def write(probe: Probe, folder: Path, *, rollouts: int = 6) -> dict[str, str]:
    """Write the set's figures, and those of a few rollouts, as PNG and SVG. Rollouts with an error come first.

    Returns:
        The SVG documents by name: `regions`, `positions`, `rollout-1`, …; of the set's also `…-narrow`.
    """
    marked = {mark.rollout_id for mark in probe.marks}
    selected = sorted(probe.rollouts, key=lambda rollout: rollout.id not in marked)[:rollouts]
    figures = {"regions": regions(probe), "positions": positions(probe)}
    figures |= {f"rollout-{number}": along_rollout(probe, one.id) for number, one in enumerate(selected, start=1)}
    drawings = {}
    for name, figure in figures.items():
        if figure is not None:
            write_atomically(folder / f"{name}.png", raster(figure))
            drawings[name] = vector(figure)
            write_atomically(folder / f"{name}.svg", drawings[name])
    narrow = {"regions": regions(probe, narrow=True), "positions": positions(probe, narrow=True)}
    return drawings | {f"{name}-narrow": vector(figure) for name, figure in narrow.items() if figure is not None}


def regions(probe: Probe, *, narrow: bool = False) -> Figure | None:
    """Draw mean credit by region, a row a context, with 95 % intervals. None without measures.

    Narrow: two regions side by side instead of all.
    """
    contexts = probe.measures.contexts
    panels = {name: [intervals.get(name) for intervals in contexts.values()] for name in _REGIONS}
    panels = {name: intervals for name, intervals in panels.items() if any(intervals)}
    if not panels:
        return None
    ends = [end for intervals in panels.values() for one in intervals if one for end in (one.low, one.value, one.high)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = 0.08 * (high - low) or 1.0
    columns = min(2, len(panels)) if narrow else len(panels)
    rows = -(-len(panels) // columns)
    size = (WIDTH if narrow else _WIDTH, 0.7 + rows * (0.65 + 0.42 * len(contexts)))
    figure = Figure(figsize=size, layout="constrained")
    grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (name, intervals) in zip(grid, panels.items(), strict=False):
        axes.set(xlim=(low - margin, high + margin), ylim=(len(contexts) - 0.4, -0.75))
        axes.set_yticks(range(len(contexts)), [printable(context) for context in contexts], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.axvline(0, color=INK, linewidth=1)
        for row, interval in enumerate(intervals):
            if row % 2 == 0:
                axes.axhspan(row - 0.5, row + 0.5, color=GRID, alpha=0.35, linewidth=0)
            if interval:
                _dot(axes, row + 0.12, interval, near=(high - low) / 12)
        title, goal = _REGIONS[name]
        n = max(interval.n for interval in intervals if interval)
        axes.set_title(f"{title}\n", fontsize=10)
        axes.text(0, 1.03, f"{goal} · n = {n}", transform=axes.transAxes, color=MUTED, fontsize=7.8)
    line = "\n" if narrow else ""
    figure.supxlabel(
        "mean credit of the sampled tokens in nats: "
        f"{line}log p(teacher) − log p(student), 95 % intervals over problems\n"
        f"● reinforced{_GAP}◆ suppressed{_GAP}○ the interval includes zero",
        fontsize=8.5,
        color=MUTED,
    )
    return figure


def _dot(axes: Axes, y: float, interval: Interval, *, near: float) -> None:
    """Draw a mean with its interval. Its number is clear of the zero line where it is `near` to it."""
    value, uncertain = interval.value, interval.low <= 0 <= interval.high
    colour = MUTED if uncertain else PLUS if value > 0 else MINUS
    marker, face = "o" if uncertain or value > 0 else "D", "white" if uncertain else colour
    axes.hlines(y, interval.low, interval.high, color=colour, linewidth=2.2)
    axes.plot(value, y, marker, markersize=7, color=colour, markerfacecolor=face, markeredgewidth=1.6)
    x, shift, side = (value, 0, "center") if abs(value) >= near else (0, -4, "right") if value < 0 else (0, 4, "left")
    axes.annotate(_signed(value), (x, y), (shift, 6), textcoords="offset points", ha=side, color=INK, fontsize=8)


def positions(probe: Probe, *, narrow: bool = False) -> Figure | None:
    """Draw mean credit by distance from the error, a line a context. None without marked rollouts."""
    contexts = credit_by_position(probe.rollouts, probe.marks, probe.credits)
    if not contexts:
        return None
    figure = Figure(figsize=(WIDTH if narrow else _WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-0.5, 0.5, color=GRID, alpha=0.6, linewidth=0)
    axes.axhline(0, color=INK, linewidth=1)
    looks = palette.numbers(contexts)
    for context, intervals in contexts.items():
        low, value, high = np.array([(one.low, one.value, one.high) if one else (np.nan,) * 3 for one in intervals]).T
        colour, style, marker = palette.look(looks[context])
        line = {"linestyle": style, "marker": marker, "label": printable(context)}
        axes.fill_between(DISTANCES, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(DISTANCES, value, color=colour, **line)
    middle = DISTANCES.index(0)
    n = max((interval.n for intervals in contexts.values() if (interval := intervals[middle])), default=0)
    axes.set_xticks(DISTANCES, map(distance_label, DISTANCES), rotation=90 if narrow else 0)
    axes.get_xticklabels()[middle].set_fontweight("bold")
    axes.set(
        xlim=(DISTANCES[0] - 0.5, DISTANCES[-1] + 0.5),
        xlabel=f"tokens before the error ←{_GAP if narrow else 10 * _GAP}→ tokens after it",
        ylabel="mean credit, nats a token",
    )
    separator = "\n" if narrow else ", "
    axes.set_title(f"Credit by distance from the error{separator}{n:,} solutions with a known one")
    place = (0.5, -0.35 if narrow else -0.2)
    axes.legend(ncols=min(2 if narrow else 4, len(contexts)), loc="upper center", bbox_to_anchor=place)
    return figure


def along_rollout(probe: Probe, rollout_id: str) -> Figure | None:
    """Draw credit along one rollout's tokens, a panel a context, with steps and error. None without credit."""
    credits = [credit for credit in probe.credits if credit.rollout_id == rollout_id and credit.values]
    if not credits:
        return None
    rollout = next(one for one in probe.rollouts if one.id == rollout_id)
    mark = next((one for one in probe.marks if one.rollout_id == rollout_id), None)
    regions = token_regions(rollout, mark)
    bound = max(0.5, float(np.percentile(np.abs([credit.values for credit in credits]), 99)) * 1.1)
    figure = Figure(figsize=(_WIDTH, 0.75 + 1.15 * len(credits)), layout="constrained")
    grid = figure.subplots(len(credits), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, credit in zip(grid, credits, strict=True):
        values, means, pad = np.array(credit.values), rollout_means(rollout, credit, mark), 15 if axes is grid[0] else 4
        summary = f"mean {_signed(values.mean())}, {np.mean(values < 0):.0%} negative".replace("%", " %")
        if "at" in means:
            summary = ", ".join(f"{name} {_signed(means[name])}" for name in ("before", "at", "after") if name in means)
        _bars(axes, values, bound)
        for start, _ in regions.steps:
            axes.axvline(start, color=MUTED, linewidth=0.7, linestyle=":")
        if regions.error is not None:
            start, stop = regions.error
            axes.axvspan(start, max(stop, start + 1), color=MINUS, alpha=0.16, linewidth=0)
            axes.axvline(start, color=INK, linewidth=1.2, linestyle="--")
        axes.set_title(printable(credit.context), pad=pad)
        axes.set_title(summary, loc="right", pad=pad, fontsize=8, fontweight="normal", color=MUTED)
    across = blended_transform_factory(grid[0].transData, grid[0].transAxes)
    for number, (start, _) in enumerate(regions.steps, start=1):
        grid[0].text(start, 1.02, f"step {number}", transform=across, fontsize=7, color=MUTED)
    if regions.error is not None:
        start, side = regions.error[0], "right" if regions.error[0] > 0.85 * len(rollout.completion_ids) else "left"
        grid[0].text(start, 0.9, " first error ", transform=across, fontsize=8, color=INK, ha=side)
    grid[-1].set_xlabel("token")
    figure.supylabel("credit, nats", fontsize=9, color=MUTED)
    return figure


def _bars(axes: Axes, values: np.ndarray, bound: float) -> None:
    """Draw one bar a token, blue above zero and orange, hatched, below. A triangle ends a bar that is cut."""
    edges = np.arange(len(values) + 1)
    cut = np.clip(values, -bound, bound)
    axes.stairs(np.maximum(cut, 0), edges, fill=True, color=PLUS, linewidth=0)
    axes.stairs(np.minimum(cut, 0), edges, fill=True, facecolor=MINUS, edgecolor=MINUS, hatch="/////", linewidth=0)
    for sign, marker, colour in ((1, "^", PLUS), (-1, "v", MINUS)):
        over = np.flatnonzero(sign * values > bound)
        axes.plot(over + 0.5, np.full(len(over), sign * bound * 1.04), marker, color=colour, markersize=3.5)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(xlim=(0, len(values)), ylim=(-1.12 * bound, 1.12 * bound))


def _signed(value: float) -> str:
    digits = f"{abs(value):.2f}"
    return ("" if digits == "0.00" else "+" if value > 0 else "−") + digits
