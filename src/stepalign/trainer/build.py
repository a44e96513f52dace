"""Builder: from a recipe to the parts of a run.

Everything that can be wrong with a recipe is found before the weights are loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from stepalign import config, data, models, prompts
from stepalign.algorithms.base import Algorithm
from stepalign.chat import CHAT_TEMPLATE, Chat, load_chat
from stepalign.config import registry
from stepalign.console import Console
from stepalign.critics import Critic, ServedCritic
from stepalign.critics.own_model import OwnModel
from stepalign.critics.self_critic import SelfCritic
from stepalign.distributed.process import SINGLE, World
from stepalign.distributed.strategy import ParallelStrategy, build_strategy, fingerprint
from stepalign.io import flat
from stepalign.losses import fused
from stepalign.manifest import read_manifest
from stepalign.policy import Policy
from stepalign.precision import set_matmul_precision
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem, TokenIds
from stepalign.rewards import Grader
from stepalign.rollouts import sampling_limit
from stepalign.rollouts.generate import Solver, make_sampler
from stepalign.rollouts.room import LONGER, with_room
from stepalign.trainer import checkpoints, checks
from stepalign.trainer.accumulation import adamw
from stepalign.trainer.batches import with_teacher_room
from stepalign.trainer.canaries import Canaries
from stepalign.trainer.loop import Trainer
from stepalign.trainer.run_folder import RunFolder
from stepalign.trainer.weight_sync import WeightSync


def build_trainer(
    recipe: config.Recipe,
    run: RunFolder,
    stack: ExitStack,
    world: World = SINGLE,
    callbacks: Sequence[object] = (),
) -> Trainer:
    """Build a trainer, and restore the run's last checkpoint where there is one.

    Args:
        recipe: the run's.
        run: its folder, open.
        stack: closes the parts.
        world: the processes of the run.
        callbacks: objects with some of the hooks of `TrainerCallback`, called by the main process.

    Raises:
        StepalignError: the recipe cannot be run as it is.
    """
    # From the recipe alone.
    words = stack.enter_context(prompts.recorded())
    prompt = SolverPrompt(recipe.prompts)
    chat = load_chat(recipe.model, prompt.before, run.date())
    context_limit = models.context_limit(recipe.model)
    algorithm: Algorithm[Any] = registry.build(
        recipe.algorithm, recipe=recipe, chat=chat, prompt=prompt, context_limit=context_limit
    )
    grader: Grader = stack.enter_context(registry.build(recipe.grader))
    critic: Critic | None = None
    policy: Policy  # built below, and the solver on it
    solver: Solver
    if recipe.critic and algorithm.needs_critique:
        critic = registry.build(
            recipe.critic.divided(world.size),
            grader=grader,
            folder=recipe.folder,
            own=cache(lambda: OwnModel.of(solver, recipe, policy)),
            before=prompt.before,
        )
    world.assert_same("text of a template or of a Python function", prompts.digests(words))
    run.keep_texts({**words, CHAT_TEMPLATE: str(chat.tokenizer.chat_template)})
    problems, commits = world.on_main(
        lambda: data.pin(recipe.problems, read_manifest(recipe.folder).get("dataset_commits", {}))
    )
    train, evaluation, dropped = world.on_main(lambda: data.prepare(problems))
    train, evaluation = _drop_long_problems(recipe, chat, prompt, context_limit, train, evaluation, dropped)
    train = _drop_unteachable_problems(algorithm, train, dropped)
    last = world.on_main(lambda: checkpoints.latest(recipe.folder / "checkpoints"))
    if isinstance(critic, ServedCritic) and (last is None or last.name < f"step-{recipe.training.max_steps:06d}"):
        world.on_main(critic.check_servers)
    has_checksums = world.on_main(lambda: checkpoints.verify(last)) if last else True
    run.check_resumed(train, evaluation, world.on_main(lambda: _fingerprint(recipe)))

    # The weights.
    accelerator = _accelerator(recipe)
    strategy = build_strategy(
        recipe.distributed,
        world,
        accelerator.device,
        full=recipe.adapter is None,
    )
    wanted = run.float32_matmul_precision() or recipe.model.float32_matmul_precision
    precision = world.on_main(lambda: set_matmul_precision(wanted, accelerator.device))
    torch.set_float32_matmul_precision(precision)
    policy = _load_policy(recipe, algorithm, strategy, accelerator.device)
    sampler = make_sampler(recipe, lambda: policy.model, policy.head.dtype, eos_ids=chat.eos_ids, world=world)
    solver = Solver(chat, sampler, grader, prompt, world)
    weight_sync = WeightSync(sampler, policy, recipe, _texts(recipe, solver, train), world)
    stack.callback(weight_sync.close)
    optimizer = adamw(policy, recipe.optimizer)

    # The run so far.
    base = world.on_main(lambda: _fingerprint(recipe))
    run.describe(train, evaluation, dropped, base, precision, dataset_commits=commits, warning=grader.warning)
    step = 0
    if last:
        step, algorithm_state = checkpoints.load(last, policy, optimizer)
        algorithm.load_state_dict(policy, algorithm_state)
    run.drop_metrics_after(step)
    world.assert_same("model or adapter", fingerprint([policy.head[:64], *policy.trainable()]))
    optimizer = strategy.prepare(policy, optimizer)

    console = stack.enter_context(Console(recipe.training.max_steps, step, quiet=not world.is_main))
    _say_what_runs(recipe, console, world, strategy, precision, dropped, last, has_checksums=has_checksums)
    _warn(recipe, console, chat, accelerator.device)
    if critic is not None and not step:
        _try_critic(critic, recipe, train, world, console, strategy.unsharded(policy))
    # The solver's own model cannot sample rollouts and critiques at once.
    concurrent = recipe.training.overlap and not (recipe.critic and recipe.critic.needs_own_model)
    served = critic is not None and recipe.critic is not None and recipe.critic.is_remote
    return Trainer(
        recipe=recipe,
        run=run,
        world=world,
        console=console,
        accelerator=accelerator,
        train_problems=train,
        evaluation_problems=evaluation,
        algorithm=algorithm,
        critic=critic,
        policy=policy,
        optimizer=optimizer,
        strategy=strategy,
        solver=solver,
        weight_sync=weight_sync,
        canaries=Canaries(recipe.folder, recipe.canaries),
        callbacks=callbacks,
        concurrent_critic=concurrent,
        streaming=concurrent and served and algorithm.one_by_one and world.size == 1,
        step=step,
    )


def _load_policy(
    recipe: config.Recipe, algorithm: Algorithm[Any], strategy: ParallelStrategy, device: torch.device
) -> Policy:
    """Load the initial policy, and let the algorithm take what it needs of it."""
    policy = models.load_policy(recipe.model, recipe.adapter, recipe.seed, device, load_device=strategy.load_device)
    if recipe.training.gradient_checkpointing:
        policy.base.gradient_checkpointing_enable({"use_reentrant": False})
    algorithm.begin(policy)
    if recipe.probe is not None:  # it compares with the base where the algorithm has no teacher
        algorithm.teacher_of(policy)
    return policy


def _fingerprint(recipe: config.Recipe) -> dict[str, str]:
    """Return the digests of the base's files, and of those of a teacher with a model of its own."""
    base, teacher = models.fingerprint(recipe.model), recipe.teacher.model_of(recipe.model)
    if teacher is not recipe.model:
        base |= {f"teacher/{name}": digest for name, digest in models.fingerprint(teacher).items()}
    return base


def _texts(recipe: config.Recipe, solver: Solver, problems: Sequence[Problem]) -> Iterator[TokenIds]:
    """Yield each problem's prompt followed by its reference solution, of the kind that is sampled."""
    for problem in problems:
        prompt_ids = solver.prompt_ids(problem, thinking=recipe.sampling.enable_thinking)
        yield (*prompt_ids, *solver.chat.encode_text(problem.solution or problem.answer))


def _say_what_runs(
    recipe: config.Recipe,
    console: Console,
    world: World,
    strategy: ParallelStrategy,
    precision: str,
    dropped: Mapping[str, int],
    last: Path | None,
    *,
    has_checksums: bool,
) -> None:
    """Print processes, precision, problems that are left out, and the checkpoint that a run goes on from."""
    if world.size > 1:
        console.say(f"{world.size} processes, {strategy.name}")
    if precision != "highest":
        console.say(f"float32 products in {precision} precision (bfloat16 factors, float32 sums)")
    if dropped:
        console.say("problems left out: " + ", ".join(f"{count} {reason}" for reason, count in dropped.items()))
    if last:
        console.say(f"{recipe.folder}: going on from {last.name}")
    if not has_checksums:
        console.say(f"{last}: written without checksums, by an earlier release: a damaged byte would not be noticed")


def _warn(recipe: config.Recipe, console: Console, chat: Chat, device: torch.device) -> None:
    """Print what the machine or the tokenizer lacks."""
    if device.type == "cuda" and fused.kernels(device) is None:
        console.warn("triton is not installed: the losses take torch's slower form (pip install triton)")
    if recipe.teacher.enable_thinking and not chat.has_thinking_switch():
        console.warn("teacher.enable_thinking = true, but the chat template has no thinking switch")


def _try_critic(
    critic: Critic,
    recipe: config.Recipe,
    problems: list[Problem],
    world: World,
    console: Console,
    unsharded: AbstractContextManager[None],
) -> None:
    """Ask a model critic for its first critiques, and refuse it if all fail and the recipe limits the failures."""
    trial = recipe.critic.trial if recipe.critic and recipe.critic.max_failure_share < 1 else "none"
    if trial == "none":
        return
    attempts = world.shard(checks.trial_attempts(problems, cut=trial == "cut"))
    with console.stage("critic's trial", len(attempts)) as advance, unsharded:
        results = []
        for result in critic.critique(attempts):
            results.append(result)
            advance(1)
    checks.check_trial(world.gather(results))
    if isinstance(critic, SelfCritic) and (lack := critic.lack_of_room(problems, recipe.sampling.max_new_tokens)):
        console.warn(lack)


def _drop_long_problems(
    recipe: config.Recipe,
    chat: Chat,
    prompt: SolverPrompt,
    context_limit: int | None,
    train: list[Problem],
    evaluation: list[Problem],
    dropped: dict[str, int],
) -> tuple[list[Problem], list[Problem]]:
    """Drop and count problems whose prompt leaves no room for a completion."""
    limit = sampling_limit(recipe.sampler, context_limit)
    fitting = with_room(train, recipe.sampling, chat, prompt, limit)
    fitting_evaluation = with_room(
        evaluation,
        recipe.evaluation.sampling,
        chat,
        prompt,
        limit,
        name="evaluation problems",
        key="evaluation.sampling",
    )
    if too_long := len(train) + len(evaluation) - len(fitting) - len(fitting_evaluation):
        dropped[LONGER] = too_long
    return fitting, fitting_evaluation


def _drop_unteachable_problems(
    algorithm: Algorithm[Any], train: list[Problem], dropped: dict[str, int]
) -> list[Problem]:
    """Check that problems have what the algorithm needs; drop and count those too long for a teacher that writes."""
    algorithm.check_problems(train)
    fitting = with_teacher_room(train, algorithm)
    if too_long := len(train) - len(fitting):
        dropped["longer than the teacher's limit"] = too_long
    return fitting


def _accelerator(recipe: config.Recipe) -> Accelerator:
    folder = str(recipe.folder / "trackers")
    accelerator = Accelerator(
        log_with=list(recipe.tracking.report_to) or None,
        project_config=ProjectConfiguration(project_dir=folder, logging_dir=folder),
    )
    if recipe.tracking.report_to:
        names = {tracker: {"name": recipe.name} for tracker in ("wandb", "trackio")}
        keys = flat(recipe.model_dump(mode="json", exclude_none=True))
        settings = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in keys}
        accelerator.init_trackers(recipe.tracking.project, config=settings, init_kwargs=names)
    return accelerator
