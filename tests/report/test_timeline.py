"""A step by the clock."""

import re

from stepalign.report import timeline

STEP = {
    "step": 3,
    "sample": [[0.0, 2.0]],
    "answered": [[0.5, 1.0], [0.6, 2.5]],
    "critique": [[2.0, 2.0]],
    "teacher": [[2.0, 2.2], [2.5, 2.7]],
    "student": [[2.2, 2.4], [2.7, 3.0]],
    "optimizer": [[3.0, 3.1]],
}


def test_a_row_for_each_stage_that_took_any_time() -> None:
    drawn = timeline.svg(STEP)
    rows = re.findall(r">(sampling|critic|waiting for it|teacher|student|optimizer)<", drawn)
    assert rows == ["sampling", "critic", "teacher", "student", "optimizer"]
    assert timeline.png(STEP).startswith(b"\x89PNG")


def test_nothing_is_drawn_of_a_step_in_which_nothing_ran() -> None:
    for step in ({}, {"step": 1, "answered": []}):
        assert timeline.svg(step) == ""
        assert timeline.png(step) == b""
