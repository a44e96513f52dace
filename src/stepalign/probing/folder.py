"""A probe is a folder: what was looked at, its credit under every context, and what was measured of it.

    problems.jsonl  rollouts.jsonl  critiques.jsonl  marks.jsonl  credits.jsonl
    tokens.json  measures.json  manifest.json  probe.html  figures/

`Probe` is all of it in memory. Left out: the page and the figures, which are drawn from these records.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from stepalign.errors import StepalignError
from stepalign.evaluation import credit_measures
from stepalign.evaluation.credit_measures import CreditMeasures
from stepalign.io import explain, read_jsonl, write_json, write_jsonl
from stepalign.probing.error_spans import parts
from stepalign.records import Credit, CriticResult, Critique, CritiqueFailure, Mark, Problem, Rollout

if TYPE_CHECKING:
    import pandas

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Probe:
    """Everything that a probe's folder holds."""

    problems: tuple[Problem, ...]
    rollouts: tuple[Rollout, ...]
    answers: tuple[CriticResult, ...] = ()
    """The critiques that the contexts show, and where there are none, why."""
    marks: tuple[Mark, ...] = ()
    """At most one a rollout; none where it is right, or nobody knows where it goes wrong."""
    credits: tuple[Credit, ...] = ()
    """One a rollout and context."""
    tokens: dict[int, str] = Field(default_factory=dict)
    """The text of every token id in rollouts and likeliest tokens; it may be a part of a character."""
    measures: CreditMeasures = Field(default_factory=CreditMeasures)
    manifest: Mapping[str, Any] = Field(default_factory=dict)
    """Model, adapter, contexts, versions, seeds, command."""

    @property
    def contexts(self) -> tuple[str, ...]:
        """The designs' names, in the order in which they were asked for."""
        return tuple(dict.fromkeys(credit.context for credit in self.credits))

    def frame(self) -> "pandas.DataFrame":
        """A row a token and context, as a pandas DataFrame.

        `place` is `before`, `at` or `after` the error, and empty where nobody knows one; `step` counts from 1, 0 is
        what comes before step 1.
        """
        import pandas

        split = {mark.rollout_id: mark for mark in self.marks}
        rollouts = {rollout.id: rollout for rollout in self.rollouts}
        parted = {name: parts(rollout, split.get(name)) for name, rollout in rollouts.items()}
        return pandas.DataFrame(
            [
                {
                    "problem": rollouts[credit.rollout_id].problem_id,
                    "rollout": credit.rollout_id,
                    "context": credit.context,
                    "position": position,
                    "token": token,
                    "text": self.tokens.get(token, ""),
                    "step": parted[credit.rollout_id].step_of(position),
                    "place": parted[credit.rollout_id].place_of(position),
                    "student": student,
                    "teacher": teacher,
                    "credit": teacher - student,
                }
                for credit in self.credits
                for position, (token, student, teacher) in enumerate(
                    zip(rollouts[credit.rollout_id].completion_ids, credit.student, credit.teacher, strict=True)
                )
            ]
        )


def read(folder: Path) -> Probe:
    """Read a probe's folder.

    Raises:
        StepalignError: naming file, line and key where something is missing or not what it should be.
    """
    answers: list[Critique | CritiqueFailure] = read_jsonl(folder / "critiques.jsonl", CriticResult)  # type: ignore[arg-type]
    return Probe(
        problems=tuple(read_jsonl(folder / "problems.jsonl", Problem)),
        rollouts=tuple(read_jsonl(folder / "rollouts.jsonl", Rollout)),
        answers=tuple(answers),
        marks=tuple(read_jsonl(folder / "marks.jsonl", Mark)),
        credits=tuple(read_jsonl(folder / "credits.jsonl", Credit)),
        tokens=_json(folder / "tokens.json", dict[int, str]),
        measures=credit_measures.read(folder / "measures.json"),
        manifest=_json(folder / "manifest.json", dict[str, Any]),
    )


def write(probe: Probe, folder: Path) -> None:
    """Write a probe's folder, every file whole."""
    write_jsonl(folder / "problems.jsonl", probe.problems)
    write_jsonl(folder / "rollouts.jsonl", probe.rollouts)
    write_jsonl(folder / "critiques.jsonl", probe.answers)
    write_jsonl(folder / "marks.jsonl", probe.marks)
    write_jsonl(folder / "credits.jsonl", probe.credits)
    write_json(folder / "tokens.json", {str(token): text for token, text in sorted(probe.tokens.items())})
    write_json(folder / "measures.json", TypeAdapter(CreditMeasures).dump_python(probe.measures))
    write_json(folder / "manifest.json", dict(probe.manifest))


def _json(path: Path, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as error:
        raise StepalignError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise StepalignError(f"{path}: {explain(error)}") from None
