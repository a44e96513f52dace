"""Folder of a run: its recipe, its records, its results.

    recipe.toml  manifest.json  problems/  rollouts/  critiques/  metrics.jsonl  timeline.jsonl  checkpoints/
    evaluations/  checksums.jsonl  report.html  figures/

Every file appears whole or not at all. The records of a step are files of that step. So a killed run resumes from its
last checkpoint, and nothing that it already has is sampled or critiqued again. A record file's checksum is appended to
`checksums.jsonl` before the file is written, and compared when the file is read.
"""

import datetime
import difflib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from stepalign import config
from stepalign.append_log import AppendLog
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation
from stepalign.io import (
    claim,
    differences,
    read_json,
    read_jsonl,
    read_text,
    short,
    to_json,
    write_atomically,
    write_json,
)
from stepalign.manifest import Manifest, manifest, read_manifest
from stepalign.prompts import kept_path
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout
from stepalign.rollouts.generate import rollout_ids


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FileChecksum:
    """Checksum of a file of the run. Of several for one file the last counts."""

    file: str
    """Relative to the run's folder."""
    sha256: str


class _Line(TypedDict):  # other keys pass
    step: int


_LINE = TypeAdapter(_Line)
_DIFF_LINES = 12
"""Lines of a changed template that a message shows."""


class RunFolder:
    """Folder of one run, open for writing by one process."""

    def __init__(self, recipe: config.Recipe) -> None:
        """Create the folder, or open the one that is there.

        Raises:
            StepalignError: it belongs to another recipe, is in use, or cannot be written.
        """
        self.folder, self.seed = recipe.folder, recipe.seed
        self._checksums = AppendLog(self.folder / "checksums.jsonl", FileChecksum)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / ".lock", timeout=0)
            self._lock.acquire()
        except Timeout:
            raise StepalignError(f"{self.folder}: another process is writing to this run") from None
        except OSError as error:
            raise StepalignError(f"{self.folder}: cannot be written: {error.strerror}") from None
        try:
            claim(
                self.folder / "recipe.toml",
                config.dump(recipe),
                started=(self.folder / "manifest.json").exists(),
                refusal="it holds a run of another recipe. Give this run another name (name=…), or delete that folder",
                free=tuple(recipe.runtime_keys()),
            )
            self._date = read_manifest(self.folder).get("date", datetime.date.today())
            self._sums = {entry.file: entry.sha256 for entry in self._checksums.read()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.release()

    def float32_matmul_precision(self) -> Literal["highest", "medium"] | None:
        """Return the precision this run began with, which `auto` measured; None for a new run."""
        kept = read_manifest(self.folder)
        return kept.get("float32_matmul_precision", "highest") if kept else None

    def date(self) -> datetime.date:
        """Return the day on which the run began; chat templates may show it."""
        return self._date

    def keep_texts(self, texts: Mapping[str, str]) -> None:
        """Keep the words of the run's templates, in `prompts/`.

        Args:
            texts: by file. Those that the folder has not kept yet are written.

        Raises:
            StepalignError: the run is resumed, and the words of a template have changed, with what differs.
        """
        started = (self.folder / "manifest.json").exists()
        for name, text in texts.items():
            path = kept_path(self.folder, name)
            if not started or not path.exists():
                write_atomically(path, text)
            elif (kept := path.read_bytes().decode(errors="replace")) != text:
                lines = difflib.unified_diff(kept.splitlines(), text.splitlines(), str(path), name, lineterm="", n=0)
                raise StepalignError(
                    f"{name}: its words are no longer those this run began with, which {path} keeps. Restore them, or "
                    "give this run another name (name=…). What differs:\n  " + "\n  ".join(islice(lines, _DIFF_LINES))
                )

    def check_resumed(self, train: Sequence[Problem], evaluation: Sequence[Problem], base: Mapping[str, str]) -> None:
        """Compare a resumed run's problems and base with those it began with.

        Args:
            train: of the recipe.
            evaluation: of the recipe.
            base: the fingerprint of the base's files that are there. A hub's may be downloaded later.

        Raises:
            StepalignError: they are no longer the same.
        """
        kept = read_manifest(self.folder)
        if not kept:
            return
        self._check_base(kept, {**kept.get("base", {}), **base})
        for path, current in self._problems(train, evaluation).items():
            self._check(path)
            if read_jsonl(path, Problem) != current:
                raise StepalignError(f"{path}: the recipe's source no longer gives the problems this run began with")

    def _check_base(self, kept: Manifest, base: Mapping[str, str]) -> None:
        if changed := [name for name, _, _ in differences(kept["base"], base)] if kept.get("base") else []:
            raise StepalignError(
                f"{self.folder}: the base has changed since this run began: {', '.join(changed)}. Restore these files, "
                "or give this run another name (name=…)"
            )

    def _problems(self, train: Sequence[Problem], evaluation: Sequence[Problem]) -> dict[Path, list[Problem]]:
        folder = self.folder / "problems"
        return {folder / "train.jsonl": list(train), folder / "evaluation.jsonl": list(evaluation)}

    def describe(
        self,
        train: Sequence[Problem],
        evaluation: Sequence[Problem],
        dropped: Mapping[str, int],
        base: Mapping[str, str] = MappingProxyType({}),
        float32_matmul_precision: str = "highest",
        *,
        dataset_commits: Mapping[str, str] = MappingProxyType({}),
        warning: str = "",
    ) -> None:
        """Write the problems and the manifest, once. `base` is the fingerprint of the base's files.

        Raises:
            StepalignError: the run is resumed, and its base is no longer the one it began with.
        """
        if kept := read_manifest(self.folder):
            self._check_base(kept, base)
            return
        for path, current in self._problems(train, evaluation).items():
            self._write(path, current)
        counts = {"train": len(train), "evaluation": len(evaluation), "dropped": dict(dropped)}
        write_json(
            self.folder / "manifest.json",
            {
                **manifest(),
                "date": str(self._date),
                "seed": self.seed,
                "float32_matmul_precision": float32_matmul_precision,
                "problems": counts,
                "dataset_commits": dict(dataset_commits),
                "base": dict(base),
                "warning": warning,
            },
        )

    def rollouts(self, step: int, batch: Sequence[Problem], num_samples: int) -> list[Rollout] | None:
        """Read the graded rollouts of a step, `num_samples` on each of these problems; None if there are none.

        Raises:
            StepalignError: the file is damaged, or holds others than one rollout for each place of the batch.
        """
        wanted = rollout_ids(batch, num_samples, f"step-{step:06d}")
        return self._read(self._step_file("rollouts", step), Rollout, wanted, "id")

    def second_turns(self, step: int, wanted: Sequence[str]) -> list[Rollout] | None:
        """Read the graded rollouts of a step's second turn, which have these ids; None if there are none.

        Raises:
            StepalignError: the file is damaged, or holds others.
        """
        return self._read(self._step_file("second-turns", step), Rollout, wanted, "id")

    def save_second_turns(self, step: int, rollouts: Iterable[Rollout]) -> None:
        """Write the graded rollouts of a step's second turn."""
        self._write(self._step_file("second-turns", step), rollouts)

    def save_rollouts(self, step: int, rollouts: Iterable[Rollout]) -> None:
        """Write the graded rollouts of a step."""
        self._write(self._step_file("rollouts", step), rollouts)

    def critiques(
        self, step: int, batch: Sequence[Problem], num_samples: int
    ) -> list[Critique | CritiqueFailure] | None:
        """Read the critic's results of a step, `num_samples` on each of these problems; None if there are none.

        Raises:
            StepalignError: the file is damaged, or holds others than one result for each rollout of the step.
        """
        wanted = rollout_ids(batch, num_samples, f"step-{step:06d}")
        return self._read(self._step_file("critiques", step), CriticResult, wanted, "rollout_id")

    def save_critiques(self, step: int, results: Iterable[CriticResult]) -> None:
        """Write the critic's results of a step."""
        self._write(self._step_file("critiques", step), results)

    def evaluation(self, step: int) -> Evaluation | None:
        """Read the evaluation at a step; None if there is none."""
        path = self._step_file("evaluations", step).with_suffix(".json")
        if not path.exists():
            return None
        self._check(path)
        evaluation = read_json(path, Evaluation)
        if evaluation.step != step:
            raise StepalignError(f"{path}: an evaluation of step {evaluation.step}{self._again(path)}")
        return evaluation

    def save_evaluation(self, evaluation: Evaluation, rollouts: Iterable[Rollout]) -> None:
        """Write an evaluation and its rollouts."""
        path = self._step_file("evaluations", evaluation.step)
        self._write(path, rollouts)
        self._write(path.with_suffix(".json"), [evaluation])

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one step's metrics."""
        self._append("metrics.jsonl", values)

    def append_timeline(self, step: int, spans: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """Append the times of a step's stages, in seconds from the first one's start."""
        begin = min((start for stage in spans.values() for start, _ in stage), default=0.0)
        since = {name: [[round(t - begin, 4) for t in span] for span in stage] for name, stage in spans.items()}
        self._append("timeline.jsonl", {"step": step, **since})

    def drop_metrics_after(self, step: int) -> None:
        """Drop metrics and times of the steps that will be done again, and a killed run's half-written last line.

        Raises:
            StepalignError: another line is no step's.
        """
        for path in (self.folder / "metrics.jsonl", self.folder / "timeline.jsonl"):
            if path.exists():
                *lines, _ = read_text(path).split("\n")
                lines = [line for number, line in enumerate(lines, start=1) if _step_of(path, number, line) <= step]
                write_atomically(path, "".join(line + "\n" for line in lines))

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        path = self.folder / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise StepalignError(f"{path}: could not be written: {error.strerror}; nothing else was lost") from None

    def _step_file(self, room: str, step: int) -> Path:
        return self.folder / room / f"step-{step:06d}.jsonl"

    def _read(self, path: Path, kind: Any, wanted: Iterable[str], key: str) -> list[Any] | None:
        """Read a step's records, which have these ids under `key`; None if there are none."""
        if not path.exists():
            return None
        self._check(path)
        records: list[Any] = read_jsonl(path, kind)
        self._check_ids(path, list(wanted), [getattr(record, key) for record in records])
        return records

    def _write(self, path: Path, records: Iterable[Any]) -> None:
        content = "".join(to_json(record) + "\n" for record in records).encode()
        entry = FileChecksum(file=str(path.relative_to(self.folder)), sha256=sha256(content).hexdigest())
        self._checksums.append(entry, durable=True)
        self._sums[entry.file] = entry.sha256
        write_atomically(path, content)

    def _check(self, path: Path) -> None:
        """Compare a file with its checksum, where there is one: earlier releases wrote none."""
        name = str(path.relative_to(self.folder))
        try:
            found = sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise StepalignError(f"{path}: {error.strerror}") from None
        if found != self._sums.get(name, found):
            raise StepalignError(
                f"{path}: damaged, its checksum is not the one in {self._checksums.path.name}{self._again(path)}"
            )

    def _check_ids(self, path: Path, wanted: Sequence[str], found: Sequence[str]) -> None:
        if list(found) == list(wanted):
            return
        faults = {
            "missing": [name for name in wanted if name not in found],
            "twice or more": sorted({name for name in found if found.count(name) > 1}),
            "of no rollout of this step": sorted(set(found) - set(wanted)),
        }
        named = [f"{len(names)} {fault} ({names[0]} …)" for fault, names in faults.items() if names]
        raise StepalignError(
            f"{path}: {len(found)} lines for {len(wanted)} rollouts: {', '.join(named) or 'in another order'}"
            f"{self._again(path)}"
        )

    def _again(self, path: Path) -> str:
        """Say how a damaged file is made again. What was made of it goes with it."""
        if path.parent.name == "problems":
            return ". Restore it from a copy"
        files = [path]
        rooms = ["rollouts", "critiques", "second-turns"]
        if path.parent.name in rooms:
            later = [self.folder / room / path.name for room in rooms[rooms.index(path.parent.name) + 1 :]]
            files += [file for file in later if file.exists()]
        command = shlex.join(["rm", "-f", *(str(file) for file in files)])
        return f"\nTo make it again: `{command}`, then the same command as before"


def _step_of(path: Path, number: int, line: str) -> int:
    try:
        return _LINE.validate_json(line, strict=True)["step"]
    except ValidationError:
        remedy = "delete this line to go on without it"
        raise StepalignError(f"{path}, line {number}: not a step's: {short(line)}; {remedy}") from None
