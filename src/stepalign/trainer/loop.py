"""Training loop: rollouts, critiques, examples, an update; evaluations and checkpoints along the way.

One loop serves every algorithm. `trainer.build` makes the parts from a recipe.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator

from stepalign import config
from stepalign.algorithms.base import Algorithm, StepExamples
from stepalign.console import Console
from stepalign.critics import Critic
from stepalign.critics.stats import outcomes
from stepalign.distributed.process import World
from stepalign.distributed.strategy import ParallelStrategy
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation
from stepalign.evaluation.run import evaluate_policy
from stepalign.policy import Policy
from stepalign.records import CriticResult, Problem, Rollout
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed
from stepalign.trainer import checkpoints
from stepalign.trainer.accumulation import READ, Pass, learning_rate, local_passes, update
from stepalign.trainer.batches import batches
from stepalign.trainer.canaries import Canaries, Canary
from stepalign.trainer.critique_stream import CritiqueStream, iter_micro_batches
from stepalign.trainer.failure_limit import FailureLimit
from stepalign.trainer.run_folder import RunFolder
from stepalign.trainer.step_metrics import (
    numbers,
    rollout_metrics,
    step_cost,
    step_line,
    step_outcomes,
    step_warnings,
)
from stepalign.trainer.step_rollouts import make_rollouts, num_samples, second_turns
from stepalign.trainer.weight_sync import WeightSync


class TrainerCallback:
    """Hooks of a run, named as in transformers. Override what you need; only the main process calls them."""

    def on_train_begin(self, trainer: "Trainer") -> None:
        """React to the start of a run, or of its continuation, before the first evaluation. May run the policy."""

    def on_step_end(self, trainer: "Trainer", metrics: Mapping[str, Any]) -> None:
        """React to an optimizer step. `metrics` is its line in `metrics.jsonl`."""

    def on_evaluate(self, trainer: "Trainer", evaluation: Evaluation) -> None:
        """React to an evaluation."""

    def on_save(self, trainer: "Trainer") -> None:
        """React to a checkpoint. May run the policy."""


@dataclass(kw_only=True)
class Trainer:
    """Parts of a run and the loop over them."""

    recipe: config.Recipe
    run: RunFolder
    world: World
    console: Console
    accelerator: Accelerator
    """Its trackers are used."""
    train_problems: list[Problem]
    evaluation_problems: list[Problem]
    algorithm: Algorithm[Any]
    critic: Critic | None
    policy: Policy
    optimizer: torch.optim.Optimizer
    strategy: ParallelStrategy
    solver: Solver
    weight_sync: WeightSync
    canaries: Canaries
    callbacks: Sequence[object] = ()
    concurrent_critic: bool = False
    """Critiques are made while other rollouts are sampled."""
    streaming: bool = False
    """Updates begin with the first critiques, while others are made."""
    step: int = 0
    """Optimizer steps done."""

    def __post_init__(self) -> None:
        self._failure_limit = FailureLimit(self.recipe.critic, self.recipe.folder)

    def train(self) -> None:
        """Evaluate, then train and evaluate until the last step is done."""
        training = self.recipe.training
        if not self.evaluation_problems:
            self.console.warn("there are no evaluation problems: nothing will be evaluated")
        self._call("on_train_begin", runs_policy=True)
        if self._evaluation_is_due():
            self.evaluate()
        problems_per_step = training.rollouts_per_step // training.num_generations
        stream = batches(self.train_problems, problems_per_step, self.recipe.seed)
        for batch in islice(stream, self.step, training.max_steps):
            self.train_step(batch)
            if self.step == training.max_steps or self.step % training.save_steps == 0:
                self.save_checkpoint()
            if self._evaluation_is_due():
                self.evaluate()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def train_step(self, batch: Sequence[Problem]) -> None:
        """Do one optimizer step on these problems.

        Raises:
            StepalignError: loss or gradient is not finite, or a critic or grader failed for good.
        """
        step = self.step + 1
        problems = {problem.id: problem for problem in batch}
        self.console.begin()
        rate = learning_rate(self.recipe.optimizer, step, self.recipe.training.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derive_seed(self.recipe.seed, "dropout", step) + self.world.rank)
        samples = num_samples(self.recipe, self.algorithm, step)
        cached = self.run.critiques(step, batch, samples)
        critic = self.critic if cached is None else None
        with CritiqueStream(problems, self.solver.grader, critic, concurrent=self.concurrent_critic) as stream:
            with self.strategy.unsharded(self.policy):
                rollouts = self._rollouts(step, batch, samples, stream)
                streaming = self.streaming and cached is None
                critiques = [] if streaming else cached or self._critiques(step, rollouts, stream)
                parts = self.recipe, self.run, self.solver, self.algorithm, self.weight_sync, self.console
                rollouts = [*rollouts, *second_turns(*parts, step, rollouts, problems, critiques)]
                self.weight_sync.sleep()
            self._failure_limit.check(step, critiques if cached is None else [])  # kept ones were counted before
            try:
                source = stream if streaming else None
                examples, critiques, metrics = self._update(rollouts, problems, critiques, source)
            except StepalignError as error:
                raise StepalignError(f"{self.recipe.folder}, step {step}: {error}") from None
            if streaming:
                self.run.save_critiques(step, critiques)
                self._failure_limit.check(step, critiques)
        self.step = step
        self.algorithm.after_step(self.policy)
        spans = {name: spans for name, spans in self.console.spans.items() if name != "learn"}
        self.run.append_timeline(step, {**spans, "answered": stream.spans})
        self._record(batch, rollouts, examples, critiques, {"lr": rate, **metrics})

    def _rollouts(self, step: int, batch: Sequence[Problem], samples: int, stream: CritiqueStream) -> list[Rollout]:
        """Read the step's graded rollouts from the run's folder, or make them; pass them to the stream."""
        if (cached := self.run.rollouts(step, batch, samples)) is not None:
            mine = self.world.shard(cached)
            for rollout in mine:
                stream.submit(rollout)
            stream.graded(mine)
            return cached
        self.weight_sync.sync(self.step)
        with self.console.stage("sample", samples * len(batch) / self.world.size) as advance:

            def sampled(rollout: Rollout) -> None:
                stream.submit(rollout)
                advance(1)

            parts = self.recipe, self.solver, self.algorithm, self.policy
            rollouts = make_rollouts(*parts, step, batch, on_rollout=sampled, grade=stream.graded)
        self.run.save_rollouts(step, rollouts)
        return rollouts

    def _critiques(self, step: int, rollouts: Sequence[Rollout], stream: CritiqueStream) -> list[CriticResult]:
        """Collect the critic's results on all of the step's rollouts, in their order."""
        if self.critic is None:
            return []
        results = []
        with self.console.stage("critique", len(self.world.shard(rollouts))) as advance:
            for result in stream.results():
                results.append(result)
                advance(1)
        by_rollout = {result.rollout_id: result for result in self.world.gather(results)}
        critiques = [by_rollout[rollout.id] for rollout in rollouts]
        self.run.save_critiques(step, critiques)
        return critiques

    def _update(
        self,
        rollouts: Sequence[Rollout],
        problems: Mapping[str, Problem],
        critiques: Sequence[CriticResult],
        stream: CritiqueStream | None,
    ) -> tuple[StepExamples[Any], list[CriticResult], dict[str, float]]:
        """Build the step's examples and update the policy on them.

        Args:
            rollouts: the whole step's.
            problems: by id.
            critiques: of these rollouts, in their order; empty with `stream`.
            stream: gives the critiques as they are ready; None where they are all there.

        Returns:
            Examples, critiques in the order of the rollouts, and the last update's metrics with all updates' tokens.
        """
        by_id = {rollout.id: rollout for rollout in rollouts}
        results: dict[str, CriticResult] = {}
        step_examples: StepExamples[Any] = StepExamples()

        def build(new: Sequence[CriticResult]) -> list[Any]:
            new_by_id = {result.rollout_id: result for result in new}
            results.update(new_by_id)
            attempts = [by_id[name] for name in new_by_id] if stream else rollouts
            built = self.algorithm.build_examples(attempts, problems, new_by_id)
            step_examples.extend(built)
            return built.examples

        training = self.recipe.training
        limits = training.micro_batch_size, training.max_tokens_per_micro_batch, self.policy.shares_prefixes
        lengths = None if stream is None else [len(rollout.completion_ids) for rollout in rollouts]
        if stream is None:
            build(critiques)
            if not step_examples.examples:
                return step_examples, list(critiques), {}
        sampled = {r.id: r.sampler_logprobs for r in rollouts if r.sampler_logprobs and r.on_policy}
        if (lora := self.recipe.adapter) and lora.lora_dropout:  # the student's pass has a mask, the sampler none
            sampled = {}
        metrics: dict[str, float] = {}
        for iteration in range(self.algorithm.num_iterations):
            passes: Iterable[Pass[Any]]
            if stream is not None and iteration == 0:
                passes = ((ready, False, False) for ready in iter_micro_batches(stream, build, *limits, self.console))
            else:
                passes = local_passes(self.strategy, step_examples.examples, *limits)
            last = update(
                self.algorithm,
                self.policy,
                self.strategy,
                self.optimizer,
                step_examples,
                passes,
                self.console,
                loss_agg_mode=self.recipe.algorithm.loss_agg_mode,
                max_grad_norm=self.recipe.optimizer.max_grad_norm,
                lengths=lengths,
                sampler_logprobs=sampled if iteration == 0 else None,  # later the policy is another
            )
            metrics |= last | {name: metrics.get(name, 0) + last[name] for name in READ if name in last}
            if step_examples.examples:
                self.algorithm.after_update(self.policy)
        return step_examples, [results[r.id] for r in rollouts if r.id in results], metrics

    def save_checkpoint(self) -> None:
        """Write the policy, optimizer and step to the run's folder."""
        optimizer = self.strategy.full_optimizer_state(self.policy, self.optimizer)
        folder = self.recipe.folder / "checkpoints"  # `run` may be a proxy, which has methods only
        state = self.algorithm.state_dict(self.policy)
        tokenizer = self.solver.chat.tokenizer
        self.world.on_main(lambda: checkpoints.save(folder, self.policy, optimizer, self.step, state, tokenizer))
        self._call("on_save", runs_policy=True)

    def evaluate(self) -> Evaluation | None:
        """Evaluate the policy on the evaluation problems, once a step."""
        if not self.evaluation_problems:
            return None
        if (done := self.run.evaluation(self.step)) is not None:
            return done
        with self.strategy.unsharded(self.policy):
            self.weight_sync.sync(self.step)
            evaluation, rollouts = evaluate_policy(
                self.solver,
                self.evaluation_problems,
                self.recipe.evaluation,
                self.console,
                adapter=self.policy.adapter,
                seed=self.recipe.seed,
                step=self.step,
            )
        self.run.save_evaluation(evaluation, rollouts)
        values = {name: measure.value for name, measure in evaluation.measures.items()}
        self.accelerator.log({f"evaluation/{name}": value for name, value in values.items()}, step=self.step)
        self.console.say(
            f"step {self.step}: Avg@{evaluation.n} {values['avg']:.1%}, Maj@{evaluation.n} {values['maj']:.1%}, "
            f"Pass@{evaluation.n} {values['pass']:.1%}, {values['length']:.0f} tokens"
        )
        self._warn(self.canaries.after_evaluation(evaluation))
        self._call("on_evaluate", evaluation)
        return evaluation

    def _evaluation_is_due(self) -> bool:
        """Tell by the step alone, so that a resumed run adds no evaluation where it was stopped."""
        every = self.recipe.training.eval_steps
        return self.step in (0, self.recipe.training.max_steps) or (every > 0 and self.step % every == 0)

    def _record(
        self,
        batch: Sequence[Problem],
        rollouts: Sequence[Rollout],
        examples: StepExamples[Any],
        critiques: Sequence[CriticResult],
        update_metrics: Mapping[str, float],
    ) -> None:
        """Write a step's metrics to folder, trackers and terminal."""
        counts = step_outcomes(examples.outcomes, rollouts, critiques)
        seconds = {name: round(value, 3) for name, value in self.console.seconds.items() if name != "learn"}
        updates = self.algorithm.num_iterations if examples.examples else 0
        parameters = self.policy.parameters_read, self.algorithm.teacher_parameters(self.policy)
        full = self.policy.adapter is None
        values: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step * len(batch) / len(self.train_problems),
            **(dict(update_metrics) | rollout_metrics(rollouts) | self.algorithm.metrics() | self.weight_sync.metrics),
        }
        out_of_range, new = self.canaries.after_step(values)
        line = {
            **values,
            "canaries": [canary.name for canary in out_of_range],
            "cases": examples.cases,
            "failures": examples.failures,
            "outcomes": counts,
            "checks": outcomes(critiques),
            "critic_tokens": {
                "read": sum(result.prompt_tokens for result in critiques),
                "written": sum(result.completion_tokens for result in critiques),
            },
            "cost": step_cost(parameters, len(batch), rollouts, critiques, update_metrics, updates, full=full),
            "seconds": seconds,
        }
        self.run.append_metrics(line)
        logged = dict(numbers(line, "train/")) | {
            f"train/canaries/{canary.name}": canary.last for canary in out_of_range
        }
        self.accelerator.log(logged, step=self.step)
        for warning in step_warnings(
            rollouts, update_metrics, examples.failures, self.recipe.sampling, self.weight_sync.tolerance
        ):
            self.console.warn(f"step {self.step}: {warning}")
        self.console.step_done(f"step {self.step}: {step_line(line, counts, seconds)}")
        self._warn(new)
        self._call("on_step_end", line)

    def _warn(self, canaries: Sequence[Canary]) -> None:
        for canary in canaries:
            self.console.warn(f"step {self.step}: canary: {canary.text}")

    def _call(self, hook: str, *arguments: Any, runs_policy: bool = False) -> None:
        """Call the callbacks' hook on the main process, with the whole base gathered where the hook may run it."""
        calls = [call for callback in self.callbacks if callable(call := getattr(callback, hook, None))]
        with self.strategy.unsharded(self.policy) if runs_policy and calls else nullcontext():
            for call in calls if self.world.is_main else ():
                call(self, *arguments)
