from pathlib import Path

import pytest

from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import CreditMeasures
from stepalign.evaluation.stats import Interval
from stepalign.probing import folder
from stepalign.probing.folder import Probe
from stepalign.records import Credit, CritiqueFailure, Mark, Problem, Rollout

PROBE = Probe(
    problems=(Problem(id="p", statement="s", answer="1"),),
    rollouts=(
        Rollout(id="r", problem_id="p", completion_ids=(5, 6), text="1 ", token_starts=(0, 1), finish="stop"),
    ),
    critic_results=(CritiqueFailure(rollout_id="r", critic="c", reason="parse"),),
    marks=(Mark(rollout_id="r", step=1, start=0, end=1, source="planted"),),
    credits=tuple(
        Credit(
            rollout_id="r", context=context, prompt="m", student=(-1.0, -2.0), teacher=(-0.5, -4.0),
            student_top=(((5, -1.0), (7, -2.0)), ((6, -2.0),)),
        )
        for context in ("refsol", "stepalign")
    ),
    tokens={5: "1", 6: " ", 7: "\ufffd"},
    measures=CreditMeasures(contexts={"refsol": {"at": Interval(value=0.5, low=0.1, high=0.9, n=1)}}, resamples=2000),
    manifest={"stepalign": "0.1.0"},
)  # fmt: skip


def test_a_probe_survives_its_folder(tmp_path: Path) -> None:
    folder.write(PROBE, tmp_path / "made")
    assert folder.read(tmp_path / "made") == PROBE
    assert PROBE.contexts == ("refsol", "stepalign")


def test_a_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    folder.write(PROBE, tmp_path)
    (tmp_path / "measures.json").write_text('{"contexts": 3}')
    with pytest.raises(StepalignError, match=r"measures\.json: not a valid CreditMeasures: contexts: "):
        folder.read(tmp_path)
    (tmp_path / "marks.jsonl").unlink()
    with pytest.raises(StepalignError, match=r"marks\.jsonl: No such file"):
        folder.read(tmp_path)


def test_the_frame_has_a_row_a_token_and_context() -> None:
    frame = PROBE.frame()
    assert len(frame) == 4
    first = frame.iloc[0]
    assert (first["rollout"], first["context"], first["position"], first["token"], first["text"]) == (
        "r", "refsol", 0, 5, "1",
    )  # fmt: skip
    assert list(frame["credit"]) == [0.5, -2.0] * 2
    assert list(frame["place"]) == ["at", "after"] * 2
