"""The probe in training: the same measures of a fixed small set at every checkpoint.

The student is the adapter as it is, the teacher the base. The base does not change, so what it says of the set under
each context is read once, before the first step; later a look costs one pass of the student.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from stepalign import config, contexts
from stepalign.console import Console
from stepalign.errors import StepalignError
from stepalign.evaluation import credit_measures
from stepalign.evaluation.credit_measures import CreditMeasures
from stepalign.io import read_jsonl, write_json, write_jsonl
from stepalign.policy import Policy
from stepalign.probing import inputs as material
from stepalign.probing.credit import Crediting
from stepalign.probing.gathering import drawn, settled
from stepalign.probing.logprobs import look
from stepalign.probing.measures import measure
from stepalign.records import Credit, Problem
from stepalign.rollouts.generate import Solver
from stepalign.views import View


class ProbeCallback:
    """A run's fixed set, in the run's folder `probe`, and what the base says of it."""

    def __init__(
        self,
        settings: config.Recipe,
        policy: Policy,
        solver: Solver,
        teacher: config.TeacherConfig,
        console: Console,
        problems: Sequence[Problem],
        folder: Path,
    ) -> None:
        """
        Raises:
            StepalignError: the recipe's `[probe]` shows critiques and nothing gives them.
        """
        assert settings.probe is not None
        self.settings, self.asked = settings, settings.probe
        self.policy, self.solver, self.console, self.folder = policy, solver, console, folder
        chosen = [contexts.load(name) for name in dict.fromkeys(self.asked.contexts or [settings.context.template])]
        lacking = [context.name for context in chosen if context.needs_critique]
        if lacking and settings.critic is None and self.asked.rollouts is None:
            raise StepalignError(f"probe.contexts: {lacking[0]!r} shows a critique, but the recipe has no [critic]")
        self.crediting = Crediting(policy, solver.chat, solver.prompt.before, chosen, teacher)
        self.problems = {problem.id: problem for problem in problems}

    def at(self, step: int) -> CreditMeasures:
        """The measures of the present adapter, which is that of `step`; taken once a step."""
        path = self.folder / f"step-{step:06d}.json"
        if path.exists():
            return credit_measures.read(path)
        was_training = self.policy.training
        self.policy.eval()
        try:
            with self.console.stage("probe", 1, "looks") as advance:
                credits, shown = self._base_view()
                seen = self._students(shown)
                now = [replace(credit, student=seen[credit.rollout_id]) for credit in credits]
                found = measure(shown.rollouts, shown.marks, now, seed=self.settings.seed)
                advance(1)
        finally:
            self.policy.train(was_training)
        write_json(path, TypeAdapter(CreditMeasures).dump_python(found))
        return found

    def _base_view(self) -> tuple[list[Credit], material.Material]:
        """What the teacher says of the set, read once and kept."""
        path = self.folder / "credits.jsonl"
        if path.exists():
            return read_jsonl(path, Credit), material.read(self.folder)
        if self.asked.rollouts is not None:
            begun = material.read(self.asked.rollouts, self.problems).first(self.asked.num_rollouts)
        else:
            chosen = list(self.problems.values())[: self.asked.num_rollouts]
            begun = drawn(chosen, self.settings, self.solver, self.console, adapter=None)
        shown = settled(begun, self.settings, self.solver, self.console, self.folder)
        shown.write(self.folder)
        credits = [
            credit
            for together in self.crediting.run(shown.rollouts, shown.problems, shown.critiques, {})
            for credit in together
        ]
        write_jsonl(path, credits)
        return credits, shown

    def _students(self, shown: material.Material) -> Mapping[str, tuple[float, ...]]:
        views = [
            View(
                prompt_ids=rollout.prompt_ids,
                completion_ids=rollout.completion_ids,
                loss_start=0,
                loss_stop=len(rollout.completion_ids),
            )
            for rollout in shown.rollouts
        ]
        sights = look(self.policy, self.policy.head, views)
        return {rollout.id: sight.log_probs for rollout, sight in zip(shown.rollouts, sights, strict=True)}
