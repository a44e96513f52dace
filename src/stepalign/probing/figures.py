"""The probe's pictures: the paper's Figures 3–7, 12 and 13 for one rollout, and two for a set.

`regions` is the one to begin with: where each design's signal lands, at a glance. Signs differ in colour, marker
and side of the zero line, contexts in colour, line style and marker, so that all of it reads in black and white.
"""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from stepalign.evaluation.stats import Interval
from stepalign.io import write_atomically
from stepalign.probing.error_spans import Parts, parts
from stepalign.probing.folder import Probe
from stepalign.probing.measures import of_rollout
from stepalign.probing.positions import BINS, by_position
from stepalign.report.figures import COLOURS, GRID, INK, LINES, MARKERS, MUTED, STYLE, inline, printable, vector

PLUS, MINUS = COLOURS[0], COLOURS[1]

_REGIONS = {
    "correct": ("correct solutions", "should be reinforced"),
    "before": ("before the error", "should be reinforced"),
    "at": ("at the error", "should be suppressed"),
    "after": ("after the error", "builds on the error"),
}
_WIDTH = 9.6


def write(probe: Probe, folder: Path, *, rollouts: int = 6) -> None:
    """Write the set's pictures, and those of a few rollouts, the first with an error, as PNG and SVG.

    Raises:
        StepalignError: the folder cannot be written.
    """
    drawn: dict[str, Callable[[], Figure | None]] = {
        "regions": lambda: regions(probe),
        "positions": lambda: positions(probe),
    }
    marked = {mark.rollout_id for mark in probe.marks}
    chosen = sorted(probe.rollouts, key=lambda one: one.id not in marked)[:rollouts]
    for number, one in enumerate(chosen, start=1):
        drawn[f"rollout-{number}"] = lambda name=one.id: rollout(probe, name)  # type: ignore[misc]
    with matplotlib.rc_context(STYLE):
        for name, draw in drawn.items():
            figure = draw()
            if figure is not None:
                write_atomically(folder / f"{name}.png", _png(figure))
                write_atomically(folder / f"{name}.svg", vector(figure))


def for_page(probe: Probe) -> dict[str, str]:
    """The set's pictures by name, as SVG elements in the page's colours; those that can be drawn."""
    with matplotlib.rc_context(STYLE):
        drawn = {"regions": regions(probe), "positions": positions(probe)}
        return {name: inline(figure) for name, figure in drawn.items() if figure is not None}


# ── a set ───────────────────────────────────────────────────────────────────────────────────────────────────


def regions(probe: Probe) -> Figure | None:
    """Mean credit by region, a row a context: dots with 95 % intervals. None where nothing was measured."""
    measured = probe.measures.contexts
    shown = [name for name in _REGIONS if any(name in found for found in measured.values())]
    if not shown:
        return None
    contexts = list(measured)
    ends = [end for found in measured.values() for name in shown if name in found for end in _ends(found[name])]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.08 * (high - low) or 1.0
    figure = Figure(figsize=(_WIDTH, 1.35 + 0.42 * len(contexts)), layout="constrained")
    grid = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for axes, name in zip(grid, shown, strict=True):
        axes.set_xlim(low - room, high + room)
        axes.set_ylim(len(contexts) - 0.4, -0.75)
        axes.set_yticks(range(len(contexts)), [printable(context) for context in contexts], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.axvline(0, color=INK, linewidth=1)
        for row, context in enumerate(contexts):
            if row % 2 == 0:
                axes.axhspan(row - 0.5, row + 0.5, color=GRID, alpha=0.35, linewidth=0)
            if name in measured[context]:
                _dot(axes, row, measured[context][name], near=(high - low) / 12)
        title, wanted = _REGIONS[name]
        n = max(found[name].n for found in measured.values() if name in found)
        axes.set_title(f"{title}\n", fontsize=10)
        axes.text(0, 1.03, f"{wanted} · n = {n}", transform=axes.transAxes, color=MUTED, fontsize=7.8)
    gap = 4 * "\N{NO-BREAK SPACE}"
    figure.supxlabel(
        "mean credit of the sampled tokens in nats: log p(teacher) − log p(student), 95 % intervals over problems\n"
        f"● reinforced{gap}◆ suppressed{gap}○ the interval includes zero",
        fontsize=8.5,
        color=MUTED,
    )
    return figure


def _ends(estimate: Interval) -> tuple[float, float, float]:
    return estimate.low, estimate.value, estimate.high


def _dot(axes: Axes, row: int, estimate: Interval, *, near: float) -> None:
    """A mean with its interval. Its number stands clear of the zero line where it is `near` to it."""
    open_ = estimate.low <= 0 <= estimate.high
    colour = MUTED if open_ else PLUS if estimate.value > 0 else MINUS
    axes.hlines(row + 0.12, estimate.low, estimate.high, color=colour, linewidth=2.2)
    axes.plot(
        estimate.value,
        row + 0.12,
        marker="o" if open_ or estimate.value > 0 else "D",
        markersize=7,
        color=colour,
        markerfacecolor="white" if open_ else colour,
        markeredgewidth=1.6,
    )
    beside = abs(estimate.value) < near
    axes.annotate(
        _signed(estimate.value),
        (0 if beside else estimate.value, row + 0.12),
        xytext=((-4 if estimate.value < 0 else 4) if beside else 0, 6),
        textcoords="offset points",
        ha="center" if not beside else "right" if estimate.value < 0 else "left",
        color=INK,
        fontsize=8,
    )


def positions(probe: Probe) -> Figure | None:
    """Mean credit by distance from the error, a line a context. None where no rollout is marked."""
    found = by_position(probe)
    if not found:
        return None
    figure = Figure(figsize=(_WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(BINS))
    middle = len(BINS) // 2
    axes.axvspan(middle - 0.5, middle + 0.5, color=GRID, alpha=0.6, linewidth=0)
    axes.axhline(0, color=INK, linewidth=1)
    for number, (context, estimates) in enumerate(found.items()):
        low, value, high = (np.array(side) for side in zip(*map(_or_nan, estimates), strict=True))
        colour, style = COLOURS[number % len(COLOURS)], (number + number // len(COLOURS)) % len(LINES)
        axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(at, value, color=colour, linestyle=LINES[style], marker=MARKERS[style], label=printable(context))
    axes.set_xlim(-0.5, len(BINS) - 0.5)
    axes.set_xticks(at, [one.label for one in BINS])
    axes.get_xticklabels()[middle].set_fontweight("bold")
    gap = 4 * "\N{NO-BREAK SPACE}"
    axes.set_xlabel(f"tokens before the error ←{10 * gap}→ tokens after it")
    axes.set_ylabel("mean credit, nats a token")
    rollouts = max(at_error.n for estimates in found.values() if (at_error := estimates[middle]))
    axes.set_title(f"Credit by distance from the error, {rollouts:,} solutions with a known one")
    axes.legend(ncols=min(4, len(found)), loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def _or_nan(estimate: Interval | None) -> tuple[float, float, float]:
    return _ends(estimate) if estimate else (np.nan, np.nan, np.nan)


# ── one rollout ─────────────────────────────────────────────────────────────────────────────────────────────


def rollout(probe: Probe, rollout_id: str) -> Figure | None:
    """Credit along one rollout's tokens, a panel a context, steps and error marked. None without credit."""
    credits = [credit for credit in probe.credits if credit.rollout_id == rollout_id and credit.values]
    if not credits:
        return None
    found = next(one for one in probe.rollouts if one.id == rollout_id)
    mark = next((one for one in probe.marks if one.rollout_id == rollout_id), None)
    part = parts(found, mark)
    size = np.abs(np.concatenate([credit.values for credit in credits]))
    bound = max(0.5, float(np.percentile(size, 99)) * 1.1)
    figure = Figure(figsize=(_WIDTH, 0.75 + 1.15 * len(credits)), layout="constrained")
    grid = figure.subplots(len(credits), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, credit in zip(grid, credits, strict=True):
        _bars(axes, np.array(credit.values), bound)
        _mark_steps(axes, part, named=axes is grid[0])
        pad = 15 if axes is grid[0] else 4
        axes.set_title(printable(credit.context), pad=pad)
        said = _said(of_rollout(found, credit, mark), credit.values)
        axes.set_title(said, loc="right", pad=pad, fontsize=8, fontweight="normal", color=MUTED)
    grid[-1].set_xlabel("token")
    figure.supylabel("credit, nats", fontsize=9, color=MUTED)
    return figure


def _bars(axes: Axes, values: np.ndarray, bound: float) -> None:
    """One bar a token, blue above zero and orange, hatched, below. A triangle ends a bar that is cut."""
    edges = np.arange(len(values) + 1)
    cut = np.clip(values, -bound, bound)
    axes.stairs(np.maximum(cut, 0), edges, fill=True, color=PLUS, linewidth=0)
    axes.stairs(np.minimum(cut, 0), edges, fill=True, facecolor=MINUS, edgecolor=MINUS, hatch="/////", linewidth=0)
    for sign, marker, colour in ((1, "^", PLUS), (-1, "v", MINUS)):
        over = np.flatnonzero(sign * values > bound)
        axes.plot(over + 0.5, np.full(len(over), sign * bound * 1.04), marker, color=colour, markersize=3.5)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlim(0, len(values))
    axes.set_ylim(-1.12 * bound, 1.12 * bound)


def _mark_steps(axes: Axes, part: Parts, *, named: bool) -> None:
    across = blended_transform_factory(axes.transData, axes.transAxes)
    for number, (start, _) in enumerate(part.steps, start=1):
        axes.axvline(start, color=MUTED, linewidth=0.7, linestyle=":")
        if named:
            axes.text(start, 1.02, f"step {number}", transform=across, fontsize=7, color=MUTED)
    if part.error is not None:
        start, stop = part.error
        axes.axvspan(start, max(stop, start + 1), color=MINUS, alpha=0.16, linewidth=0)
        axes.axvline(start, color=INK, linewidth=1.2, linestyle="--")
        if named:
            near_end = start > 0.85 * part.end
            axes.text(
                start, 0.9, " first error ", transform=across, fontsize=8, color=INK, ha="right" if near_end else "left"
            )


def _said(found: dict[str, float], values: tuple[float, ...]) -> str:
    if "at" not in found:
        negative = sum(value < 0 for value in values) / len(values)
        return f"mean {_signed(sum(values) / len(values))}, {100 * negative:.0f} % negative"
    return ", ".join(f"{name} {_signed(found[name])}" for name in ("before", "at", "after") if name in found)


def _signed(value: float) -> str:
    shown = f"{abs(value):.2f}"
    return ("" if shown == "0.00" else "+" if value > 0 else "−") + shown


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()
