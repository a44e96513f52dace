"""The loop: rollouts, critiques, lessons, an update; checkpoints and evaluations along the way.

One loop for every condition. What differs between two conditions is a field of their recipes, read by a `Algorithm`:
`teaching` (what the teacher sees, what is made of it) or `rewarding` (GRPO).

    stepalign train recipes/quickstart.toml
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from stepalign import config, models, report
from stepalign import data as problems
from stepalign.algorithms.base import Algorithm, StepExamples
from stepalign.algorithms.self_distillation import within
from stepalign.chat import load_chat
from stepalign.config import registry
from stepalign.console import Console
from stepalign.critics import Critic
from stepalign.critics.self_critic import OwnModel
from stepalign.critics.stats import outcomes
from stepalign.distributed.process import SINGLE, MainProcessProxy, World, init_world
from stepalign.distributed.strategy import build_strategy, fingerprint
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation
from stepalign.evaluation.run import evaluate_policy
from stepalign.policy import ADAPTER
from stepalign.probing.callback import ProbeCallback
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CriticResult, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.rollouts import build as samplers
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed
from stepalign.trainer import checkpoints, progress
from stepalign.trainer.accumulation import GradientAccumulator, learning_rate, optimizer_of, update
from stepalign.trainer.batches import batches, fitting
from stepalign.trainer.cost import spent
from stepalign.trainer.critique_stream import CritiqueStream, iter_micro_batches
from stepalign.trainer.run_folder import Run
from stepalign.trainer.weight_sync import WeightSync


def train(settings: config.Recipe) -> Path:
    """Do a run, or go on with it where it was stopped, and return its report.

    Raises:
        StepalignError: bad input, before any long work where it can be known; or a run that cannot go on. What was
            computed up to then is in the run's folder.
    """
    world = init_world(settings.distributed.num_processes)
    with ExitStack() as stack:
        run = Run(settings) if world.size == 1 else cast(Run, MainProcessProxy(world, lambda: Run(settings)))
        stack.callback(run.close)
        trainer = Trainer(settings, run, stack, world)
        trainer.run_all()
    page = world.on_main(lambda: report.write(settings.folder))
    world.shutdown()
    return page


class Trainer:
    """Everything a run needs, put together once."""

    def __init__(self, settings: config.Recipe, run: Run, stack: ExitStack, world: World = SINGLE) -> None:
        self.settings, self.run, self.world = settings, run, world
        # All that can be wrong with a recipe shows before the weights are loaded.
        self.chat = load_chat(settings.model)
        self.prompt = SolverPrompt(settings.prompts)
        context_limit = models.context_limit(settings.model)
        self.method: Algorithm[Any] = registry.build(
            settings.algorithm, recipe=settings, chat=self.chat, prompt=self.prompt, context_limit=context_limit
        )
        grader: Grader = stack.enter_context(registry.build(settings.grader))
        self.critic: Critic | None = (
            registry.build(
                settings.critic.divided(world.size), grader=grader, folder=settings.folder, own=self._own_model
            )
            if settings.critic and self.method.needs_critique
            else None
        )
        # The own model cannot draw rollouts and critiques at once; a program answers at once, and in a settled order.
        overlap = settings.training.overlap
        self._at_once = overlap and not (settings.critic and settings.critic.needs_own_model)
        served = self.critic is not None and settings.critic is not None and settings.critic.is_remote
        self._early = overlap and served and self.method.one_by_one and world.size == 1
        self.train_problems, self.evaluation_problems, dropped = world.on_main(
            lambda: problems.prepare(settings.problems)
        )
        self._leave_out_long_problems(context_limit, dropped)
        self.method.check(self.train_problems)

        if settings.probe is not None and world.size > 1:
            raise StepalignError(
                "[probe] looks at the policy in one process: leave it out, and measure the checkpoints with "
                "`stepalign probe`"
            )
        self.accelerator = _accelerator(settings)
        self.engine = build_strategy(settings.distributed, world, self.accelerator.device)
        self.policy = models.load_policy(
            settings.model,
            settings.lora,
            settings.seed,
            self.accelerator.device,
            load_device=self.engine.load_device,
        )
        sampler = samplers.make(
            settings, lambda: self.policy.model, self.policy.head.dtype, eos_ids=self.chat.eos_ids, world=world
        )
        self.solver = Solver(self.chat, sampler, grader, self.prompt, world)
        texts = (
            (
                *self.solver.prompt_ids(problem, thinking=settings.sampling.enable_thinking),
                *self.chat.encode_text(problem.solution or problem.answer),
            )
            for problem in self.train_problems
        )
        self.weight_sync = WeightSync(sampler, self.policy, settings, texts, world)
        stack.callback(self.weight_sync.close)
        if settings.training.gradient_checkpointing:
            self.policy.base.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = optimizer_of(self.policy, settings.optimizer)
        run.describe(self.train_problems, self.evaluation_problems, dropped)
        last = world.on_main(lambda: checkpoints.latest(settings.folder / "checkpoints"))
        self.step = checkpoints.load(last, self.policy, self.optimizer) if last else 0
        run.forget_metrics_after(self.step)
        world.assert_same("model or adapter", fingerprint([self.policy.head[:64], *self.policy.trainable()]))
        self.optimizer = self.engine.prepare(self.policy, self.optimizer)
        self.console = stack.enter_context(Console(settings.training.max_steps, self.step, quiet=not world.is_main))
        if world.size > 1:
            self.console.say(f"{world.size} processes, {self.engine.name}")
        if settings.teacher.enable_thinking and not self.chat.has_thinking_switch():
            self.console.warn("teacher.enable_thinking = true, but the chat template has no thinking switch")
        if last:
            self.console.say(f"{settings.folder}: going on from {last.name}")
        self.watch = self._watch(context_limit) if settings.probe else None

    def _own_model(self) -> OwnModel:
        return OwnModel(self.chat, self.solver.sampler, models.context_limit(self.settings.model))

    def run_all(self) -> None:
        """Evaluate, then train and evaluate until the last step is done."""
        training = self.settings.training
        if not self.evaluation_problems:
            self.console.warn("there are no evaluation problems: nothing will be evaluated")
        self.look()
        if self._evaluates_now():
            self.evaluate()
        stream = batches(
            self.train_problems, training.rollouts_per_step // training.num_generations, self.settings.seed
        )
        for batch in islice(stream, self.step, training.max_steps):
            self.learn_from(batch)
            if self.step == training.max_steps or self.step % training.save_steps == 0:
                self._checkpoint()
                self.look()
            if self._evaluates_now():
                self.evaluate()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _checkpoint(self) -> None:
        folder, optimizer = (
            self.settings.folder / "checkpoints",
            self.engine.full_optimizer_state(self.policy, self.optimizer),
        )
        self.world.on_main(lambda: checkpoints.save(folder, self.policy, optimizer, self.step))

    def learn_from(self, batch: Sequence[Problem]) -> None:
        """One optimizer step on these problems."""
        step = self.step + 1
        self.console.begin()
        by_id = {problem.id: problem for problem in batch}
        kept = self.run.critiques(step)
        rate = learning_rate(self.settings.optimizer, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derive_seed(self.settings.seed, "dropout", step) + self.world.rank)
        critic = self.critic if kept is None else None
        with CritiqueStream(by_id, self.solver.grader, critic, at_once=self._at_once) as answering:
            with self.engine.unsharded(self.policy):
                rollouts = self._rollouts(step, batch, answering)
                early = self._early and kept is None
                answers = [] if early else kept or self._critiques(step, rollouts, answering)
                self.weight_sync.sleep()
                self.weight_sync.compare(rollouts)
            try:
                if early:
                    taught, learnt, answers = self._learn_as_answered(step, by_id, rollouts, answering)
                else:
                    taught = self.method.teach(rollouts, by_id, {answer.rollout_id: answer for answer in answers})
                    learnt = self._learn(taught)
            except StepalignError as error:
                raise StepalignError(f"{self.settings.folder}, step {step}: {error}") from None
        self.step = step
        critic_tokens = {
            "read": sum(answer.prompt_tokens for answer in answers),
            "written": sum(answer.completion_tokens for answer in answers),
        }
        updates = self.method.num_iterations if taught.lessons else 0
        counts: dict[str, Mapping[str, Any]] = {
            "cases": taught.cases,
            "failures": taught.failures,
            "outcomes": taught.outcomes,
            "checks": outcomes(answers),
            "critic_tokens": critic_tokens,
            "cost": spent(self.policy.parameters_read, batch, rollouts, answers, learnt, updates),
        }
        spans = {**self.console.spans, "answered": answering.spans}
        self.run.add_timeline(step, {name: found for name, found in spans.items() if name != "learn"})
        self._record(rollouts, {"lr": rate, **learnt}, counts)

    def _learn(self, taught: StepExamples[Any]) -> dict[str, float]:
        """The step's updates on lessons that are all there."""
        learnt: dict[str, float] = {}
        if taught.lessons:
            learner = self.method.learner()
            for _ in range(self.method.num_iterations):
                learnt = update(
                    self.engine,
                    self.policy,
                    self.optimizer,
                    taught.lessons,
                    learner,
                    self.settings,
                    self.console,
                    zero_gradient=taught.zero_gradient,
                )
        return learnt

    def _learn_as_answered(
        self, step: int, by_id: Mapping[str, Problem], rollouts: Sequence[Rollout], answering: CritiqueStream
    ) -> tuple[StepExamples[Any], dict[str, float], list[CriticResult]]:
        """The step's update, whose passes begin with the first answers."""
        training = self.settings.training
        drawn = {rollout.id: rollout for rollout in rollouts}
        found: dict[str, CriticResult] = {}
        taught: StepExamples[Any] = StepExamples(lessons=[])

        def teach(answers: Sequence[CriticResult]) -> list[Any]:
            new = {answer.rollout_id: answer for answer in answers}
            found.update(new)
            made = self.method.teach([drawn[name] for name in new], by_id, new)
            taught.extend(made)
            return made.lessons

        gradients = GradientAccumulator(
            self.engine,
            self.policy,
            self.method.learner(),
            self.settings,
            self.console,
            sequences=len(rollouts),
            tokens=sum(len(rollout.completion_ids) for rollout in rollouts),
        )
        with self.console.stage("learn", len(rollouts)) as advance:
            for micro in iter_micro_batches(
                answering, teach, training.micro_batch_size, training.max_tokens_per_micro_batch, self.console
            ):
                gradients.add(micro)
                advance(len(micro))
        answers = [found[rollout.id] for rollout in rollouts]
        self.run.keep_critiques(step, answers)
        return taught, gradients.apply(self.optimizer, taught.lessons) if taught.lessons else {}, answers

    def evaluate(self) -> Evaluation | None:
        """Judge the policy as it is on the evaluation problems, once a step."""
        if not self.evaluation_problems:
            return None
        if done := self.run.evaluation(self.step):
            return done
        with self.engine.unsharded(self.policy):
            self.weight_sync.sync(self.step)
            evaluation, rollouts = evaluate_policy(
                self.solver,
                self.evaluation_problems,
                self.settings.evaluation,
                self.console,
                adapter=ADAPTER,
                seed=self.settings.seed,
                step=self.step,
            )
        self.run.keep_evaluation(evaluation, rollouts)
        shown = {name: measure.value for name, measure in evaluation.measures.items()}
        self.accelerator.log({f"evaluation/{name}": value for name, value in shown.items()}, step=self.step)
        self.console.say(
            f"step {self.step}: Avg@{evaluation.n} {shown['avg']:.1%}, Maj@{evaluation.n} {shown['maj']:.1%}, "
            f"Pass@{evaluation.n} {shown['pass']:.1%}, {shown['length']:.0f} tokens"
        )
        return evaluation

    def look(self) -> None:
        """Measure the credit of the recipe's probe, where it has one, with the policy as it is."""
        if self.watch is not None:
            for context, found in self.watch.at(self.step).contexts.items():
                shown = {name: found[name].value for name in ("correct", "at") if name in found}
                self.accelerator.log({f"probe/{context}/{name}": v for name, v in shown.items()}, step=self.step)

    def _watch(self, context_limit: int | None) -> ProbeCallback:
        return ProbeCallback(
            self.settings,
            self.policy,
            self.solver,
            within(self.settings.teacher, context_limit),
            self.console,
            self.train_problems,
            self.settings.folder / "probe",
        )

    def _evaluates_now(self) -> bool:
        """Whether an evaluation is due. A run that goes on must not add one where it happened to be stopped."""
        every = self.settings.training.eval_steps
        return self.step in (0, self.settings.training.max_steps) or (every > 0 and self.step % every == 0)

    def _rollouts(self, step: int, batch: Sequence[Problem], answering: CritiqueStream) -> list[Rollout]:
        """The step's rollouts, graded, on their way to the critic: those that were kept, or new ones."""
        if (kept := self.run.rollouts(step)) is not None:
            mine = self.world.shard(kept)
            for rollout in mine:
                answering.add(rollout)
            answering.graded(mine)
            return kept
        self.weight_sync.sync(self.step)
        training = self.settings.training
        tokens_at_most = training.rollouts_per_step * self.settings.sampling.max_new_tokens / self.world.size
        with self.console.stage("sample", tokens_at_most, "tokens") as advance:

            def done(rollout: Rollout) -> None:
                answering.add(rollout)
                advance(len(rollout.completion_ids))

            rollouts = self.solver.generate_rollouts(
                batch,
                training.num_generations,
                self.settings.sampling,
                adapter=ADAPTER,
                policy_step=self.step,
                seed=derive_seed(self.settings.seed, "rollouts", step),
                prefix=f"step-{step:06d}",
                on_rollout=done,
                grade=answering.graded,
            )
        self.run.keep_rollouts(step, rollouts)
        return rollouts

    def _critiques(self, step: int, rollouts: Sequence[Rollout], answering: CritiqueStream) -> list[CriticResult]:
        """The critic's answers to all of the step's rollouts, in their order."""
        if self.critic is None:
            return []
        answers = []
        with self.console.stage("critique", len(self.world.shard(rollouts))) as advance:
            for answer in answering.answers():
                answers.append(answer)
                advance(1)
        by_rollout = {answer.rollout_id: answer for answer in self.world.gather(answers)}
        answers = [by_rollout[rollout.id] for rollout in rollouts]
        self.run.keep_critiques(step, answers)
        return answers

    def _record(
        self,
        rollouts: Sequence[Rollout],
        learnt: Mapping[str, float],
        counts: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Keep a step's metrics, send them to trackers, and say what a person should know."""
        seconds = {name: round(value, 3) for name, value in self.console.seconds.items() if name != "learn"}
        training = self.settings.training
        values: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step * training.rollouts_per_step / training.num_generations / len(self.train_problems),
            **learnt,
            **progress.measured(rollouts),
            **self.weight_sync.metrics,
        }
        self.run.add_metrics({**values, **counts, "seconds": seconds})
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=self.step)
        for warning in progress.warnings(rollouts, learnt, counts["failures"], self.settings.sampling):
            self.console.warn(f"step {self.step}: {warning}")
        self.console.step_done(f"step {self.step}: {progress.line(values, seconds)}")

    def _leave_out_long_problems(self, limit: int | None, dropped: dict[str, int]) -> None:
        """Problems whose prompt leaves no room for a completion cannot be attempted."""
        sampling = self.settings.sampling
        before = len(self.train_problems) + len(self.evaluation_problems)
        self.train_problems = fitting(self.train_problems, sampling, self.chat, self.prompt, limit)
        self.evaluation_problems = fitting(
            self.evaluation_problems, self.settings.evaluation.sampling, self.chat, self.prompt, limit
        )
        left_out = before - len(self.train_problems) - len(self.evaluation_problems)
        if left_out:
            dropped["longer than the model's context"] = left_out
        if not self.train_problems:
            raise StepalignError(
                f"problems.train: no problem leaves room for sampling.max_new_tokens = {sampling.max_new_tokens} "
                f"in the model's context of {limit} tokens"
            )


def _accelerator(settings: config.Recipe) -> Accelerator:
    folder = str(settings.folder / "trackers")
    accelerator = Accelerator(
        log_with=list(settings.tracking.report_to) or None,
        project_config=ProjectConfiguration(project_dir=folder, logging_dir=folder),
    )
    if settings.tracking.report_to:
        accelerator.init_trackers(settings.tracking.project, init_kwargs=_run_names(settings))
    return accelerator


def _run_names(settings: config.Recipe) -> dict[str, dict[str, str]]:
    """Each tracker's own way to be told the run's name."""
    return {"wandb": {"name": settings.name}, "trackio": {"name": settings.name}}
