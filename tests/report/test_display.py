import pytest

from stepalign.report import display


@pytest.mark.parametrize(
    ("metric", "number", "shown"),
    [("avg", 129 / 360, "35.83 %"), ("pass", 1.0, "100.00 %"), ("length", 1996.07, "1,996.07"), ("lines", 7.2, "7.20")],
)
def test_values_as_table_1_prints_them(metric: str, number: float, shown: str) -> None:
    assert display.value(metric, number, 2) == shown  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "number", "shown"),
    [
        ("avg", 0.0527, "+5.3"),
        ("avg", -0.0204, "−2.0"),
        ("avg", -0.0001, "0.0"),
        ("length", -314.58, "−314.6"),
        ("lines", 1.5, "+1.5"),
    ],
)
def test_differences_carry_a_sign_unless_nothing_is_left_after_rounding(metric, number, shown) -> None:
    assert display.difference(metric, number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_carry_over(seconds: float, shown: str) -> None:
    assert display.duration(seconds) == shown


def test_hidden_characters_are_shown_and_others_are_left_alone() -> None:
    shown = str(display.visible("a\u202eb\ud800\x00\r\n\tשלום 👩‍🔬 <é>"))
    assert 'title="right-to-left override">U+202E</span>b' in shown
    assert "U+D800" in shown
    assert "U+0000" in shown
    assert "U+000D</span>\n\tשלום 👩‍🔬 &lt;é&gt;" in shown
