"""The critic of a recipe that is a Python function or object.

A function of problem and rollout returns a `Critique`; the text of one in the paper's format; a dict like the JSON of
splicing (`splice.SplicedCritique`); or None where it has none. Its critiques are checked like every critic's.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from stepalign import config, python_objects
from stepalign.critics import Critic, schema, splice
from stepalign.critics.fidelity import fidelity
from stepalign.critics.validation import ValidatedCritic
from stepalign.errors import StepalignError
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.trace import parse_rollout


def from_config(settings: config.PythonCriticConfig, *, grader: Grader, **_: object) -> ValidatedCritic:
    """Build the critic, with its validation.

    Raises:
        StepalignError: it is neither a critic nor a function of a problem and a rollout.
    """
    where = f"critic.function = {settings.function.name!r}"
    value: Any = python_objects.load(settings.function, "critic.function")
    if isinstance(value, type):
        value = value()
    if isinstance(value, Critic):
        return ValidatedCritic(_EachOnce(value), settings, grader)
    if hasattr(value, "critique"):
        raise StepalignError(f"{where}: a critic without a name: give it the attribute `name`")
    try:
        inspect.signature(value).bind("problem", "rollout")
    except (TypeError, ValueError) as error:
        raise StepalignError(f"{where}: a function of problem and rollout is wanted: {error}") from None
    return ValidatedCritic(FunctionCritic(value, settings.function.name), settings, grader)


class FunctionCritic:
    """Critic of a function."""

    def __init__(self, function: Any, name: str) -> None:
        self.name, self._function = name, function

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one result an attempt, in the order of the attempts."""
        for problem, rollout in attempts:
            try:
                value = self._function(problem, rollout)
            except Exception as error:  # the user's own code
                raise StepalignError(f"rollout {rollout.id}: the critic {self.name} failed: {error!r}") from error
            yield self._read(value, rollout)

    def _read(self, value: Any, rollout: Rollout) -> Critique | CritiqueFailure:
        if isinstance(value, Critique | CritiqueFailure):
            if value.rollout_id != rollout.id:
                raise StepalignError(f"rollout {rollout.id}: the critic {self.name} answered {value.rollout_id!r}")
            return replace(value, critic=self.name)
        if value is None:
            return CritiqueFailure(rollout_id=rollout.id, critic=self.name, reason="missing", detail="it gave none")
        if not isinstance(value, str | Mapping):
            raise StepalignError(
                f"rollout {rollout.id}: the critic {self.name} returned {value!r:.80}; a Critique, its text, a dict "
                "or None is wanted"
            )
        trace = parse_rollout(rollout)
        try:
            if isinstance(value, str):
                parsed = schema.parse(value, trace)
            else:
                parsed = splice.put_together(splice.validate(dict(value)), trace)
            text = schema.text_of(parsed)
        except (schema.CritiqueFormatError, ValueError) as error:
            return CritiqueFailure(rollout_id=rollout.id, critic=self.name, reason="parse", detail=f"it {error}")
        copied = fidelity(parsed.correct_part, schema.original(trace, parsed.first_error))
        return Critique(**vars(parsed), rollout_id=rollout.id, critic=self.name, text=text, fidelity=copied)


class _EachOnce:
    """A critic of the user's own, held to one result for each attempt."""

    def __init__(self, critic: Critic) -> None:
        self.name, self._critic = critic.name, critic

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield the critic's results, under its name.

        Raises:
            StepalignError: one is of no attempt, of one that has a result, or is missing.
        """
        pending: dict[str, None] = {}

        def remembered() -> Iterator[tuple[Problem, Rollout]]:
            for problem, rollout in attempts:
                pending[rollout.id] = None
                yield problem, rollout

        for result in self._critic.critique(remembered()):
            if result.rollout_id not in pending:
                raise StepalignError(f"critic {self.name}: a result of {result.rollout_id!r}, which it was not asked")
            del pending[result.rollout_id]
            yield replace(result, critic=self.name)
        if pending:
            raise StepalignError(f"critic {self.name}: no result of {', '.join(list(pending)[:3])}")
