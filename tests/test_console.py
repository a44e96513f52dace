"""Progress on a terminal and in a log."""

import io

import pytest
from rich.console import Console as RichConsole

from stepalign import console
from stepalign.console import Console


def test_a_stage_ends_at_its_total_and_a_failed_one_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        console,
        "RichConsole",
        lambda **_: RichConsole(file=screen, force_terminal=True, width=100, legacy_windows=False),
    )
    with Console() as shown:
        with shown.stage("sample", 8) as advance:
            advance(5)
        with pytest.raises(ValueError, match="no"), shown.stage("teacher", 4) as advance:
            raise ValueError("no")
    assert "8/8" in screen.getvalue()
    assert "4/4" not in screen.getvalue()


def test_lines_carry_the_name_of_the_run_that_shares_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Console(3)
    shown.say("before")
    shown.set_label("refsol-0")
    shown.step_done("step 1: loss 0.5")
    shown.warn("step 1: canary")
    assert capsys.readouterr().err.splitlines() == [
        "before", "refsol-0 step 1: loss 0.5", "refsol-0 warning: step 1: canary"
    ]  # fmt: skip
