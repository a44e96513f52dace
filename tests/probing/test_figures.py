import dataclasses

import matplotlib
import numpy as np
import pytest

from stepalign.probing import figures
from stepalign.probing.measures import DISTANCES, credit_by_position, distance_label
from stepalign.report.figures import STYLE


def test_every_picture_is_written_as_png_and_svg(build_probe, tmp_path) -> None:
    drawings = figures.write(build_probe(4), tmp_path, rollouts=1)
    names = ["regions", "positions", "rollout-1"]
    assert list(drawings) == [*names, "regions-narrow", "positions-narrow"]
    assert (tmp_path / "regions.svg").read_text() == drawings["regions"]
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert (tmp_path / "regions.png").read_bytes().startswith(b"\x89PNG")


def test_a_rollout_has_a_panel_a_context_with_its_error_and_steps(build_probe) -> None:
    probe = build_probe(2, contexts=3)
    with matplotlib.rc_context(STYLE):
        figure = figures.along_rollout(probe, "pens/001")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["stepalign", "refsol", "quoted"]
    assert {text.get_text() for text in figure.axes[0].texts} == {"step 1", "step 2", " first error "}


def test_nothing_is_drawn_of_nothing(build_probe, tmp_path) -> None:
    probe = dataclasses.replace(build_probe(2), credits=(), marks=(), measures=type(build_probe(2).measures)())
    assert figures.write(probe, tmp_path) == {}
    assert figures.along_rollout(probe, "pens/001") is None


def test_credit_by_position_is_the_mean_over_tokens_at_that_distance(build_probe) -> None:
    probe = build_probe(6, tokens=60)
    found = credit_by_position(probe.rollouts, probe.marks, probe.credits)["stepalign"]
    at = [distance_label(distance) for distance in DISTANCES].index("3–4", len(DISTANCES) // 2)
    error = 59 // 2
    wanted = [credit.values[error + 3 : error + 5] for credit in probe.credits if credit.context == "stepalign"][1::2]
    assert found[at].value == pytest.approx(np.mean(wanted))
    assert found[at].low <= found[at].value <= found[at].high
    assert found[at].n == 3
