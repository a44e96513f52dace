"""What a checkpoint brings back, and what is left when writing one fails."""

import errno
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from stepalign import config, models
from stepalign.collate import collate
from stepalign.errors import StepalignError
from stepalign.io import sync, temporary_path
from stepalign.policy import Policy
from stepalign.trainer import checkpoints
from stepalign.views import View

Fresh = Callable[[], tuple[Policy, torch.optim.Optimizer]]

VIEW = View(prompt_ids=(5, 9, 17), completion_ids=(40, 41, 42, 43), loss_start=0, loss_stop=4)


@pytest.fixture
def fresh(tiny_llama: Path) -> Fresh:
    def make() -> tuple[Policy, torch.optim.Optimizer]:
        adapter = config.LoraConfig(r=2, target_modules=("q_proj", "down_proj"))
        policy = models.load_policy(config.ModelConfig(name_or_path=str(tiny_llama)), adapter, 0, torch.device("cpu"))
        return policy, torch.optim.AdamW(policy.trainable(), lr=1e-2, weight_decay=0.1)

    return make


def test_a_runs_folder_stands_for_its_last_checkpoint_and_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for step in (2, 10):
        (run / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    assert checkpoints.adapter_folder(str(run)) == run / "checkpoints" / "step-000010"
    assert capsys.readouterr().err == f"adapter '{run}': the run's last checkpoint, step-000010\n"
    assert checkpoints.adapter_folder(None) is None
    assert checkpoints.adapter_folder(run / "checkpoints" / "step-000002").name == "step-000002"
    (run / "adapter_config.json").touch()  # an adapter of another tool, whose checkpoints stand beside it
    assert checkpoints.adapter_folder(run) == run
    assert not capsys.readouterr().err


def test_an_adapter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"^adapter '\./nope': no such folder$"):
        checkpoints.adapter_folder("./nope")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(StepalignError, match="run': a run without a checkpoint"):
        checkpoints.adapter_folder(tmp_path / "run")


def train(policy: Policy, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        policy(collate([VIEW])).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.trainable()])


def test_training_goes_on_bit_for_bit_from_a_checkpoint(fresh: Fresh, tmp_path: Path) -> None:
    policy, optimizer = fresh()
    train(policy, optimizer, 3)
    folder = checkpoints.save(tmp_path, policy, optimizer, 3)
    train(policy, optimizer, 2)

    resumed, resumed_optimizer = fresh()
    assert checkpoints.load(folder, resumed, resumed_optimizer) == (3, {})
    train(resumed, resumed_optimizer, 2)
    assert torch.equal(weights(resumed), weights(policy))
    assert not torch.equal(weights(policy), weights(fresh()[0]))


def test_a_checkpoint_before_any_update_has_no_optimizer_state(fresh: Fresh, tmp_path: Path) -> None:
    folder = checkpoints.save(tmp_path, *fresh(), 1)
    policy, optimizer = fresh()
    assert checkpoints.load(folder, policy, optimizer) == (1, {})
    assert not optimizer.state


def test_a_checkpoint_is_a_peft_adapter_without_pickles(fresh: Fresh, tiny_llama: Path, tmp_path: Path) -> None:
    policy, optimizer = fresh()
    train(policy, optimizer, 2)
    folder = checkpoints.save(tmp_path, policy, optimizer, 2)
    assert {path.name for path in folder.iterdir()} == {
        *("adapter_model.safetensors", "adapter_config.json", "README.md"),
        *("optimizer.safetensors", "state.json", "SHA256SUMS"),
    }
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), folder)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(peft.eval()(ids).logits, policy.eval().model(ids).logits)


def test_the_latest_checkpoint_is_the_one_of_the_highest_step(fresh: Fresh, tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path / "checkpoints") is None
    for step in (2, 10, 9):
        checkpoints.save(tmp_path, *fresh(), step)
    shutil.copytree(
        tmp_path / "step-000010", temporary_path(tmp_path / "step-000011")
    )  # a process was killed while it wrote
    latest = checkpoints.latest(tmp_path)
    assert latest is not None
    assert latest.name == "step-000010"
    checkpoints.save(tmp_path, *fresh(), 11)
    assert {path.name for path in tmp_path.iterdir()} == {f"step-{step:06d}" for step in (2, 9, 10, 11)}


def flip(content: bytes) -> bytes:
    """The same with one bit of its last byte but one changed: in safetensors a bit of a weight."""
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "flipped": lambda file: file.write_bytes(flip(file.read_bytes())),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\x00"),
    "folder": lambda file: (file.unlink(), file.mkdir()),
}
FILES = ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json", "SHA256SUMS"]


@pytest.fixture(scope="module")
def two_checkpoints(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = config.LoraConfig(r=2, target_modules=("q_proj", "down_proj"))
    policy = models.load_policy(config.ModelConfig(name_or_path=str(tiny_llama)), adapter, 0, torch.device("cpu"))
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-2)
    folder = tmp_path_factory.mktemp("two")
    for step in (1, 2):
        train(policy, optimizer, 1)
        checkpoints.save(folder, policy, optimizer, step, {"steps": torch.tensor([step])})
    return folder


@pytest.fixture
def saved(two_checkpoints: Path, tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2, with an algorithm's state."""
    return shutil.copytree(two_checkpoints, tmp_path / "check points")


@pytest.mark.parametrize("name", [*FILES, "algorithm.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_last_good_checkpoint_offered(name: str, damage: str, saved: Path) -> None:
    assert checkpoints.verify(saved / "step-000002")
    DAMAGES[damage](saved / "step-000002" / name)
    with pytest.raises(StepalignError) as raised:
        checkpoints.verify(saved / "step-000002")
    message = str(raised.value)
    assert message.startswith(f"{saved}/step-000002/")
    assert name in message
    assert f"The last good checkpoint is step-000001. To go on from it: `rm -r '{saved}/step-000002'`" in message


@pytest.mark.parametrize(
    "state", ['{"step": 3}', '{"step": "2"}', '{"step": 1e400}', "[]", "2", '{"steps": 2}', "null"]
)
@pytest.mark.parametrize("before", [False, True])
def test_a_wrong_step_or_type_in_the_state_is_an_error(state: str, before: bool, saved: Path, fresh: Fresh) -> None:
    """With checksums, and in a checkpoint of an earlier release, which has none."""
    (saved / "step-000002" / "state.json").write_text(state)
    if before:
        (saved / "step-000002" / "SHA256SUMS").unlink()
    for read in (checkpoints.verify, lambda folder: checkpoints.load(folder, *fresh())):
        with pytest.raises(StepalignError, match=r"step-000002/state\.json: .*\n.*last good checkpoint is step-000001"):
            read(saved / "step-000002")


def test_without_a_good_checkpoint_all_are_to_go(saved: Path) -> None:
    for step in (1, 2):
        DAMAGES["flipped"](saved / f"step-00000{step}" / "optimizer.safetensors")
    with pytest.raises(StepalignError, match="No other checkpoint is whole") as raised:
        checkpoints.verify(saved / "step-000002")
    assert f"`rm -r '{saved}/step-000001' '{saved}/step-000002'`" in str(raised.value)


def test_a_checkpoint_of_an_earlier_release_has_no_checksums_and_loads(saved: Path, fresh: Fresh) -> None:
    folder = saved / "step-000002"
    (folder / "SHA256SUMS").unlink()
    (folder / "state.json").write_text('{"step": 2}')
    assert not checkpoints.verify(folder)
    assert checkpoints.load(folder, *fresh())[0] == 2


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "algorithm.safetensors"])
def test_a_half_written_file_of_an_earlier_release_is_named(name: str, saved: Path, fresh: Fresh) -> None:
    folder = saved / "step-000002"
    (folder / "state.json").write_text('{"step": 2}')
    DAMAGES["half"](folder / name)
    with pytest.raises(StepalignError, match=f"step-000002/{name}: .*\n.*last good checkpoint is step-000001"):
        checkpoints.load(folder, *fresh())


def test_the_model_card_may_be_edited(saved: Path) -> None:
    (saved / "step-000002" / "README.md").write_text("# Mine")
    assert checkpoints.verify(saved / "step-000002")


def test_the_checksums_are_those_of_sha256sum(saved: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=saved / "step-000001", check=False)
    assert done.returncode == 0


def test_checkpoints_are_ordered_by_number_and_other_folders_are_none(tmp_path: Path) -> None:
    for name in ("step-999999", "step-1000000", "step-1000001.bak", "step-x"):
        (tmp_path / name).mkdir()
    assert checkpoints.latest(tmp_path) == tmp_path / "step-1000000"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_leaves_the_earlier_checkpoint_and_nothing_else(
    error: Exception, fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, optimizer = fresh()
    train(policy, optimizer, 1)
    before = checkpoints.save(tmp_path, policy, optimizer, 1)
    kept = weights(policy)
    train(policy, optimizer, 1)

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_file", full)
        with pytest.raises(StepalignError, match=r"step-000002: the checkpoint could not be written: No space left"):
            checkpoints.save(tmp_path, policy, optimizer, 2)
    assert list(tmp_path.iterdir()) == [before]
    resumed, resumed_optimizer = fresh()
    assert checkpoints.load(before, resumed, resumed_optimizer) == (1, {})
    assert torch.equal(weights(resumed), kept)
    checkpoints.save(tmp_path, policy, optimizer, 2)  # once there is room again


def test_the_files_and_then_the_renamed_folder_are_synced(
    fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []

    def record(path: Path) -> None:
        synced.append((path.name, (tmp_path / "step-000001").exists()))
        sync(path)

    monkeypatch.setattr(checkpoints, "sync", record)
    folder = checkpoints.save(tmp_path, *fresh(), 1)
    before = {name for name, renamed in synced if not renamed}
    assert before == {*(path.name for path in folder.iterdir()), temporary_path(folder).name}
    assert synced[-1] == (tmp_path.name, True)


def test_a_file_where_the_folder_should_be_is_an_error(fresh: Fresh, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(StepalignError, match="could not be written"):
        checkpoints.save(tmp_path / "checkpoints", *fresh(), 1)


def test_a_checkpoint_is_on_the_disk_before_and_after_its_rename(
    fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr("os.fsync", record)
    folder = checkpoints.save(tmp_path, *fresh(), 3)
    temporary = str(temporary_path(folder))
    assert sorted(synced[:-2]) == sorted(f"{temporary}/{path.name}" for path in folder.iterdir())
    assert synced[-2:] == [temporary, str(tmp_path)]
