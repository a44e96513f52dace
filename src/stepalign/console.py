"""Progress on the terminal: a live line for each stage and for the run; in a log file one line for each step.

A notebook shows the live lines where ipywidgets is installed, else what a log file has.

The seconds of each stage are measured here as well, so that shown and recorded times are the same.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Advance = Callable[[float], None]


def _can_draw_in(console: RichConsole) -> bool:
    return console.is_jupyter and find_spec("ipywidgets") is not None


class Console:
    """Progress of one run."""

    def __init__(self, total_steps: int | None = None, first_step: int = 0, *, quiet: bool = False) -> None:
        """Start the display of a run with so many optimizer steps, or none. Quiet: another process shows it."""
        self.rich = RichConsole(stderr=True, highlight=False, quiet=quiet)
        self.seconds: dict[str, float] = defaultdict(float)
        self.spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        """Start and end of each stage (`time.perf_counter`)."""
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            console=self.rich,
            disable=quiet or not (self.rich.is_terminal or _can_draw_in(self.rich)),
            speed_estimate_period=600,
            transient=True,
        )
        self._label = ""
        self._run: TaskID | None = None
        if total_steps is not None:
            self._run = self._progress.add_task("optimizer steps", total=total_steps, completed=first_step, speed="")

    def __enter__(self) -> "Console":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def set_label(self, name: str) -> None:
        """Name the run in its bar and before each line, where several runs share a terminal."""
        self._label = f"{name} "
        if self._run is not None:
            self._progress.update(self._run, description=name)

    def begin(self) -> None:
        """Clear the measured times at the beginning of a step."""
        self.seconds.clear()
        self.spans.clear()

    @contextmanager
    def stage(self, name: str, total: float, unit: str = "rollouts") -> Iterator[Advance]:
        """Show and time a stage while it runs. Yield a function that takes the units done since its last call."""
        task = self._progress.add_task(name, total=total, speed="")
        start = time.perf_counter()
        done = 0.0

        def advance(units: float) -> None:
            nonlocal done
            done += units
            speed = done / max(time.perf_counter() - start, 1e-9)
            self._progress.update(task, advance=units, speed=f"{speed:,.1f} {unit}/s")

        try:
            yield advance
            self._progress.update(task, completed=total, refresh=True)
        finally:
            self.timed(name, start)
            self._progress.remove_task(task)

    def timed(self, name: str, start: float) -> None:
        """Add the time since `start` (of `time.perf_counter`) to a stage."""
        end = time.perf_counter()
        self.seconds[name] += end - start
        self.spans[name].append((start, end))

    def step_done(self, summary: str) -> None:
        """Count one more optimizer step and print its summary."""
        if self._run is not None:
            self._progress.update(self._run, advance=1)
        self.say(summary)

    def say(self, text: str) -> None:
        """Print a line."""
        self.rich.print(f"{self._label}{text}", markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.rich.print(f"{self._label}warning: {text}", style="yellow", markup=False, soft_wrap=True)
