"""Probe of a training run: measures of a fixed small set of rollouts at every checkpoint.

The student is the present policy, the teacher the recipe's (the base, for an algorithm without one). The scores of a
teacher that does not change are computed once, before the first step. Later calls then cost one student pass. The main
process measures alone; others wait.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from stepalign import contexts
from stepalign.algorithms.teacher_prompt import limited_teacher
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import CreditMeasures
from stepalign.io import read_json, read_jsonl, write_json, write_jsonl
from stepalign.models import context_limit
from stepalign.probing import inputs
from stepalign.probing.credit import CreditScorer
from stepalign.probing.display import remarks
from stepalign.probing.folder import Probe, check_credits
from stepalign.probing.measures import measure
from stepalign.records import Credit
from stepalign.scoring import score_views
from stepalign.trainer.loop import Trainer, TrainerCallback
from stepalign.views import View


class ProbeCallback(TrainerCallback):
    """The recipe's probe, measured before the first step and at every checkpoint, in the run's folder `probe`."""

    def on_train_begin(self, trainer: Trainer) -> None:
        """Measure the first policy.

        Raises:
            StepalignError: a context of the probe needs critiques and the recipe has no source of them.
        """
        recipe, probe = trainer.recipe, trainer.recipe.probe
        assert probe is not None
        templates = [contexts.load(design) for design in dict.fromkeys(probe.contexts or [recipe.context.design])]
        lacking = [context.name for context in templates if context.needs_critique]
        if lacking and recipe.critic is None and probe.rollouts is None:
            raise StepalignError(f"probe.contexts: {lacking[0]!r} shows a critique, but the recipe has no [critic]")
        chat, before = trainer.solver.chat, trainer.solver.prompt.before
        prompt = limited_teacher(recipe, chat, context_limit(recipe.model))
        teacher = trainer.algorithm.teacher_of(trainer.policy)
        self._group_size = 1 if probe.rollouts else inputs.group_size(templates, recipe)
        self._scorer = CreditScorer(trainer.policy, chat, before, templates, teacher, prompt)
        self.on_save(trainer)

    def on_save(self, trainer: Trainer) -> None:
        """Measure the policy of a checkpoint, each once, and send the figures to the trackers."""
        path = trainer.recipe.folder / "probe" / f"step-{trainer.step:06d}.json"
        measures = read_json(path, CreditMeasures) if path.exists() else self._measure(trainer, path)
        for context, intervals in measures.contexts.items():
            values = {
                f"probe/{context}/{name}": intervals[name].value for name in ("correct", "at") if name in intervals
            }
            trainer.accelerator.log(values, step=trainer.step)

    def _measure(self, trainer: Trainer, path: Path) -> CreditMeasures:
        policy, was_training = trainer.policy, trainer.policy.training
        policy.eval()
        try:
            with trainer.console.stage("probe", 1, "checkpoints") as advance:
                credits, given = self._credits(trainer, path.parent)
                measures = measure(given.rollouts, given.marks, credits, seed=trainer.recipe.seed)
                advance(1)
        finally:
            policy.train(was_training)
        write_json(path, TypeAdapter(CreditMeasures).dump_python(measures))
        return measures

    def _credits(self, trainer: Trainer, folder: Path) -> tuple[list[Credit], Probe]:
        """Compute the set's credit. Scores of a teacher that has not changed are read from the folder."""
        path, probe = folder / "credits.jsonl", trainer.recipe.probe
        assert probe is not None
        started = path.exists()
        if started:
            given = inputs.read(folder)
            if not self._scorer.teacher.moves:
                credits = read_jsonl(path, Credit)
                check_credits(credits, given.rollouts, path)
                views = [View.whole(rollout.prompt_ids, rollout.completion_ids) for rollout in given.rollouts]
                scores = score_views(trainer.policy, views)
                students = {rollout.id: one.log_probs for rollout, one in zip(given.rollouts, scores, strict=True)}
                return [replace(credit, student=students[credit.rollout_id]) for credit in credits], given
        else:
            num_problems = -(-probe.num_rollouts // self._group_size)
            given = Probe(problems=tuple(trainer.train_problems[:num_problems]), rollouts=())
            if probe.rollouts is not None:
                given = inputs.read(probe.rollouts, lambda: trainer.train_problems, limit=probe.num_rollouts)
            given = inputs.prepare(
                given, trainer.recipe, trainer.solver.alone(), trainer.console, folder, num_samples=self._group_size
            )
        credits = [credit for batch in self._scorer.run(given, {}) for credit in batch]
        if not started:
            self._check_and_say(credits, trainer)
            write_jsonl(path, credits)
        return credits, given

    def _check_and_say(self, credits: Sequence[Credit], trainer: Trainer) -> None:
        """Say what has no credit at the first measurement.

        Raises:
            StepalignError: a context has none at all, so that no measurement would show it.
        """
        skipped, with_credit = self._scorer.skipped, {credit.context for credit in credits}
        for remark in remarks(skipped, Counter(credit.context for credit in credits if credit.cut)):
            trainer.console.say(f"probe: {remark}")
        for context in self._scorer.contexts:
            if context.name not in with_credit:
                reasons = ", ".join(reason for reason in remarks(skipped, {}) if reason.startswith(f"{context.name}: "))
                raise StepalignError(
                    f"probe.contexts: no rollout of the probe has credit under {context.name!r}; {reasons}. Give other "
                    "contexts, other probe.rollouts or a larger probe.num_rollouts"
                )
