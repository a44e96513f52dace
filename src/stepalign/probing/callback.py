"""Probe of a training run: measures of a fixed small set of rollouts at every checkpoint.

The student is the present adapter, the teacher the base. The base does not change, so its scores under each context
are computed once, before the first step. Later calls cost one student pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from stepalign import config, contexts
from stepalign.console import Console
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import CreditMeasures
from stepalign.io import read_json, read_jsonl, write_json, write_jsonl
from stepalign.policy import Policy
from stepalign.probing import inputs
from stepalign.probing.credit import CreditScorer
from stepalign.probing.inputs import ProbeInputs
from stepalign.probing.logprobs import score_views
from stepalign.probing.measures import measure
from stepalign.records import Credit, Problem
from stepalign.rollouts.generate import Solver
from stepalign.views import View


class ProbeCallback:
    """Measures of a run's fixed set of rollouts, in the folder `probe` of the run."""

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
        Args:
            settings: a recipe with a `[probe]` table.
            policy: the trained policy.
            solver: samples the set where the recipe names no rollouts.
            teacher: limits and thinking boundary, within the model's context.
            console: shows progress.
            problems: the training problems.
            folder: for the set, its credit and the measures.

        Raises:
            StepalignError: a context of the probe needs critiques and the recipe has no source of them.
        """
        assert settings.probe is not None
        self.settings, self.probe = settings, settings.probe
        self.policy, self.solver, self.console, self.folder = policy, solver, console, folder
        templates = [contexts.load(name) for name in dict.fromkeys(self.probe.contexts or [settings.context.template])]
        lacking = [context.name for context in templates if context.needs_critique]
        if lacking and settings.critic is None and self.probe.rollouts is None:
            raise StepalignError(f"probe.contexts: {lacking[0]!r} shows a critique, but the recipe has no [critic]")
        self.scorer = CreditScorer(policy, solver.chat, solver.prompt.before, templates, teacher)
        self.problems = {problem.id: problem for problem in problems}

    def at(self, step: int) -> CreditMeasures:
        """Measure the present adapter, which is that of `step`. Each step is measured once."""
        path = self.folder / f"step-{step:06d}.json"
        if path.exists():
            return read_json(path, CreditMeasures)
        was_training = self.policy.training
        self.policy.eval()
        try:
            with self.console.stage("probe", 1, "checkpoints") as advance:
                base_credits, given = self._base_credits()
                views = [
                    View(prompt_ids=prompt, completion_ids=ids, loss_start=0, loss_stop=len(ids))
                    for prompt, ids in ((rollout.prompt_ids, rollout.completion_ids) for rollout in given.rollouts)
                ]
                scores = score_views(self.policy, self.policy.head, views)
                students = {rollout.id: one.log_probs for rollout, one in zip(given.rollouts, scores, strict=True)}
                credits = [replace(credit, student=students[credit.rollout_id]) for credit in base_credits]
                measures = measure(given.rollouts, given.marks, credits, seed=self.settings.seed)
                advance(1)
        finally:
            self.policy.train(was_training)
        write_json(path, TypeAdapter(CreditMeasures).dump_python(measures))
        return measures

    def _base_credits(self) -> tuple[list[Credit], ProbeInputs]:
        """Compute the teacher's side of the set once, or read it from the folder."""
        path = self.folder / "credits.jsonl"
        if path.exists():
            return read_jsonl(path, Credit), inputs.read(self.folder)
        count = self.probe.num_rollouts
        given: ProbeInputs | list[Problem] = list(self.problems.values())[:count]
        if self.probe.rollouts is not None:
            given = inputs.read(self.probe.rollouts, self.problems).first(count)
        complete = inputs.prepare(given, self.settings, self.solver, self.console, self.folder)
        batches = self.scorer.run(complete.rollouts, complete.problems, complete.critiques, {})
        credits = [credit for batch in batches for credit in batch]
        write_jsonl(path, credits)
        return credits, complete
