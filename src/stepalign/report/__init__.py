"""Reports: one self-contained page for a run or a comparison, figures as PNG, tables as Markdown.

A run's page shows on its first screen what ran, whether it helped and how the time was spent. The files of a killed
run are enough: a page says what is missing instead of failing. Text that a model or a data set wrote is escaped,
control and bidirectional characters appear as their code points, and a page loads nothing from the network.

    stepalign report runs/quickstart
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from stepalign.arguments import checked
from stepalign.errors import StepalignError
from stepalign.io import write_atomically
from stepalign.report import figures
from stepalign.report.comparison import Comparison
from stepalign.report.display import Table, environment
from stepalign.report.figures import Panel
from stepalign.report.run import read_run
from stepalign.report.summary import Summary


def summarize(folder: Path) -> Summary:
    """Read a run's folder.

    Raises:
        StepalignError: it holds no run, or a file in it is not what it should be.
    """
    return Summary(read_run(folder))


def write(summary: Summary) -> Path:
    """Write a run's `report.html` and `figures/*.png` into its folder, and return the page's path."""
    run = summary.run
    panels = {
        "evaluation": figures.evaluation_panels({run.name: run.evaluations}),
        "training": figures.training_panels(run.steps),
        "probe": figures.probe_panels(run.probes),
    }
    timeline = figures.draw_timeline(run.timeline)
    _write_figures(run.folder / "figures", panels, timeline)
    page = run.folder / "report.html"
    narrow = figures.draw_timeline(run.timeline, figures.WIDTH)
    write_atomically(page, run_page(summary, panels, [figure for figure in (timeline, narrow) if figure]))
    return page


def run_page(summary: Summary, panels: Mapping[str, Sequence[Panel]], timelines: Sequence[Figure] = ()) -> str:
    """Render a run's report as HTML, with its panels by section, and its timeline for wide and for narrow windows."""
    template = environment().get_template("run.html.jinja")
    sections = {section: _inline(panels.get(section, ())) for section in ("evaluation", "training", "probe")}
    drawings = [Markup(figures.inline(figures.vector(timeline))) for timeline in timelines]
    return template.render(run=summary.run, summary=summary, timelines=drawings, **sections)


@checked
def write_report(folders: Path | str | Sequence[Path | str], out: Path | str = Path("comparison.html")) -> Path:
    """Write the report of one run into its folder, or a page that compares several to `out`. Return its path."""
    paths = [Path(folder) for folder in ([folders] if isinstance(folders, Path | str) else folders)]
    return write(summarize(paths[0])) if len(paths) == 1 else write_comparison(paths, Path(out))


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs to `out`, and return its path. See `write_conditions`.

    Runs are compared with the first one. Runs that were evaluated on different problems, or not yet, appear without a
    difference.

    Raises:
        StepalignError: fewer than two folders, one twice, one without a run, or evaluations with different n.
    """
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise StepalignError(f"two or more different runs make a comparison, found {', '.join(map(str, folders))}")
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else str(run.folder) for run in runs]
    return write_conditions(Comparison({label: [run] for label, run in zip(labels, runs, strict=True)}), out)


def write_conditions(
    comparison: Comparison, out: Path, *, over: Sequence[str] = (), others: Sequence[Table] = ()
) -> Path:
    """Write a comparison's page to `out`, its tables as `STEM.md` and its figures into `STEM-figures` beside it.

    `others` are tables for the page and the Markdown file. Over each cost in `over`, Figure 2 is a PNG of its own.
    """
    panels = {"evaluation": comparison.panels(), **{f"evaluation-{cost}": comparison.panels(cost) for cost in over}}
    _write_figures(out.with_name(f"{out.stem}-figures"), panels)
    write_atomically(out.with_suffix(".md"), comparison.markdown(*others))
    template = environment().get_template("comparison.html.jinja")
    page = template.render(comparison=comparison, evaluation=_inline(panels["evaluation"]), others=others)
    write_atomically(out, page)
    return out


def _inline(panels: Sequence[Panel]) -> list[tuple[str, Markup]]:
    # Matplotlib escapes the labels.
    looks = figures.looks_of(panels)
    drawn = [figures.draw_panels([panel], looks=looks) for panel in panels]
    return [
        (panel.title, Markup(figures.inline(figures.vector(figure))))
        for panel, figure in zip(panels, drawn, strict=True)
    ]


def _write_figures(folder: Path, panels: Mapping[str, Sequence[Panel]], timeline: Figure | None = None) -> None:
    drawn = {name: figures.draw_panels(some, min(2, len(some))) for name, some in panels.items() if some}
    for name, figure in {**drawn, "timeline": timeline}.items():
        if figure:
            write_atomically(folder / f"{name}.png", figures.raster(figure))
