"""A probe's folder: inputs, credit under every context, and measures.

    problems.jsonl  rollouts.jsonl  critiques.jsonl  marks.jsonl  credits.jsonl
    tokens.json  measures.json  manifest.json  probe.html  figures/

Left out: the page and the figures, because they are drawn from these records.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from stepalign.evaluation.metrics import CreditMeasures
from stepalign.io import read_json, read_jsonl, write_json, write_jsonl
from stepalign.probing.error_spans import token_regions
from stepalign.records import Credit, CriticResult, Mark, Problem, Rollout

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Probe:
    """Content of a probe's folder."""

    problems: tuple[Problem, ...]
    rollouts: tuple[Rollout, ...]
    critic_results: tuple[CriticResult, ...] = ()
    marks: tuple[Mark, ...] = ()
    credits: tuple[Credit, ...] = ()
    """By context, then in the order of the rollouts."""
    tokens: Mapping[int, str] = Field(default_factory=dict)
    """The text of every token id in rollouts and likeliest tokens; it may be a part of a character."""
    measures: CreditMeasures = Field(default_factory=CreditMeasures)
    manifest: Mapping[str, Any] = Field(default_factory=dict)
    """Model, adapter, contexts, versions, seeds, command."""

    @property
    def contexts(self) -> tuple[str, ...]:
        """Names of the contexts, in the order of the request."""
        return tuple(dict.fromkeys(credit.context for credit in self.credits))

    def frame(self) -> "pandas.DataFrame":
        """Build a pandas DataFrame with a row for each token and context.

        `place` is `before`, `at` or `after` the error, and empty without a known error. `step` counts from 1; 0 is
        before step 1.
        """
        import pandas

        marks = {mark.rollout_id: mark for mark in self.marks}
        rollouts = {rollout.id: (rollout, token_regions(rollout, marks.get(rollout.id))) for rollout in self.rollouts}
        rows = []
        for credit in self.credits:
            rollout, regions = rollouts[credit.rollout_id]
            scored = zip(rollout.completion_ids, credit.student, credit.teacher, strict=True)
            for position, (token, student, teacher) in enumerate(scored):
                rows.append(
                    {
                        "problem": rollout.problem_id,
                        "rollout": rollout.id,
                        "context": credit.context,
                        "position": position,
                        "token": token,
                        "text": self.tokens.get(token, ""),
                        "step": regions.step_of(position),
                        "place": regions.place_of(position),
                        "student": student,
                        "teacher": teacher,
                        "credit": teacher - student,
                    }
                )
        return pandas.DataFrame(rows)


def read(folder: Path) -> Probe:
    """Read a probe's folder.

    Raises:
        StepalignError: naming file, line and key where something is missing or malformed.
    """
    critic_results: list[CriticResult] = read_jsonl(folder / "critiques.jsonl", CriticResult)  # type: ignore[arg-type]
    return Probe(
        problems=tuple(read_jsonl(folder / "problems.jsonl", Problem)),
        rollouts=tuple(read_jsonl(folder / "rollouts.jsonl", Rollout)),
        critic_results=tuple(critic_results),
        marks=tuple(read_jsonl(folder / "marks.jsonl", Mark)),
        credits=tuple(read_jsonl(folder / "credits.jsonl", Credit)),
        tokens=read_json(folder / "tokens.json", dict[int, str]),
        measures=read_json(folder / "measures.json", CreditMeasures),
        manifest=read_json(folder / "manifest.json", dict[str, Any]),
    )


def write(probe: Probe, folder: Path) -> None:
    """Write a probe's folder, each file atomically."""
    write_jsonl(folder / "problems.jsonl", probe.problems)
    write_jsonl(folder / "rollouts.jsonl", probe.rollouts)
    write_jsonl(folder / "critiques.jsonl", probe.critic_results)
    write_jsonl(folder / "marks.jsonl", probe.marks)
    write_jsonl(folder / "credits.jsonl", probe.credits)
    write_json(folder / "tokens.json", {str(token): text for token, text in sorted(probe.tokens.items())})
    write_json(folder / "measures.json", TypeAdapter(CreditMeasures).dump_python(probe.measures))
    write_json(folder / "manifest.json", dict(probe.manifest))
