"""Files that survive a crash: JSON lines, atomic writes, and folders claimed for one purpose.

A file is either written whole (`write_atomically`, `write_jsonl`) or appended to record by record (`append_log`).
Left out: compression, because records are read with line tools.
"""

import errno
import hashlib
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from functools import cache, reduce
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from stepalign.errors import StepalignError

R = TypeVar("R")

NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EACCES}
"""Errors of file systems that cannot sync a folder or lock a file."""


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def to_json(record: Any) -> str:
    """Return one record as one line of JSON, without the line break."""
    return _adapter(type(record)).dump_json(record).decode()


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Write records one a line. The file appears whole or not at all."""
    with _new_file(path) as file:
        for record in records:
            file.write(to_json(record).encode() + b"\n")


def read_jsonl(path: Path, kind: type[R]) -> list[R]:
    """Read the records of `kind` (a record class, or `CriticResult`) in a file.

    Raises:
        StepalignError: naming file, line, key and value where a line is not such a record.
    """
    adapter, records = TypeAdapter(kind), []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    records += [adapter.validate_json(line, strict=True)] if line.strip() else []
                except ValidationError as error:
                    raise StepalignError(f"{path}, line {number}: not a {name_of(kind)}: {explain(error)}") from None
    except OSError as error:
        raise StepalignError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise StepalignError(f"{path}: not UTF-8 text ({error})") from None
    return records


def read_json(path: Path, kind: type[R]) -> R:
    """Read a file that holds one record.

    Raises:
        StepalignError: naming file, key and value where it is missing or holds something else.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise StepalignError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise StepalignError(f"{path}: not a valid {name_of(kind)}: {explain(error)}") from None


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        StepalignError: it cannot be read, or is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StepalignError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise StepalignError(f"{path}: not UTF-8 text ({error})") from None


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StepalignError(f"{path}: {error.strerror}") from None


def explain(error: ValidationError) -> str:
    """Return a validation error as text: for each fault its key, the value and what is allowed."""
    faults = []
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"][:8])) or "the whole"
        faults.append(f"{key}: {fault['msg'].removeprefix('Value error, ')} (found {short(fault['input'])})")
    return "; ".join(faults)


def short(value: object) -> str:
    """Return a value's representation, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def home_expanded(path: Path | str) -> Path:
    """Return a path with `~` as the home folder; that of an unknown user stays as it is."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def file_path(out: Path | str) -> Path:
    """Return the path of a file to write; raise a StepalignError, before long work, where it is a folder."""
    if (path := Path(out)).is_dir():
        raise StepalignError(f"{path}: a folder, a file is wanted")
    return path


def write_json(path: Path, value: object) -> None:
    """Write plain values as indented JSON, atomically."""
    write_atomically(path, _indented(value))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole: a reader, or a crash, sees the old content or the new."""
    with _new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces `path` when all is written."""
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return the path under which this process writes a file or folder before it is renamed."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_leftovers(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove temporary files and folders (`temporary_path`) of killed writers, at any depth.

    A process that is alive keeps its own, and other programs theirs.
    """
    for path in list(folder.rglob(pattern)):
        pid = path.name.split(".")[-2]
        if not pid.isdecimal() or (int(pid) != os.getpid() and Path(f"/proc/{pid}").exists()):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` when all is written.

    Raises:
        StepalignError: `out` exists, or cannot be written.
    """
    if out.exists():
        raise StepalignError(f"{out}: exists; choose another folder (--out), or delete it")
    temporary = temporary_path(out)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)
    except OSError as error:
        raise StepalignError(f"{out}: could not be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk. A rename is durable only after a sync of its folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED or not path.is_dir():
            raise


def claim(
    path: Path,
    values: Mapping[str, Any] | str,
    *,
    started: bool,
    refusal: str,
    free: Sequence[str] = (),
    optional: Sequence[str] = (),
    owns_folder: bool = True,
) -> None:
    """Write a folder's settings file, or refuse values that differ from those it was started with.

    Args:
        path: the settings file, JSON or TOML by its suffix.
        values: what the folder's results depend on; for TOML the whole text.
        started: the folder holds results. Without results the values replace those in the file.
        refusal: what is wrong and what to do, for the message.
        free: keys that may change, such as `training.max_steps`, or tables, such as `tracking`.
        optional: tables whose entries may be added or removed, but not changed.
        owns_folder: what killed writers left anywhere in the folder is removed. False where it has other files.

    Raises:
        StepalignError: naming each setting that differs; or the file is missing or unreadable beside results.
    """
    is_toml = path.suffix == ".toml"
    text = values if isinstance(values, str) else _indented(values)
    if started:
        if not path.exists():
            raise StepalignError(f"{path.parent}: results without the {path.name} they were made with")
        parse: Callable[[str], Any] = tomllib.loads if is_toml else json.loads
        try:
            old = parse(read_text(path))
            if not isinstance(old, dict):
                raise ValueError(f"a table is wanted, found {short(old)}")
        except (ValueError, RecursionError) as error:
            raise StepalignError(f"{path}: not readable as settings: {error}") from None
        different = [
            f"{key}: {before!r} → {after!r}"
            for key, before, after in differences(old, parse(text))
            if not _within(key, free) and not (_within(key, optional) and None in (before, after))
        ]
        if different:
            raise StepalignError(f"{path.parent}: {refusal}; what differs:\n  " + "\n  ".join(different))
    remove_leftovers(path.parent, ".*.tmp" if owns_folder else f".{path.name}.*.tmp")
    write_atomically(path, text)


def kept_value(path: Path, *keys: str, read: Callable[[Any], R]) -> R | None:
    """Return the value that a folder's JSON file keeps under nested keys; None without one.

    Raises:
        StepalignError: the file cannot be read, or `read` refuses the value.
    """
    try:
        return read(reduce(lambda table, key: table[key], keys, json.loads(path.read_bytes())))
    except (FileNotFoundError, KeyError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StepalignError(f"{path}: no {'.'.join(keys)} can be read: {error}") from None


def kept_date(path: Path) -> date:
    """Return the date that a folder's JSON file keeps; today's without one."""
    return kept_value(path, "date", read=date.fromisoformat) or datetime.now().date()


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a table and of the tables in it, each with its full key, such as `training.max_steps`.

    A list of tables is a table by index.
    """
    for key, value in table.items():
        if isinstance(inner := _by_index(value), Mapping):
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys in which two nested tables differ, each with the old and the new value.

    A list of tables is a table by index.
    """
    for key in sorted(old.keys() | new.keys()):
        before, after = _by_index(old.get(key)), _by_index(new.get(key))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}", before, after


def _by_index(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return {str(index): one for index, one in enumerate(value)}
    return value


def _within(key: str, tables: Iterable[str]) -> bool:
    return any(key == table or key.startswith(f"{table}.") for table in tables)


def name_of(kind: Any) -> str:
    """Return a record class's name; of an annotated union, all names."""
    return " or ".join(map(name_of, get_args(get_args(kind)[0]))) if get_origin(kind) is Annotated else kind.__name__


def _indented(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def unwritable(path: Path, error: OSError) -> StepalignError:
    """Make the error of a file that could not be written."""
    return StepalignError(f"{path}: could not be written: {error.strerror}; nothing else was lost")
