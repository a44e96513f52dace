import json
from dataclasses import replace
from pathlib import Path

import pytest

from stepalign import config
from stepalign.error_injection.sets import plant_set
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_jsonl
from stepalign.records import Critique, PlantedSlip, Problem, Rollout

ROWS = [
    {
        "question": f"Two boxes of {n} pens and {n + 1} more?",
        "ground_truth": f"2*{n} = {2 * n}\n{2 * n}+{n + 1} = {3 * n + 1}\nA: {3 * n + 1}",
        "small": {
            "is_correct": True,
            "solution": f"2*{n} = {2 * n} pens\n{2 * n}+{n + 1} = {3 * n + 1}\nA: {3 * n + 1}",
        },
        "large": {"is_correct": False, "solution": f"{n}+2 = {n + 2} pens\nA: {n + 2}"},
    }
    for n in (17, 30, 52, 71)
]


@pytest.fixture
def model(tiny_llama: Path) -> config.ModelConfig:
    return config.ModelConfig(name_or_path=str(tiny_llama))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "solutions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_a_set_is_a_folder_whose_files_belong_together(file: Path, model: config.ModelConfig, tmp_path: Path) -> None:
    out = tmp_path / "planted"
    planted = plant_set(str(file), out, model=model)
    slips = read_jsonl(out / "slips.jsonl", PlantedSlip)
    rollouts = {rollout.id: rollout for rollout in read_jsonl(out / "rollouts.jsonl", Rollout)}
    critiques = {critique.rollout_id: critique for critique in read_jsonl(out / "critiques.jsonl", Critique)}
    assert slips == planted.slips
    assert len(slips) == 4
    assert rollouts.keys() == critiques.keys()
    assert len(rollouts) == 8
    for slip in slips:
        assert rollouts[slip.rollout_id].text == slip.text
        assert rollouts[slip.rollout_id.removesuffix("/slip")].text == slip.correct_text
        assert critiques[slip.rollout_id].first_error == slip.step
    natural = read_jsonl(out / "natural.jsonl", Rollout)
    assert [rollout.correct for rollout in natural] == [True, False] * 4
    assert len(read_jsonl(out / "problems.jsonl", Problem)) == 4
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["solutions"] == {"right": 4, "wrong": 4}
    assert manifest["planted"] == sum(manifest["kinds"].values()) == 4


def test_rollouts_of_ones_own_are_planted_as_they_are(file: Path, model: config.ModelConfig, tmp_path: Path) -> None:
    first = tmp_path / "first"
    plant_set(str(file), first, model=model)
    # Rollouts keep the ids that were sampled, whatever the tokenizer would make of their text.
    sampled = [
        replace(r, completion_ids=r.completion_ids[:-1], token_starts=r.token_starts[:-1])
        for r in read_jsonl(first / "rollouts.jsonl", Rollout)
    ]
    write_jsonl(first / "rollouts.jsonl", sampled)
    rollouts, again = str(first / "rollouts.jsonl"), tmp_path / "again"
    with pytest.raises(StepalignError, match="--problems"):
        plant_set(rollouts, again, model=model)
    planted = plant_set(rollouts, again, model=model, problems_file=first / "problems.jsonl", limit=2, seed=1)
    assert len(planted.slips) == 2
    assert [r for r in planted.rollouts if r.correct] == [r for r in sampled if r.correct][:2]
    assert {slip.correct_text for slip in planted.slips} <= {
        r.text for r in read_jsonl(first / "natural.jsonl", Rollout)
    }


def test_generated_problems_can_be_planted(model: config.ModelConfig, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    planted = plant_set("gsm_symbolic", tmp_path, model=model, limit=3)
    assert len(planted.slips) == 3
    assert all(rollout.correct for rollout in planted.natural)


def test_reference_solutions_can_be_planted(model: config.ModelConfig, tmp_path: Path) -> None:
    solution = "2*17 = 34 pens\n34+18 = 52"
    raw, records = tmp_path / "raw.jsonl", tmp_path / "records.jsonl"
    raw.write_text(json.dumps({"question": "Two boxes of 17 and 18 more?", "answer": f"{solution}\n#### 52"}) + "\n")
    write_jsonl(records, [Problem(id="p", statement="Two boxes of 17 and 18 more?", answer="52", solution=solution)])
    slips = [plant_set(str(file), tmp_path / file.stem, model=model).slips for file in (raw, records)]
    assert [slip.rollout_id for (slip,) in slips] == ["gsm8k-raw-0/reference/slip", "p/reference/slip"]


def test_bad_input_is_named(model: config.ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"gone\.jsonl: neither a JSONL file nor 'gsm_symbolic'"):
        plant_set("gone.jsonl", tmp_path, model=model)
    with pytest.raises(StepalignError, match="no kind of slip 'typo'; allowed: arithmetic, sign"):
        plant_set("gsm_symbolic", tmp_path, model=model, kinds=["sign", "typo"])


def test_only_slips_of_the_kinds_that_are_named_are_planted(
    file: Path, model: config.ModelConfig, tmp_path: Path
) -> None:
    assert {slip.kind for slip in plant_set(str(file), tmp_path, model=model, kinds=["sign"]).slips} == {"sign"}
