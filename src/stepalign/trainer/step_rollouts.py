"""Rollouts of a step, by the policy, the teacher or from references, and those of a second turn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepalign import config
from stepalign.algorithms.base import Algorithm
from stepalign.console import Console
from stepalign.errors import StepalignError
from stepalign.policy import ADAPTER, Policy
from stepalign.records import CriticResult, Problem, Rollout
from stepalign.rollouts import Sampler
from stepalign.rollouts.generate import Solver
from stepalign.rollouts.transformers import TransformersSampler
from stepalign.seeding import derive_seed
from stepalign.teachers.model import ModelTeacher
from stepalign.teachers.stateless import BaseTeacher, LiveTeacher
from stepalign.trainer.run_folder import RunFolder
from stepalign.trainer.weight_sync import WeightSync


def num_samples(recipe: config.Recipe, algorithm: Algorithm[Any], step: int) -> int:
    """Return the rollouts of each problem in a step: a reference solution is there once."""
    return 1 if algorithm.rollout_source(step) == "reference" else recipe.training.num_generations


def make_rollouts(
    recipe: config.Recipe,
    solver: Solver,
    algorithm: Algorithm[Any],
    policy: Policy,
    step: int,
    batch: Sequence[Problem],
    *,
    on_rollout: Callable[[Rollout], None],
    grade: Callable[[Sequence[Rollout]], list[Rollout]],
) -> list[Rollout]:
    """Make and grade the rollouts of a step, counted from 1, on these problems. See `Solver.generate_rollouts`."""
    source, prefix = algorithm.rollout_source(step), f"step-{step:06d}"
    if source == "reference":
        return solver.reference_rollouts(
            batch, recipe.sampling, policy_step=step - 1, prefix=prefix, on_rollout=on_rollout, grade=grade
        )
    by_teacher, teacher = source == "teacher", recipe.teacher
    sampler, adapter = _teacher_sampler(recipe, solver, algorithm, policy) if by_teacher else (None, policy.adapter)
    return solver.generate_rollouts(
        batch,
        recipe.training.num_generations,
        recipe.sampling,
        adapter=adapter,
        policy_step=step - 1,
        seed=derive_seed(recipe.seed, "rollouts", step),
        prefix=prefix,
        on_rollout=on_rollout,
        grade=grade,
        prompts=algorithm.teacher_prompts(batch) if by_teacher else None,
        thinking=teacher.enable_thinking and not teacher.close_think if by_teacher else None,
        sampler=sampler,
        source=source,
    )


def second_turns(
    recipe: config.Recipe,
    run: RunFolder,
    solver: Solver,
    algorithm: Algorithm[Any],
    weight_sync: WeightSync,
    console: Console,
    step: int,
    rollouts: Sequence[Rollout],
    problems: Mapping[str, Problem],
    critiques: Sequence[CriticResult],
) -> list[Rollout]:
    """Read the second turn of a step from the run's folder, or sample it; empty where the algorithm has none."""
    prompts = algorithm.second_turn(rollouts, problems, {result.rollout_id: result for result in critiques})
    if not prompts:
        return []
    wanted = [f"{rollout.id}/second" for rollout in rollouts if rollout.id in prompts]
    if (cached := run.second_turns(step, wanted)) is not None:
        return cached
    weight_sync.sync(step - 1)
    with console.stage("sample", len(wanted)):
        made = solver.second_turns(
            rollouts,
            prompts,
            problems,
            recipe.sampling,
            adapter=ADAPTER if recipe.adapter else None,
            seed=derive_seed(recipe.seed, "second turn", step),
        )
    run.save_second_turns(step, made)
    return made


def _teacher_sampler(
    recipe: config.Recipe, solver: Solver, algorithm: Algorithm[Any], policy: Policy
) -> tuple[Sampler | None, str | None]:
    """Return the sampler of the teacher's weights, None for the solver's own, and the adapter's name."""
    teacher = algorithm.teacher_of(policy)
    if isinstance(teacher, ModelTeacher):
        size = recipe.sampler.max_num_seqs
        return TransformersSampler(teacher.model, eos_ids=solver.chat.eos_ids, batch_size=size), None
    if isinstance(teacher, LiveTeacher):
        return None, policy.adapter
    if isinstance(teacher, BaseTeacher) and policy.adapter:
        return None, None
    full = "" if policy.adapter else " where training.use_peft = false"
    raise StepalignError(f"teacher.kind = {recipe.teacher.kind!r}: it cannot be sampled from{full}")
