"""A preflight as text, as the command prints it, and as a page that loads nothing from the network."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from stepalign import config
from stepalign.gates.gate import Preflight
from stepalign.io import write_atomically
from stepalign.report.display import Cell, Table, environment
from stepalign.report.summary import Verdict

_FOLDER = Path(__file__).parent
_WIDTH = 100


def table(measured: Preflight) -> str:
    """Format each gate, and what to change for those that fail, in lines of `_WIDTH` characters."""
    width = max((len(name) for name in (*(gate.name for gate in measured.gates), *measured.not_measured)), default=0)
    rows: list[tuple[str, str, str]] = []
    for gate in measured.gates:
        rows.append((gate.verdict, gate.name, f"{gate.value}, {gate.bound}; {gate.detail}".rstrip("; ")))
        if gate.verdict == "fail":
            rows.append(("", "", f"change: {gate.remedy}"))
    rows += [("–", name, reason) for name, reason in measured.not_measured.items()]
    lines = []
    for verdict, name, text in rows:
        head = f"{verdict:<10}{name:<{width}}  "
        lines += textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
    if measured.shortfall:
        lines += textwrap.wrap(measured.shortfall, _WIDTH)
    if measured.hours is not None:
        lines.append(f"about {measured.hours:.2g} hours on this machine")
    return "\n".join([*lines, *textwrap.wrap(_verdict(measured).headline, _WIDTH)])


def write(settings: config.Recipe, measured: Preflight, path: Path, *, has_probe: bool) -> None:
    """Write the page."""
    counts = [measure.n for side in measured.sides.values() for measure in side.values()]
    template = environment(_FOLDER).get_template("preflight.html.jinja")
    page = template.render(
        settings=settings,
        measured=measured,
        verdict=_verdict(measured),
        sides=_sides(measured),
        num_problems=max(counts, default=settings.preflight.num_problems),  # a source may have fewer
        has_probe=has_probe,
    )
    write_atomically(path, page)


def _verdict(measured: Preflight) -> Verdict:
    failed = [gate.name for gate in measured.gates if gate.verdict == "fail"]
    open_ones = [gate.name for gate in measured.gates if gate.verdict == "undecided"]
    count = f"{len(measured.gates)} gates"
    if failed:
        return Verdict("worse", f"{len(failed)} of {count} fail: {', '.join(failed)}.", "Each says what to change.")
    if open_ones:
        detail = "More problems (--limit) make the intervals narrower."
        return Verdict("open", f"No gate fails; {len(open_ones)} of {count} undecided: {', '.join(open_ones)}.", detail)
    return Verdict("better", f"All {count} pass.", "")


def _sides(measured: Preflight) -> Table:
    """Lay out the measures of both sides."""
    columns = ("solver", "teacher", "difference")

    def cells(name: str) -> Iterator[Cell]:
        for column in columns:
            one = measured.sides[name][column]
            scale, spec = (1, ".0f") if name == "length" else (100, ".1f")
            if column == "difference":
                spec = f"+{spec}"
            value, low, high = (f"{scale * end:{spec}}".replace("-", "−") for end in (one.value, one.low, one.high))
            yield Cell(value, (f"[{low}, {high}], n = {one.n}",))

    rows = [(f"{name}, tokens" if name == "length" else f"{name}, %", list(cells(name))) for name in measured.sides]
    return Table("Attempts of solver and teacher on the same problems", columns, rows)
