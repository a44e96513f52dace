import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepalign.append_log import AppendLog
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, to_json
from stepalign.records import Problem

PROBLEM = Problem(id="p-1", statement="Line one\nline\u2028two √2 🙂", answer="5", meta={"level": 3})


def problem(name: object, length: int = 0) -> Problem:
    return Problem(id=f"p-{name}", statement="√" * length + "s", answer="1")


def test_a_log_gives_back_what_was_appended_and_then_only_what_is_new(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "new" / "log.jsonl", Problem)
    assert list(log.read()) == []
    log.append(PROBLEM, problem(2))
    assert list(log.read()) == [PROBLEM, problem(2)]
    AppendLog(log.path, Problem).append(problem(3), durable=True)
    assert list(log.read()) == [problem(3)]
    assert list(log.read()) == []
    assert read_jsonl(log.path, Problem) == list(AppendLog(log.path, Problem).read())


@pytest.mark.parametrize("cut", [1, 2, 9, 40])
def test_a_half_written_line_is_left_out_and_the_next_record_starts_a_new_line(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    AppendLog(path, Problem).append(problem(1), problem(2, length=30))
    os.truncate(path, path.stat().st_size - cut)
    log = AppendLog(path, Problem)
    assert list(log.read()) == [problem(1)]
    log.append(problem(3))
    whole = [problem(2, length=30)] if cut == 1 else []  # only its line break was missing
    assert list(log.read()) == [*whole, problem(3)]
    assert list(AppendLog(path, Problem).read()) == [problem(1), *whole, problem(3)]


def test_every_cut_of_a_line_leaves_the_records_around_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    record = Problem(id="é", statement='√"\x00\n', answer="1", meta={"a": [True, None, -1.5e9, {}], "b": "🙂"})
    line = to_json(record).encode()
    for end in range(1, len(line)):
        path.write_bytes(line[:end])
        log = AppendLog(path, Problem)
        log.append(problem(1))
        assert list(log.read()) == [problem(1)]


def test_the_only_writer_may_cut_what_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    AppendLog(path, Problem).append(problem(1), problem(2))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "p')
    log = AppendLog(path, Problem)
    assert list(log.read()) == [problem(1), problem(2)]
    log.truncate()
    assert path.read_bytes() == whole
    log.truncate(0)
    log.append(problem(3))
    assert list(log.read()) == [problem(3)]
    AppendLog(tmp_path / "none.jsonl", Problem).truncate()
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"id": "p-1"} extra', '"text"', '{"id": 1}'])
def test_a_damaged_line_is_an_error_that_names_it(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{to_json(PROBLEM)}\n{line}\n{to_json(PROBLEM)}\n")
    with pytest.raises(StepalignError, match=r"log\.jsonl, line 2: not a Problem: "):
        list(AppendLog(path, Problem).read())


def test_processes_and_threads_append_to_one_file_without_tearing_a_record(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from threading import Thread\n"
        "from stepalign.append_log import AppendLog\n"
        "from stepalign.records import Problem\n"
        "log = AppendLog(Path(sys.argv[1]), Problem)\n"
        "def write(thread):\n"
        "    for i in range(40):\n"
        "        log.append(Problem(id=f'{sys.argv[2]}-{thread}-{i}', statement='s' * 9000, answer='1'))\n"
        "threads = [Thread(target=write, args=(thread,)) for thread in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    path.write_text('{"id": "half')
    processes = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    ids = [record.id for record in AppendLog(path, Problem).read()]
    assert len(ids) == len(set(ids)) == 3 * 3 * 40
    for writer in {name.rpartition("-")[0] for name in ids}:
        assert [name for name in ids if name.startswith(writer + "-")] == [f"{writer}-{i}" for i in range(40)]


def test_a_log_on_a_full_disk_is_the_users_error_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AppendLog(tmp_path / "log.jsonl", Problem)
    log.append(problem(1))
    with monkeypatch.context() as patch:
        write = os.write
        patch.setattr("os.write", lambda descriptor, data: write(descriptor, data[:10]))
        with pytest.raises(StepalignError, match=r"log\.jsonl: could not be written: No space left"):
            log.append(problem(2))
    log.append(problem(3))
    assert list(log.read()) == [problem(1), problem(3)]
    with pytest.raises(StepalignError, match="could not be written"):
        AppendLog(tmp_path, Problem).append(problem(4))
