import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stepalign.errors import StepalignError
from stepalign.io import (
    claim,
    differences,
    flat,
    new_folder,
    read_jsonl,
    sync,
    to_json,
    write_atomically,
    write_json,
    write_jsonl,
)
from stepalign.records import Problem

PROBLEM = Problem(id="p-1", statement="Line one\nline\u2028two √2 🙂", answer="5", meta={"level": 3})


def test_empty_lines_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "gaps.jsonl"
    file.write_text(f"\n{to_json(PROBLEM)}\n   \n{to_json(PROBLEM)}")
    assert read_jsonl(file, Problem) == [PROBLEM, PROBLEM]


@pytest.mark.parametrize(
    ("change", "key", "found"),
    [
        ({"difficulty": 3}, "difficulty: Unexpected keyword argument", "found 3"),
        ({"statement": 5}, "statement: ", "found 5"),
        ({"statement": ""}, "statement: ", "found ''"),
        ({"id": None}, "id: ", "found None"),
        ({"meta": "easy"}, "meta: ", "found 'easy'"),
    ],
)
def test_a_wrong_line_is_named_with_file_line_key_and_value(
    change: dict[str, object], key: str, found: str, tmp_path: Path
) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(f"{to_json(PROBLEM)}\n\n{json.dumps(json.loads(to_json(PROBLEM)) | change)}\n")
    with pytest.raises(StepalignError) as caught:
        read_jsonl(file, Problem)
    message = str(caught.value)
    assert message.startswith(f"{file}, line 3: not a Problem: {key}")
    assert found in message


def test_a_half_written_line_is_an_error_and_a_long_value_is_shown_short(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(to_json(PROBLEM)[:-20])
    with pytest.raises(StepalignError, match=r"problems\.jsonl, line 1: not a Problem: .*JSON"):
        read_jsonl(file, Problem)
    file.write_text(json.dumps({"id": "p", "statement": "s", "answer": ["x" * 5000]}))
    with pytest.raises(StepalignError) as caught:
        read_jsonl(file, Problem)
    assert len(str(caught.value)) < 400


def test_files_that_cannot_be_read_are_the_users_errors(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"nothing\.jsonl: No such file"):
        read_jsonl(tmp_path / "nothing.jsonl", Problem)
    with pytest.raises(StepalignError, match="directory"):
        read_jsonl(tmp_path, Problem)
    (tmp_path / "bytes.jsonl").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(StepalignError, match=r"bytes\.jsonl: not UTF-8"):
        read_jsonl(tmp_path / "bytes.jsonl", Problem)


def test_records_that_fail_half_way_leave_the_old_file(tmp_path: Path) -> None:
    def breaking() -> Iterator[Problem]:
        yield PROBLEM
        raise RuntimeError("the source broke")

    file = tmp_path / "problems.jsonl"
    write_jsonl(file, [PROBLEM, PROBLEM])
    before = file.read_bytes()
    with pytest.raises(RuntimeError, match="the source broke"):
        write_jsonl(file, breaking())
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "state.json"
    write_json(file, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StepalignError, match=r"state\.json: could not be written: No space left"):
            write_json(file, {"step": 2})
    assert json.loads(file.read_text()) == {"step": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_bytes_and_text_are_written_as_they_are(tmp_path: Path) -> None:
    write_atomically(tmp_path / "raw", b"\xff\r\n")
    assert (tmp_path / "raw").read_bytes() == b"\xff\r\n"
    write_json(tmp_path / "value.json", {"name": "√2 → 🙂"})
    assert "√2 → 🙂" in (tmp_path / "value.json").read_text(encoding="utf-8")


# ── durability ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rename_is_followed_by_a_sync_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, list[str]]] = []

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path, sorted(entry.name for entry in tmp_path.iterdir())))

    monkeypatch.setattr("os.fsync", record)
    write_json(tmp_path / "state.json", {"step": 1})
    assert [path == tmp_path for path, _ in synced] == [False, True]
    assert synced[-1] == (tmp_path, ["state.json"])


def test_a_file_system_that_cannot_sync_folders_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: int) -> None:
        def fsync(descriptor: int) -> None:
            if Path(f"/proc/self/fd/{descriptor}").is_dir():
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr("os.fsync", fsync)

    refuse(22)
    write_json(tmp_path / "state.json", {"step": 1})
    refuse(5)
    with pytest.raises(OSError, match="Input/output"):
        sync(tmp_path)
    with pytest.raises(StepalignError, match=r"state\.json: could not be written: Input/output"):
        write_json(tmp_path / "state.json", {"step": 2})


# ── claims ────────────────────────────────────────────────────────────────────────────────────────────────────

SETTINGS = {"model": {"name": "a", "revision": None}, "steps": 3, "contexts": {"refsol": "1f", "quoted": "2e"}}


def claimed(folder: Path, values: Mapping[str, Any], *, started: bool = True) -> None:
    claim(
        folder / "settings.json",
        values,
        started=started,
        refusal="another run. Choose another folder",
        free=("steps", "tracking"),
        optional=("contexts",),
    )


def test_a_claimed_folder_refuses_other_settings_and_names_each(tmp_path: Path) -> None:
    claimed(tmp_path, SETTINGS, started=False)
    claimed(tmp_path, SETTINGS)
    before = (tmp_path / "settings.json").read_bytes()
    other = {**SETTINGS, "model": {"name": "b", "revision": None}, "seed": 1}
    with pytest.raises(StepalignError) as caught:
        claimed(tmp_path, other)
    assert str(caught.value) == (
        f"{tmp_path}: another run. Choose another folder; what differs:\n  model.name: 'a' → 'b'\n  seed: None → 1"
    )
    assert (tmp_path / "settings.json").read_bytes() == before


def test_free_keys_may_change_and_optional_entries_come_and_go(tmp_path: Path) -> None:
    claimed(tmp_path, SETTINGS, started=False)
    changed = {**SETTINGS, "steps": 9, "tracking": {"name": "x"}, "contexts": {"refsol": "1f", "mine": "3d"}}
    claimed(tmp_path, changed)
    assert json.loads((tmp_path / "settings.json").read_text()) == changed
    with pytest.raises(StepalignError, match=r"contexts\.refsol: '1f' → '77'"):
        claimed(tmp_path, {**changed, "contexts": {"refsol": "77"}})


def test_a_folder_without_results_takes_new_settings(tmp_path: Path) -> None:
    claimed(tmp_path, SETTINGS, started=False)
    claimed(tmp_path, {"steps": 1}, started=False)
    assert json.loads((tmp_path / "settings.json").read_text()) == {"steps": 1}


def test_results_beside_missing_or_unreadable_settings_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"results without the settings\.json"):
        claimed(tmp_path, SETTINGS)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(StepalignError, match=r"settings\.json: not readable as settings"):
        claimed(tmp_path, SETTINGS)


def test_settings_in_toml_are_compared_by_value(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    claim(path, "seed = 1\n[model]\nname = 'a'\n", started=False, refusal="another run")
    claim(path, "model.name = 'a'\nseed = 1\n", started=True, refusal="another run")
    with pytest.raises(StepalignError, match=r"model\.name: 'a' → 'b'"):
        claim(path, "model.name = 'b'\nseed = 1\n", started=True, refusal="another run")


def test_differences_go_into_nested_tables() -> None:
    changes = differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
    assert list(changes) == [("a.c", 2, 3), ("d", None, 4)]
    assert not list(differences({"a": {"b": 1}}, {"a": {"b": 1}}))
    assert list(differences({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 3}]})) == [("a.1.b", 2, 3)]
    assert list(differences({"a": [1, 2]}, {"a": [1, 3]})) == [("a", [1, 2], [1, 3])]
    assert dict(flat({"a": [{"b": 1}, {"b": [2]}], "c": []})) == {"a.0.b": 1, "a.1.b": [2], "c": []}


def test_what_killed_writers_left_is_removed_and_a_live_one_s_file_is_not(tmp_path: Path) -> None:
    """By the next start of the same folder's owner. A process id may come again after a restart."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE, check=True)
    others = [f".c.{os.getppid()}.tmp", "d.tmp", ".vim.swap.tmp"]
    for name in (f".a.jsonl.{int(ended.stdout)}.tmp", f".b.json.{os.getpid()}.tmp", *others):
        (tmp_path / "rollouts").mkdir(exist_ok=True)
        (tmp_path / "rollouts" / name).write_text("half")
    (tmp_path / "checkpoints" / f".step-000003.{int(ended.stdout)}.tmp" / "inner").mkdir(parents=True)
    claim(tmp_path / "settings.json", {"a": 1}, started=False, refusal="")
    assert sorted(path.name for path in tmp_path.rglob("*.tmp")) == sorted(others)


def test_a_new_folder_names_its_writer_so_that_a_claim_leaves_it(tmp_path: Path) -> None:
    with new_folder(tmp_path / "export") as folder:
        assert folder.name == f".export.{os.getpid()}.tmp"


def test_settings_beside_a_file_leave_other_programs_files_alone(tmp_path: Path) -> None:
    others = tmp_path / "work" / ".download.tmp"
    others.parent.mkdir()
    others.write_text("half")
    claim(tmp_path / "values-settings.json", {"a": 1}, started=False, refusal="", owns_folder=False)
    assert others.exists()
