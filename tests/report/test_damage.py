"""Damaged files of a run's folder: a report or one error that names the file, and never a traceback."""

import json
from pathlib import Path

import pytest

from damage import damages, restore
from stepalign import report
from stepalign.errors import StepalignError
from stepalign.report import figures

PARTS = [
    *("recipe.toml", "manifest.json", "metrics.jsonl", "timeline.jsonl", "problems/train.jsonl"),
    *("rollouts/step-000006.jsonl", "critiques/step-000006.jsonl", "evaluations/step-000003.json"),
    "probe/step-000000.json",
]


@pytest.fixture(scope="module")
def folder(build_run_in, tmp_path_factory) -> Path:
    folder = build_run_in(tmp_path_factory.mktemp("runs"), problems=3, samples=2)
    (folder / "timeline.jsonl").write_text('{"step": 6, "sample": [[0.0, 1.5]], "answered": [[1.0, 2.0]]}\n')
    interval = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 3, "over": "problems"}
    measures = {"contexts": {"refsol": {"correct": interval, "at": interval}}, "baselines": {}, "resamples": 50}
    (folder / "probe").mkdir()
    (folder / "probe" / "step-000000.json").write_text(json.dumps(measures))
    return folder


@pytest.mark.parametrize("name", PARTS)
def test_a_damaged_file_gives_a_page_or_an_error_that_names_it(name: str, folder: Path) -> None:
    file, errors = folder / name, 0
    content = file.read_bytes()
    for damage, act in damages(file, most=60):
        act()
        try:
            summary = report.summarize(folder)
            run = summary.run
            panels = {"training": figures.training_panels(run.steps), "probe": figures.probe_panels(run.probes)}
            figures.evaluation_panels({run.name: run.evaluations})
            assert panels is not None
            report.run_page(summary, {})
        except StepalignError as error:
            assert name in str(error), damage  # noqa: PT017
            errors += 1
        finally:
            restore(file, content)
    assert errors > 5
    report.run_page(report.summarize(folder), {})


def test_files_that_are_no_step_s_are_passed_over(folder: Path) -> None:
    for name in ("rollouts/step-x.jsonl", "evaluations/step-000003 (copy).json", "probe/step-.json"):
        (folder / name).write_text("of another program")
        report.run_page(report.summarize(folder), {})
        (folder / name).unlink()
