import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stepalign import config
from stepalign.data import load

SHARED = Path(__file__).parents[2] / "../shared/data/gsm8k"


def raw(tmp_path: Path, *answers: str) -> config.Gsm8kConfig:
    path = tmp_path / "train.jsonl"
    rows = [{"question": f"Question {n}?", "answer": answer} for n, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config.Gsm8kConfig(path=path)


def test_the_solution_is_shown_without_annotations_and_last_line(tmp_path: Path) -> None:
    (problem,) = load(raw(tmp_path, "In May 48/2 = <<48/2=24>>24.\nThat is $<<48+24=72>>72.\n#### 1,072")).problems
    assert problem.solution == "In May 48/2 = 24.\nThat is $72."
    assert problem.answer == "1072"
    assert problem.id == "gsm8k-train-0"


def test_an_answer_without_its_last_line_is_counted_as_missing(tmp_path: Path) -> None:
    result = load(raw(tmp_path, "So it is 5.", "It is 6.\n#### 6"))
    assert [problem.id for problem in result.problems] == ["gsm8k-train-1"]
    assert result.dropped == {"missing answer": 1}


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"GSM8K is not at {SHARED}")
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_all_of_the_real_data_is_read(split: str, count: int) -> None:
    path = SHARED / f"{split}.jsonl"
    result = load(config.Gsm8kConfig(path=path))
    assert len(result.problems) == count
    assert not result.dropped
    originals = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for problem, original in zip(result.problems, originals, strict=True):
        assert problem.statement == original["question"].strip()
        assert re.fullmatch(r"-?\d+", problem.answer), problem
        assert not re.search("<<|>>|####", problem.solution), problem
        assert problem.solution, problem
        *kept, last = original["answer"].splitlines()
        assert last.replace(",", "") == f"#### {problem.answer}"
        assert len(problem.solution.splitlines()) == len("\n".join(kept).strip().splitlines())
    assert len({problem.id for problem in result.problems}) == count


@pytest.mark.parametrize(
    ("source", "dataset", "advice"),
    [
        ("config.Gsm8kConfig()", "openai/gsm8k", 'source = "gsm8k", path = "train.jsonl"'),
        ("config.OpenMathConfig()", "nvidia/OpenMathReasoning", 'source = "file", path = "….parquet"'),
    ],
)
def test_without_network_the_error_names_the_data_set_and_what_to_do(
    tmp_path: Path, source: str, dataset: str, advice: str
) -> None:
    script = (
        "from stepalign import config, data, errors\n"
        f"try: data.load({source})\n"
        "except errors.StepalignError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{dataset} cannot be read from the Hugging Face hub")
    assert advice in done.stdout
