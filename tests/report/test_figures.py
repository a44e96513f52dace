import re

import pytest

from stepalign.report.figures import Curve, Panel, draw_panels, draw_timeline, inline, raster, vector


def drawn(*labels: str) -> str:
    curves = [Curve(label, (0, 5, 10), (0.1, 0.2, float("nan"))) for label in labels]
    return inline(vector(draw_panels([Panel("Avg@12", "share", curves)])))


def test_labels_are_drawn_as_they_are_written() -> None:
    drawing = drawn("_first", "a$x^2$b", "<script>")
    assert "> _first<" in drawing
    assert ">a$x^2$b<" in drawing
    assert ">&lt;script&gt;<" in drawing


def test_of_a_long_label_the_end_is_drawn() -> None:
    drawing = drawn("short", "runs/" * 50 + "end")
    (label,) = re.findall(r">(…[^<]*)<", drawing)
    assert label.endswith("/end")
    assert len(label) == 40


def test_a_character_that_the_font_lacks_is_drawn_as_a_question_mark() -> None:
    assert ">run ?<" in drawn("run 数", "other")


def test_a_drawing_takes_its_colours_and_fonts_from_the_page() -> None:
    drawing = drawn("a", "b")
    assert "var(--series-1)" in drawing
    assert "var(--series-2)" in drawing
    assert "var(--ink)" in drawing
    assert "var(--sans)" in drawing
    assert "DejaVu" not in drawing
    assert not re.search(r"#(?!000000|ffffff)[0-9a-f]{6}\b", re.sub(r'(id|href|url)[=(]"?#?[^")]*', "", drawing))


@pytest.mark.parametrize("count", [2, 8])
def test_names_of_curves_stand_below_the_axis_and_leave_the_axes_their_height(count: int) -> None:
    curves = [Curve(f"a-long-name-of-a-condition-{number}", (0, 5), (0.1, 0.2)) for number in range(count)]
    figure = draw_panels([Panel("Avg@12", "share", curves)] * 2, columns=2)
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend, label = axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()
        assert legend.y1 <= label.y0
        assert axes.get_window_extent().height / figure.dpi > 1.2, "inches"


def test_a_seventh_curve_does_not_look_like_the_first() -> None:
    drawing = drawn(*"abcdefg")
    dashes = re.findall(r'style="fill: none;([^"]*var\(--series-1\)[^"]*)"', drawing)
    assert len(set(dashes)) > 1


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
    timeline = draw_timeline(STEP)
    assert timeline is not None
    rows = re.findall(r">(sampling|critic|critic wait|teacher|student|optimizer)<", inline(vector(timeline)))
    assert rows == ["sampling", "critic", "teacher", "student", "optimizer"]
    assert raster(timeline).startswith(b"\x89PNG")


def test_nothing_is_drawn_of_a_step_in_which_nothing_ran() -> None:
    for step in ({}, {"step": 1, "answered": []}):
        assert draw_timeline(step) is None
