"""A probe's records and their folder: inputs, credit under every context, and measures.

    problems.jsonl  rollouts.jsonl  critiques.jsonl  marks.jsonl  credits.jsonl  cost.jsonl
    tokens.json  measures.json  manifest.json  probe.html  figures/

Left out: the page and the figures, because they are drawn from these records.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import CreditMeasures
from stepalign.io import read_json, read_jsonl, write_json, write_jsonl
from stepalign.notebook import html_table
from stepalign.probing.display import COLUMNS, format_cell
from stepalign.probing.measures import regions_by_rollout
from stepalign.records import Credit, CriticResult, Critique, Mark, Problem, Rollout

if TYPE_CHECKING:
    import pandas

_FILES: dict[str, tuple[str, Any]] = {
    "problems": ("problems.jsonl", Problem),
    "critic_results": ("critiques.jsonl", CriticResult),
    "marks": ("marks.jsonl", Mark),
    "rollouts": ("rollouts.jsonl", Rollout),
    "credits": ("credits.jsonl", Credit),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of some credit."""

    tokens: int
    """Tokens scored, prompts included."""
    seconds: float


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Probe:
    """Content of a probe's folder; before credit is computed, its inputs alone."""

    problems: tuple[Problem, ...]
    rollouts: tuple[Rollout, ...]
    critic_results: tuple[CriticResult, ...] = ()
    marks: tuple[Mark, ...] = ()
    """First errors: planted, marked by hand, or a critique's."""
    credits: tuple[Credit, ...] = ()
    """By context, then in the order of the rollouts."""
    tokens: Mapping[int, str] = Field(default_factory=dict)
    """The text of every token id in rollouts and likeliest tokens; it may be a part of a character."""
    measures: CreditMeasures = Field(default_factory=CreditMeasures)
    manifest: Mapping[str, Any] = Field(default_factory=dict)
    """Model, adapter, contexts, versions, seeds, command."""

    @property
    def contexts(self) -> tuple[str, ...]:
        """Names of the contexts, in the order of the request, then those of earlier requests."""
        return tuple(dict.fromkeys(credit.context for credit in self.credits))

    @property
    def critiques(self) -> dict[str, Critique]:
        """Critiques by rollout id."""
        return {result.rollout_id: result for result in self.critic_results if isinstance(result, Critique)}

    def _repr_html_(self) -> str:
        """Return the measures with their intervals for a notebook."""
        shown = self.measures.contexts | self.measures.baselines
        rows = [
            (title, *(" ".join(format_cell(key, intervals.get(key))).strip() for intervals in shown.values()))
            for key, (title, _) in COLUMNS.items()
            if any(key in intervals for intervals in shown.values())
        ]
        return html_table(list(shown), rows, "nats a token, shares in %")

    def frame(self) -> "pandas.DataFrame":
        """Build a pandas DataFrame with a row for each token and context.

        `place` is `before`, `at` or `after` the error, and empty without a known error. `step` counts from 1; 0 is
        before step 1.
        """
        import pandas

        rollouts = {rollout.id: rollout for rollout in self.rollouts}
        regions = regions_by_rollout(self.rollouts, self.marks)
        return pandas.DataFrame(
            {
                "problem": rollouts[credit.rollout_id].problem_id,
                "rollout": credit.rollout_id,
                "context": credit.context,
                "position": position,
                "token": token,
                "text": self.tokens.get(token, ""),
                "step": regions[credit.rollout_id].step_of(position),
                "place": regions[credit.rollout_id].place_of(position),
                "student": student,
                "teacher": teacher,
                "credit": teacher - student,
            }
            for credit in self.credits
            for position, (token, student, teacher) in enumerate(
                zip(rollouts[credit.rollout_id].completion_ids, credit.student, credit.teacher, strict=True)
            )
        )


def read(folder: Path) -> Probe:
    """Read a probe's folder.

    Raises:
        StepalignError: naming file, line and key where something is missing or malformed.
    """
    records: dict[str, Any] = {name: tuple(read_jsonl(folder / file, kind)) for name, (file, kind) in _FILES.items()}
    check_credits(records["credits"], records["rollouts"], folder / "credits.jsonl")
    return Probe(
        **records,
        tokens=read_json(folder / "tokens.json", dict[int, str]),
        measures=read_json(folder / "measures.json", CreditMeasures),
        manifest=read_json(folder / "manifest.json", dict[str, Any]),
    )


def check_credits(credits: Iterable[Credit], rollouts: Iterable[Rollout], path: Path) -> None:
    """Raise a StepalignError with `path` where credit belongs to no rollout, or not to each of its tokens."""
    lengths = {rollout.id: len(rollout.completion_ids) for rollout in rollouts}
    for credit in credits:
        if len(credit.student) != lengths.get(credit.rollout_id):
            wanted = lengths.get(credit.rollout_id, "no")
            fault = f"credit of {len(credit.student)} tokens for {wanted} tokens of rollout {credit.rollout_id!r}"
            raise StepalignError(f"{path}: {fault}; delete this file to compute it again")


def write_inputs(probe: Probe, folder: Path) -> None:
    """Write problems, the critic's results, marks and, last, rollouts."""
    for name, (file, _) in _FILES.items():
        if name != "credits":
            write_jsonl(folder / file, getattr(probe, name))


def write(probe: Probe, folder: Path) -> None:
    """Write a probe's folder, each file atomically."""
    write_inputs(probe, folder)
    write_jsonl(folder / "credits.jsonl", probe.credits)
    write_json(folder / "tokens.json", {str(token): text for token, text in sorted(probe.tokens.items())})
    write_json(folder / "measures.json", TypeAdapter(CreditMeasures).dump_python(probe.measures))
    write_json(folder / "manifest.json", dict(probe.manifest))
