"""Whole runs on a tiny model: what they leave behind, and that a stopped one goes on to the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from processes import fork
from serving.fault_server import Reply, serving
from stepalign import config, precision
from stepalign.chat import load_chat
from stepalign.config import Recipe, TeacherConfig, registry
from stepalign.critics.quoting import unquote
from stepalign.critics.schema import compose, num_sections
from stepalign.distributed.strategy import ParallelStrategy
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation
from stepalign.io import read_jsonl, write_jsonl
from stepalign.launch import train
from stepalign.policy import Policy
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem, Rollout, Verdict
from stepalign.rollouts import transformers as sampling
from stepalign.teachers.stateless import BaseTeacher
from stepalign.trace import parse
from stepalign.trainer import checkpoints, loop
from stepalign.trainer.build import _drop_long_problems, build_trainer
from stepalign.trainer.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("no_figures")

MakeRecipe = Callable[..., Recipe]


def run(settings: Recipe) -> Path:
    """A run without its report."""
    with ExitStack() as stack:
        opened = RunFolder(settings)
        stack.callback(opened.close)
        build_trainer(settings, opened, stack).train()
    return settings.folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def what_was_computed(folder: Path) -> dict[str, Any]:
    """Everything in a run's folder but times of the clock, and cards, which belong to the report."""
    found: dict[str, Any] = {"metrics": [{**values, "seconds": None} for values in metrics(folder)]}
    for path in sorted(folder.glob("*/**/*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".tmp":  # what a killed process was about to write
            continue
        if path.is_file() and not name.startswith("figures") and path.name != "README.md":
            found[name] = path.read_bytes()
        if name.startswith("critiques"):
            found[name] = [{**json.loads(line), "seconds": None} for line in path.read_text().splitlines()]
    return found


def adapter(folder: Path, step: int) -> bytes:
    return (folder / "checkpoints" / f"step-{step:06d}" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def _float32_products() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


# ── end to end ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_leaves_a_whole_folder_behind(finished_run: Recipe) -> None:
    folder = finished_run.folder
    steps = [f"step-{step:06d}.jsonl" for step in (1, 2, 3, 4)]
    assert sorted(path.name for path in (folder / "rollouts").iterdir()) == steps
    assert sorted(path.name for path in (folder / "critiques").iterdir()) == steps
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert sorted(path.name for path in (folder / "evaluations").iterdir()) == [
        f"step-{step:06d}.{kind}" for step in (0, 3, 4) for kind in ("json", "jsonl")
    ]
    assert "tiny" in (folder / "report.html").read_text()
    assert (folder / "figures" / "training.png").stat().st_size
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["problems"] == {"train": 9, "evaluation": 3, "dropped": {}}
    assert config.load(folder / "recipe.toml") == finished_run
    assert not list(folder.rglob("*.tmp"))


def test_every_step_records_what_it_did(finished_run: Recipe) -> None:
    recorded = metrics(finished_run.folder)
    assert [values["step"] for values in recorded] == [1, 2, 3, 4]
    for values in recorded:
        rollouts = (finished_run.folder / "rollouts" / f"step-{values['step']:06d}.jsonl").read_text().splitlines()
        drawn = [json.loads(line) for line in rollouts]
        assert values["rollouts"] == len(drawn) == 4
        assert values["completion_tokens"] == sum(len(rollout["completion_ids"]) for rollout in drawn)
        assert values["truncated"] == sum(rollout["finish"] == "length" for rollout in drawn) / 4
        assert len({rollout["problem_id"] for rollout in drawn}) == 2, "two problems, two rollouts each"
        assert {rollout["policy_step"] for rollout in drawn} == {values["step"] - 1}
        assert sum(values["cases"].values()) + sum(values["failures"].values()) == 4
        critiques = (finished_run.folder / "critiques" / f"step-{values['step']:06d}.jsonl").read_text().splitlines()
        checks = [check for line in critiques for check in json.loads(line)["checks"]]
        passed = sum(found.get("passed", 0) for found in values["checks"].values())
        assert passed == sum(check["passed"] for check in checks)
        assert values["critic_tokens"] == {"read": 0, "written": 0}
        assert values["outcomes"]["trained"] + values["outcomes"].get("dropped", 0) == 4
        assert values["epoch"] == pytest.approx(values["step"] * 2 / 9)
        assert values["tokens"] <= values["completion_tokens"]
        assert values["loss"] > 0
        assert {"sample", "critique", "teacher", "student", "optimizer"} <= values["seconds"].keys()


def test_training_moves_the_policy_that_is_sampled(finished_run: Recipe) -> None:
    folder = finished_run.folder
    assert adapter(folder, 2) != adapter(folder, 4)
    before, after = (
        [json.loads(line)["completion_ids"] for line in path.read_text().splitlines()]
        for path in sorted((folder / "evaluations").glob("*.jsonl"))[::2]
    )
    assert before != after, "the same seeds, another policy"


# ── overlap ───────────────────────────────────────────────────────────────────────────────────────────────────


def served(url: str, *, trial: bool = False) -> str:
    share = 0.5 if trial else 1
    table = f'kind = "openai", base_url = "{url}", model = "program", max_attempts = 1, max_failure_share = {share}'
    return f"critic={{ {table} }}"


def test_learning_begins_with_a_served_critic_s_first_answers_and_comes_to_the_same(
    finished_run: Recipe, make_recipe: MakeRecipe
) -> None:
    """The server says what the program critic said of the same attempts."""
    name = "step-000001.jsonl"
    texts = {r.id: r.text for r in read_jsonl(finished_run.folder / "rollouts" / name, Rollout)}
    answers = [json.loads(line) for line in (finished_run.folder / "critiques" / name).read_text().splitlines()]
    said = {texts[answer["rollout_id"]].strip(): answer.get("text", "none") for answer in answers}

    def words(prompt: str) -> str:
        attempt = prompt.partition("Student's Solution Begin ===\n")[2].partition("\n=== Student's")[0]
        return said.get(unquote(attempt).strip(), "none")

    folders = []
    with serving(Reply(words)) as server:
        for overlap in ("true", "false"):
            begin = len(server.requests)
            once = ("training.max_steps=1", f"training.overlap={overlap}", f"name=overlap-{overlap}")
            folders.append(run(make_recipe(served(server.url), *once)))
            assert len(server.requests) - begin == 1 + 4, "one to find out if the server works"
    whole = metrics(finished_run.folder)[0]
    assert whole["cases"]
    for folder in folders:
        (mine,) = metrics(folder)
        assert mine["cases"] == whole["cases"]
        for key in ("loss", "kl", "grad_norm", "tokens", "teacher_tokens", "student_tokens"):
            assert mine[key] == pytest.approx(whole[key], rel=1e-4), key
        kept = (folder / "critiques" / name).read_text().splitlines()
        assert [json.loads(line)["rollout_id"] for line in kept] == list(texts)
    early, late = (json.loads((folder / "timeline.jsonl").read_text()) for folder in folders)
    assert (len(early["answered"]), len(late["answered"])) == (4, 0)
    assert early["answered"][0][0] <= early["sample"][0][1], "asked while others are drawn"


def test_tokens_and_operations_are_those_of_all_updates_and_of_each_model_that_reads(make_recipe: MakeRecipe) -> None:
    keys = ("training.max_steps=1", "context.template=refsol", "algorithm.kind=credit-grpo", "algorithm.kl_coef=0.1")
    folders = [
        run(make_recipe(*keys, "teacher.kind=trust-region", f"algorithm.num_iterations={n}", f"name=n{n}"))
        for n in (1, 2)
    ]
    one, two = (metrics(folder)[0] for folder in folders)
    assert two["student_tokens"] == two["base_tokens"] == 2 * one["student_tokens"]
    assert two["teacher_tokens"] == one["teacher_tokens"] > one["student_tokens"], "credit is made once a step"
    assert two["cost"]["teacher_tokens"] == two["teacher_tokens"] + two["base_tokens"]
    # The second update adds the student's forward and backward pass and the base's. A trust region is two models.
    token = (two["cost"]["flops"] - one["cost"]["flops"]) / (3 * one["student_tokens"])
    rollouts = read_jsonl(folders[0] / "rollouts" / "step-000001.jsonl", Rollout)
    sampled = sum(len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in rollouts)
    assert one["cost"]["flops"] == token * (sampled + 3 * one["student_tokens"] + 2 * one["teacher_tokens"])


@pytest.mark.parametrize("overrides", [["context.shuffled=true"], ["training.overlap=false"]])
def test_what_needs_the_whole_step_s_critiques_waits_for_them(
    overrides: list[str], make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "iter_micro_batches", None)
    with serving(Reply("none")) as server:
        folder = run(make_recipe(served(server.url), "training.max_steps=1", *overrides))
    assert len(metrics(folder)) == 1


def test_a_critic_that_breaks_in_mid_step_costs_no_rollouts(make_recipe: MakeRecipe) -> None:
    with serving(Reply("yes"), Reply(status=401)) as server:
        settings = make_recipe(served(server.url))
        with pytest.raises(StepalignError, match="401"):
            run(settings)
    assert len((settings.folder / "rollouts" / "step-000001.jsonl").read_text().splitlines()) == 4
    assert not (settings.folder / "metrics.jsonl").exists()


# ── stopped and taken up again ────────────────────────────────────────────────────────────────────────────────


class Stop(BaseException):
    """Stands for the end of the process: nothing catches it."""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("room", "name", "call", "when"),
    [
        pytest.param(RunFolder, "describe", 1, "before", marks=SLOW),
        pytest.param(RunFolder, "save_evaluation", 1, "before", marks=SLOW),
        pytest.param(sampling._Batch, "_decode", 40, "before", marks=SLOW),
        pytest.param(RunFolder, "save_rollouts", 2, "after", marks=SLOW),
        (RunFolder, "save_critiques", 3, "after"),
        (loop, "update", 3, "after"),
        pytest.param(RunFolder, "append_metrics", 3, "after", marks=SLOW),
        pytest.param(RunFolder, "append_metrics", 4, "after", marks=SLOW),
        (checkpoints, "save_file", 2, "before"),
        pytest.param(checkpoints, "save_file", 1, "after", marks=SLOW),
        (checkpoints, "save", 1, "after"),
        pytest.param(checkpoints, "save", 2, "after", marks=SLOW),
        pytest.param(RunFolder, "save_evaluation", 2, "before", marks=SLOW),
        pytest.param(RunFolder, "save_evaluation", 2, "after", marks=SLOW),
    ],
)
def test_a_run_stopped_at_any_moment_goes_on_to_the_same_numbers(
    room: Any,
    name: str,
    call: int,
    when: str,
    finished_run: Recipe,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, original, calls = make_recipe(), getattr(room, name), 0

    def stopping(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            raise Stop
        result = original(*args, **kwargs)
        if calls == call:
            raise Stop
        return result

    with monkeypatch.context() as patched:
        patched.setattr(room, name, stopping)
        with pytest.raises(Stop):
            run(settings)
    run(settings)
    assert what_was_computed(settings.folder) == what_was_computed(finished_run.folder)


def wait_for(folder: Path, pattern: str, running: Callable[[], bool]) -> None:
    """Until a path appears in the folder."""
    while not any(folder.glob(pattern)):
        assert running(), f"the run ended before there was a {pattern}"
        time.sleep(0.001)


def test_a_killed_run_resumes_to_the_same_adapter(finished_run: Recipe, make_recipe: MakeRecipe) -> None:
    settings = make_recipe()
    process = fork(train, settings)
    wait_for(settings.folder, "rollouts/step-000003.jsonl", process.is_alive)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (settings.folder / "report.html").exists()
    run(settings)
    assert what_was_computed(settings.folder) == what_was_computed(finished_run.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [
        "recipe.toml",
        "evaluations/step-000000.json",
        "critiques/step-000001.jsonl",
        "metrics.jsonl",
        "checkpoints/.step-000002.*.tmp",
        "checkpoints/.step-000002.*.tmp/optimizer.safetensors",
        "checkpoints/step-000002",
        "evaluations/step-000003.jsonl",
        "checkpoints/.step-000004.*.tmp/adapter_model.safetensors",
        "evaluations/step-000004.json",
        "figures",
    ],
)
@pytest.mark.parametrize("after", [0.0, 0.02])
def test_a_run_killed_twice_resumes_to_the_same_numbers(
    pattern: str, after: float, finished_run: Recipe, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe()
    for first in (pattern, "checkpoints/step-000002"):
        process = fork(train, settings)
        try:
            wait_for(settings.folder, first, process.is_alive)
        except AssertionError:
            pytest.skip(f"{first} came and went between two looks")
        time.sleep(after)
        process.kill()
        process.join()
    run(settings)
    assert what_was_computed(settings.folder) == what_was_computed(finished_run.folder)


def test_more_steps_go_on_where_fewer_ended(finished_run: Recipe, make_recipe: MakeRecipe) -> None:
    run(make_recipe("training.max_steps=2"))
    folder = run(make_recipe())
    assert adapter(folder, 4) == adapter(finished_run.folder, 4)
    assert [values["step"] for values in metrics(folder)] == [1, 2, 3, 4]


def test_fewer_steps_than_are_done_do_nothing(make_recipe: MakeRecipe) -> None:
    folder = run(make_recipe("training.max_steps=2"))
    before = what_was_computed(folder)
    run(make_recipe("training.max_steps=1"))
    assert what_was_computed(folder) == before


def test_a_finished_run_is_left_alone_and_reported_again(
    finished_run: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    before = what_was_computed(finished_run.folder)
    (finished_run.folder / "report.html").unlink()
    assert train(finished_run).folder == finished_run.folder
    assert "tiny" in (finished_run.folder / "report.html").read_text()
    assert what_was_computed(finished_run.folder) == before
    assert "going on from step-000004" in capsys.readouterr().err


def test_a_damaged_checkpoint_stops_the_run_and_the_command_it_says_goes_on(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_recipe("training.max_steps=3", "training.save_steps=1")
    folder = run(settings)
    whole = adapter(folder, 3)
    for step in (2, 3):
        file = folder / "checkpoints" / f"step-00000{step}" / "optimizer.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr("stepalign.models.load_policy", None)  # known before the weights are loaded
        with pytest.raises(StepalignError, match=r"step-000003/optimizer\.safetensors: damaged") as raised:
            run(settings)
    command = str(raised.value).partition("The last good checkpoint is step-000001. To go on from it: `")[2]
    subprocess.run(command.partition("`")[0], shell=True, check=True)
    run(settings)
    assert adapter(folder, 3) == whole


def test_a_checkpoint_of_an_earlier_release_goes_on_with_a_line_that_says_so(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str], finished_run: Recipe
) -> None:
    settings = make_recipe("training.max_steps=2")
    folder = run(settings)
    (folder / "checksums.jsonl").unlink()
    (folder / "checkpoints" / "step-000002" / "SHA256SUMS").unlink()
    (folder / "checkpoints" / "step-000002" / "state.json").write_text('{"step": 2}')
    assert "checksums" not in capsys.readouterr().err
    run(make_recipe())
    assert "step-000002: written without checksums, by an earlier release" in capsys.readouterr().err
    assert adapter(folder, 4) == adapter(finished_run.folder, 4)


# ── what the loop must survive ────────────────────────────────────────────────────────────────────────────────


def test_identical_truncated_rollouts_are_warned_of(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(
        make_recipe(
            *(
                "training.max_steps=1",
                "training.num_generations=4",
                "sampling.temperature=0",
                "sampling.max_new_tokens=3",
            ),
        )
    )
    warned = capsys.readouterr().err
    assert "warning: step 1: every rollout reached sampling.max_new_tokens = 3" in warned
    assert "warning: step 1: all 4 rollouts are the same text:" in warned
    assert metrics(folder)[0]["truncated"] == 1


def test_empty_rollouts_do_not_stop_a_run(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "sample_tokens", lambda logits, noise, settings: torch.full((len(logits),), 2))
    folder = run(make_recipe("training.max_steps=1"))
    (values,) = metrics(folder)
    assert values["completion_tokens"] == 4, "an EOS each"
    assert values["correct"] == values["formatted"] == values["truncated"] == 0
    assert "all 4 rollouts are the same text: ''" in capsys.readouterr().err


def test_a_step_without_examples_updates_nothing_and_is_counted(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_recipe("teacher.max_length=50", "training.max_steps=2", "training.save_steps=1")
    folder = run(settings)
    for values in metrics(folder):
        assert "loss" not in values
        assert values["outcomes"] == {"dropped": 4, "failed": 0}
        assert values["failures"] == {"teacher prompt too long": 4}
    assert adapter(folder, 1) == adapter(folder, 2)
    assert "warning: step 2: no rollout carries a gradient, so no update was made" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_run_and_step(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_recipe("optimizer.lr=1e30", "optimizer.warmup_steps=0")
    with pytest.raises(StepalignError, match=r"runs/tiny, step [234]: the (loss|gradient's norm) is"):
        run(settings)


def test_the_learning_rate_warms_up_over_the_runs_steps(make_recipe: MakeRecipe) -> None:
    short = ("problems.holdout=0", "training.max_steps=2", "training.save_steps=1", "optimizer.max_grad_norm=1e9")
    folder = run(make_recipe(*short, "optimizer.lr=8e-3", "optimizer.warmup_steps=8"))
    assert [values["lr"] for values in metrics(folder)] == pytest.approx([1e-3, 2e-3])
    first = load_file(folder / "checkpoints" / "step-000001" / "adapter_model.safetensors")
    moved = max(weight.abs().max().item() for name, weight in first.items() if "lora_B" in name)
    assert moved == pytest.approx(1e-3, rel=0.01), "from zero, AdamW's first step is as long as its rate"


@pytest.mark.parametrize("keys", [("optimizer.lr_scheduler_type=cosine",), ("optimizer.warmup_ratio=0.9",)])
def test_a_schedule_over_the_run_resumes_bit_for_bit_and_holds_its_length(
    keys: tuple[str, ...], make_recipe: MakeRecipe
) -> None:
    class Stop(loop.TrainerCallback):
        def on_save(self, trainer: loop.Trainer) -> None:
            if trainer.step == 2:
                raise KeyboardInterrupt

    keys = (
        *keys,
        "problems.holdout=0",
        "training.max_steps=3",
        "training.save_steps=1",
        "training.rollouts_per_step=2",
    )
    whole, parts = make_recipe(*keys, "name=whole"), make_recipe(*keys, "name=parts")
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        train(parts, [Stop()])
    with pytest.raises(StepalignError, match=r"training\.max_steps: 3 → 4"):
        run(make_recipe(*keys, "name=parts", "training.max_steps=4"))
    run(parts)
    one, other = (each.folder / "checkpoints" / "step-000003" / "adapter_model.safetensors" for each in (whole, parts))
    assert one.read_bytes() == other.read_bytes()
    rates = [[line["lr"] for line in metrics(each.folder)] for each in (whole, parts)]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 3


def test_a_run_without_evaluation_problems_says_so(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    settings = make_recipe("problems.holdout=0", "training.max_steps=1")
    run(settings)
    assert "warning: there are no evaluation problems" in capsys.readouterr().err
    assert not (settings.folder / "evaluations").exists()


def test_what_a_run_says_to_a_log_is_one_line_a_step(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_recipe("training.max_steps=2", "problems.holdout=0"))
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 2
    assert all(line.startswith(("step ", "warning: ")) for line in lines if "weights" not in line)


def long_and_short(folder: Path) -> Path:
    path = folder / "problems.jsonl"
    write_jsonl(
        path,
        [
            Problem(id="long", statement="Compute " + "1 + " * 1000 + "1.", answer="1001", solution="1001"),
            *(Problem(id=f"p{i}", statement=f"Compute {i} + 1.", answer=str(i + 1)) for i in range(4)),
        ],
    )
    return path


def test_problems_longer_than_the_context_are_left_out_counted_and_said(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f'problems.train={{ source = "file", path = "{long_and_short(tmp_path)}", columns = {{ id = "id" }} }}'
    folder = run(make_recipe(source, "problems.holdout=0", "training.max_steps=1"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["problems"] == {
        "train": 4,
        "evaluation": 0,
        "dropped": {"longer than the model's context": 1},
    }
    assert '"long"' not in (folder / "problems" / "train.jsonl").read_text()
    assert "problems left out: 1 longer than the model's context" in capsys.readouterr().err


def test_no_problem_with_room_for_a_completion_is_an_error(make_recipe: MakeRecipe) -> None:
    with pytest.raises(StepalignError, match=r"no problem leaves room for sampling.max_new_tokens = 1000 .* 1024"):
        run(make_recipe("sampling.max_new_tokens=1000"))


def test_no_problem_with_room_in_vllms_positions_is_an_error(make_recipe: MakeRecipe) -> None:
    settings = make_recipe("sampler={ kind = 'vllm', max_model_len = 25 }")
    chat, prompt = load_chat(settings.model), SolverPrompt(settings.prompts)
    problem = Problem(id="p", statement="Compute 1 + 1.", answer="2")
    with pytest.raises(StepalignError, match=r"max_new_tokens = 24 in 25 tokens, which .* sampler\.max_model_len"):
        _drop_long_problems(settings, chat, prompt, 1024, [problem], [], {})


def test_no_evaluation_problem_with_room_for_a_completion_is_an_error(make_recipe: MakeRecipe) -> None:
    message = r"evaluation problems: no problem leaves room for evaluation.sampling.max_new_tokens = 1000 .* 1024"
    with pytest.raises(StepalignError, match=message):
        run(make_recipe("evaluation.sampling.max_new_tokens=1000"))


@pytest.mark.slow
def test_a_run_with_dropout_resumes_to_the_same_adapter(make_recipe: MakeRecipe) -> None:
    overrides = ("lora.lora_dropout=0.3", "algorithm.loss_agg_mode=token-mean", "training.save_steps=1")
    folder = run(make_recipe(*overrides, "name=whole"))
    run(make_recipe(*overrides, "name=parts", "training.max_steps=2"))
    parts = run(make_recipe(*overrides, "name=parts"))
    assert adapter(parts, 4) == adapter(folder, 4)


# ── Ctrl-C ────────────────────────────────────────────────────────────────────────────────────────────────────


def processes_of_session(leader: int) -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
@pytest.mark.parametrize(
    ("stage", "pattern", "overrides"),
    [
        ("evaluate", "problems/train.jsonl", ["evaluation.num_samples=2000"]),
        ("sample", "evaluations/step-000000.json", ["training.rollouts_per_step=4000"]),
        ("critique", "rollouts/step-000001.jsonl", ["critic"]),
        ("learn", "critiques/step-000001.jsonl", ["training.rollouts_per_step=120", "training.micro_batch_size=1"]),
    ],
)
def test_an_interrupt_exits_with_130_says_how_to_go_on_and_leaves_no_process(
    stage: str, pattern: str, overrides: list[str], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with serving(Reply("yes"), Reply(wait_s=999)) as silent:  # a critic that never answers again
        if overrides == ["critic"]:
            overrides = [served(silent.url)]
        settings = make_recipe(*overrides)
        (tmp_path / "whole.toml").write_text(config.dump(settings))
        command = [sys.executable, "-m", "stepalign.cli", "train", str(tmp_path / "whole.toml")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        wait_for(settings.folder, pattern, lambda: process.poll() is None)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, f"{stage}: {said}"
    assert f"stopped; the same command goes on from {settings.folder}" in said
    assert "Traceback" not in said
    assert processes_of_session(process.pid) == []


class CountingTeacher(BaseTeacher):
    """The base, with state that a checkpoint must hold: the optimizer steps it has followed."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.steps = torch.zeros(1)

    def after_step(self, policy: Policy) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"steps": self.steps.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.steps = state["steps"].clone()


def test_a_teachers_state_is_in_the_checkpoint_and_resumes(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = registry.FAMILIES["teacher"]
    monkeypatch.setitem(kinds.tables, "counting", TeacherConfig)
    monkeypatch.setitem(kinds.implementations, "counting", "stepalign.teachers.stateless:CountingTeacher")
    monkeypatch.setattr("stepalign.teachers.stateless.CountingTeacher", CountingTeacher, raising=False)
    keys = ("teacher.kind=counting", "training.save_steps=1", "training.eval_steps=0")
    run(make_recipe(*keys, "training.max_steps=2"))
    run(make_recipe(*keys, "training.max_steps=3"))
    folder = make_recipe().folder / "checkpoints"
    steps = [load_file(path / "algorithm.safetensors")["steps"].item() for path in sorted(folder.glob("step-*"))]
    assert steps == [1, 2, 3]


def test_callbacks_are_called_where_their_names_say(make_recipe: MakeRecipe) -> None:
    calls: list[tuple[str, int]] = []

    class Recorder(loop.TrainerCallback):
        def on_train_begin(self, trainer: loop.Trainer) -> None:
            calls.append(("begin", trainer.step))

        def on_step_end(self, trainer: loop.Trainer, metrics: Mapping[str, Any]) -> None:
            assert metrics["step"] == trainer.step
            calls.append(("step", trainer.step))

        def on_evaluate(self, trainer: loop.Trainer, evaluation: Evaluation) -> None:
            assert evaluation.step == trainer.step
            calls.append(("evaluate", trainer.step))

        def on_save(self, trainer: loop.Trainer) -> None:
            calls.append(("save", trainer.step))

    train(make_recipe("training.max_steps=2", "training.save_steps=1", "training.eval_steps=2"), [Recorder()])
    assert calls == [
        *(("begin", 0), ("evaluate", 0), ("step", 1), ("save", 1), ("step", 2), ("save", 2), ("evaluate", 2))
    ]


def test_the_base_is_gathered_for_the_hooks_that_may_run_it_alone(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Steps:
        def on_step_end(self, trainer: loop.Trainer, metrics: Mapping[str, Any]) -> None: ...

    class Saves:
        def on_save(self, trainer: loop.Trainer) -> None: ...

    gathered: list[None] = []
    unsharded = ParallelStrategy.unsharded
    monkeypatch.setattr(ParallelStrategy, "unsharded", lambda *given: (gathered.append(None), unsharded(*given))[1])

    def gatherings(name: str, *callbacks: object) -> int:
        gathered.clear()
        train(make_recipe(f"name={name}", "training.max_steps=2", "training.save_steps=1"), callbacks)
        return len(gathered)

    assert gatherings("plain") == gatherings("steps", Steps()) == gatherings("saves", Saves()) - 2


@pytest.mark.parametrize("overlap", ["true", "false"])
def test_a_critic_that_fails_everything_stops_the_run_with_an_example(
    overlap: str, make_recipe: MakeRecipe, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rather than teach the reference solution alone in silence. The step's rollouts and critiques are kept."""

    def words(prompt: str) -> str:
        """Copy a right solution, and praise everything else."""
        attempt = prompt.partition("Student's Solution Begin ===\n")[2].partition("\n=== Student's")[0]
        if not attempt.startswith("### Step 1: Add"):
            return "Looks good to me!"
        verdicts = [Verdict(step=step, correct=True) for step in range(1, num_sections(parse(attempt)) + 1)]
        return compose("A", verdicts, attempt)

    with serving(Reply(words)) as server:
        keys = (served(server.url, trial=True), "critic.on_failure=refsol", f"training.overlap={overlap}")
        keys += ("training.save_steps=4",)  # the failed steps are done again
        message = (
            r"step 3: 4 of 4 critiques failed \(4 parse\), as in the 2 steps before.*For example rollout step-000003/"
        )
        with pytest.raises(StepalignError, match=message):
            run(make_recipe(*keys, "name=stopped"))
        folder = make_recipe("name=stopped").folder
        assert len(list((folder / "critiques").iterdir())) == 3
        assert [line["step"] for line in metrics(folder)] == [1, 2]
        run(make_recipe(*keys, "name=stopped"))  # goes on with the kept critiques, and counts anew
        assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]
        train(make_recipe(*keys, "critic.max_failure_share=1", "name=goes-on"))
    lines = metrics(make_recipe("name=goes-on").folder)
    assert [line["outcomes"]["fallback"] for line in lines] == [4, 4, 4, 4]
    assert [line["outcomes"]["failed"] for line in lines] == [4, 4, 4, 4]
    shortfall = "16 of 16 critiques failed, 16 of 16 rollouts fell back (16 parse)."
    example = "For example step-000004/"
    assert f"goes-on: {shortfall} {example}" in capfd.readouterr().err.replace("\n", " ")
    page = (make_recipe("name=goes-on").folder / "report.html").read_text()
    assert f'</h1>\n<p class="shortfall">{shortfall}</p>\n<p>{example}' in page


def test_a_mender_whose_samples_all_fail_is_said_in_the_steps_line_and_at_the_reports_head(
    make_recipe: MakeRecipe, capfd: pytest.CaptureFixture[str]
) -> None:
    mender = 'critic.mender={kind = "self", num_samples = 1, max_tokens = 8}'  # a tiny model that babbles
    recipe = make_recipe("critic.kind=locate-mend", mender, "training.max_steps=1", "critic.max_failure_share=1")
    train(recipe)
    (line,) = metrics(recipe.folder)
    count = line["outcomes"]["mended by program"]
    assert count
    assert f", {count} mended by program, " in capfd.readouterr().err
    said = f"{count} of 4 rollouts were corrected by the program after the mender failed"
    assert (
        said in (recipe.folder / "report.html").read_text().partition('<p class="shortfall">')[2].partition("</p>")[0]
    )


# ── precision of products ─────────────────────────────────────────────────────────────────────────────────────


def test_a_measured_precision_is_said_once_and_kept_when_the_run_goes_on(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_recipe("model.float32_matmul_precision=auto", "training.max_steps=1")
    monkeypatch.setattr(precision, "medium_speedup", lambda: 3.0)
    folder = run(settings)
    assert json.loads((folder / "manifest.json").read_text())["float32_matmul_precision"] == "medium"
    assert "float32 products in medium precision" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(precision, "medium_speedup", lambda: 1.0)
    torch.set_float32_matmul_precision("highest")
    run(make_recipe("model.float32_matmul_precision=auto", "training.max_steps=2"))
    assert torch.get_float32_matmul_precision() == "medium"
