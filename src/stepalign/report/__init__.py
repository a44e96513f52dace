"""A run's report: one self-contained page, and figures as PNG.

`write` reads a run's folder and answers, on the page's first screen, what ran, whether it helped and where
the time went. `write_comparison` lays several runs over each other. Whatever a killed run left behind is
enough: a page says what is missing instead of failing. Everything a model or a data set wrote is escaped,
control and bidirectional characters are shown by their code points, and the page asks nothing of the
network.

    stepalign report runs/quickstart
"""

from collections.abc import Sequence
from pathlib import Path

from stepalign.errors import StepalignError
from stepalign.io import write_atomically
from stepalign.report import figures, page, panels, timeline
from stepalign.report.comparison import Comparison
from stepalign.report.run import Run, read
from stepalign.report.summary import Summary


def write(folder: Path) -> Path:
    """Write a run's `report.html` and `figures/*.png` into its folder, and return the page's path.

    Raises:
        StepalignError: the folder holds no run, or a file in it is not what it should be.
    """
    run = read(folder)
    evaluation = panels.of_evaluations({run.name: run.evaluations})
    training = panels.of_training(run.steps)
    probe = panels.of_probes(run.probes)
    _write_figures(folder / "figures", {"evaluation": evaluation, "training": training, "probe": probe})
    if drawn := timeline.png(run.timeline):
        write_atomically(folder / "figures" / "timeline.png", drawn)
    html = page.of_run(Summary(run), evaluation=evaluation, training=training, probe=probe)
    return _write_page(folder / "report.html", html)


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs to `out`, its figures to the folder `STEM-figures` beside it.

    Runs are compared with the first one. They may have been evaluated on different problems, or not yet:
    the page then says so and gives no difference.

    Raises:
        StepalignError: fewer than two folders, one twice, one without a run, or evaluations with different n.
    """
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise StepalignError(f"two or more different runs make a comparison, found {', '.join(map(str, folders))}")
    runs = _labelled([read(folder) for folder in folders])
    comparison = Comparison(runs)
    evaluation = panels.of_evaluations({label: run.evaluations for label, run in runs.items()})
    _write_figures(out.with_name(f"{out.stem}-figures"), {"evaluation": evaluation})
    return _write_page(out, page.of_comparison(comparison, evaluation=evaluation))


def _labelled(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by name, or by path where two have the same name."""
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else str(run.folder): run for run in runs}


def _write_figures(folder: Path, drawn: dict[str, list[panels.Panel]]) -> None:
    for name, of_figure in drawn.items():
        if of_figure:
            write_atomically(folder / f"{name}.png", figures.png(of_figure))


def _write_page(path: Path, html: str) -> Path:
    write_atomically(path, html)
    return path
