"""Tokens, operations and seconds of each stage of a step. See `planning` for the assumptions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepalign import config, contexts
from stepalign.planning.pipeline import enough_concurrency, simulate_step
from stepalign.planning.sizes import Gpu, Lengths, ModelSize

CRITIC_TOKENS_PER_S = 30.0
"""Assumed speed of one critique among many."""


@dataclass(frozen=True)
class Stage:
    """Tokens and operations of one stage, over all devices; its seconds where the hardware is stated."""

    tokens: float
    flops: float
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Views:
    """Examples of one kind that a model reads."""

    count: float
    length: float
    """Tokens of each in the layers."""
    targets: float
    """Tokens of each before the head."""


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Devices that learn and sample."""

    gpu: Gpu | None
    """None estimates no seconds."""
    count: int
    slots: int
    """Sequences that each decodes together."""
    eager: bool
    """See `ModelSize.decode_step_s`."""

    def decoding(self, of: ModelSize, count: float, mean: float, longest: float, *, prompt: float) -> Stage:
        """Estimate the decoding of completions behind prompts."""
        tokens, context = count * mean, prompt + mean / 2
        reading = of.forward_flops(prompt)
        flops = count * reading + tokens * of.decode_flops(context)
        if self.gpu is None or not count:
            return Stage(tokens, flops)
        share = count / self.count
        rows = min(self.slots, share)
        steps = max(longest, share * mean / rows)
        seconds = steps * of.decode_step_s(self.gpu, rows, context, eager=self.eager)
        return Stage(tokens, flops, share * self.gpu.pass_seconds(reading) + seconds)

    def learning(self, of: ModelSize, examples: Sequence[Views], *, passes: int, products: int, updates: int) -> Stage:
        """Estimate passes through the layers, and products with the head."""
        flops = updates * sum(
            one.count * (passes * of.forward_flops(one.length) + products * 2 * of.vocab * of.hidden * one.targets)
            for one in examples
        )
        tokens = updates * sum(one.count * one.length for one in examples)
        return Stage(tokens, flops, self.gpu.pass_seconds(flops) / self.count if self.gpu else 0.0)


def sampled_and_made(settings: config.Recipe) -> tuple[float, float]:
    """Return the rollouts of a mean step: the sampled ones, and all with the references, one a problem."""
    algorithm, rollouts = settings.algorithm, settings.training.rollouts_per_step
    share = algorithm.lmbda if isinstance(algorithm, config.DistillationConfig) else 1.0
    if isinstance(algorithm, config.SFTConfig):
        share = float(algorithm.sequences == "rollouts")
    return rollouts * share, rollouts * (share + (1 - share) / settings.training.num_generations)


def step_stages(
    settings: config.Recipe, size: ModelSize, given: Lengths, devices: Devices, teacher: ModelSize | None
) -> dict[str, Stage]:
    """Estimate the stages of one optimizer step. `teacher` has a model of its own."""
    return _sampling(settings, size, given, devices, teacher) | _learning(settings, size, given, devices, teacher)


def _sampling(
    settings: config.Recipe, size: ModelSize, given: Lengths, devices: Devices, teacher: ModelSize | None
) -> dict[str, Stage]:
    """Estimate what makes and judges completions. STaR's second turns are at most one a problem."""
    algorithm, training = settings.algorithm, settings.training
    sampled, made = sampled_and_made(settings)
    lengths = given.completion, given.max_completion
    stages = {}
    if isinstance(algorithm, config.SeqKDConfig):
        stages["sample"] = devices.decoding(teacher or size, sampled, *lengths, prompt=given.teacher_prompt)
    elif sampled:
        stages["sample"] = devices.decoding(size, sampled, *lengths, prompt=given.prompt)
    again = sampled if isinstance(algorithm, config.RLTFSDConfig) else 0.0
    if isinstance(algorithm, config.SFTConfig) and algorithm.rationalize:
        again = training.rollouts_per_step / training.num_generations
    if again:
        stages["second turn"] = devices.decoding(size, again, *lengths, prompt=given.teacher_prompt)
    if asks_critic(settings):
        seconds = given.critique / CRITIC_TOKENS_PER_S if devices.gpu else 0.0
        stages["critique"] = Stage(made * (given.critic_prompt + given.critique), 0.0, seconds)
    return stages


def _learning(
    settings: config.Recipe, size: ModelSize, given: Lengths, devices: Devices, teacher: ModelSize | None
) -> dict[str, Stage]:
    """Estimate the passes of each model."""
    algorithm, training, updates = settings.algorithm, settings.training, settings.algorithm.num_updates
    examples, targets = sampled_and_made(settings)[1] * given.learned_share, given.completion * given.read_share
    student = [Views(count=examples, length=given.prompt + targets, targets=targets)]
    if given.feedback:
        count, written = training.rollouts_per_step * given.feedback_share, given.feedback_written
        student.append(Views(count=count, length=given.feedback, targets=written))
    stages = {}
    # The loss makes its products with the head in the student's stage: the student's, the teacher's, the gradient's.
    if algorithm.reference == "teacher":
        read = [Views(count=examples, length=given.teacher_prompt + targets, targets=targets)]
        passes, readings = settings.teacher.passes, algorithm.teacher_readings
        stages["teacher"] = devices.learning(teacher or size, read, passes=passes, products=0, updates=readings)
    elif algorithm.reference == "base":
        stages["base"] = devices.learning(size, student, passes=1, products=1, updates=updates)
    passes, products = 3 if training.gradient_checkpointing else 2, 3 if algorithm.uses_teacher else 2
    if settings.adapter is None:  # the weights have gradients too
        passes, products = passes + 1, products + 1
    stages["student"] = devices.learning(size, student, passes=passes, products=products, updates=updates)
    return stages


def critic_wait(
    settings: config.Recipe, given: Lengths, devices: Devices, stages: Mapping[str, Stage]
) -> tuple[float, int | None]:
    """Return the seconds that learning waits for critiques, and the fewest requests at once that are enough.

    Both are of a served critic on hardware that is stated, else 0 and None.
    """
    critic, training = settings.critic, settings.training
    if devices.gpu is None or not isinstance(critic, config.OpenAICriticConfig) or "critique" not in stages:
        return 0.0, None
    count = max(1, round(sampled_and_made(settings)[1]))
    # Lengths between 2·mean − longest and longest have that mean; later waves begin when earlier ones end.
    waves = math.ceil(count / devices.count / devices.slots)
    earliest = max(0.0, 2 * given.completion / given.max_completion - 1) / waves
    sampling = stages["sample"].seconds if "sample" in stages else 0.0
    ended = [sampling * (earliest + (1 - earliest) * (n + 1) / count) for n in range(count)]
    latencies, size_of_pass = [stages["critique"].seconds] * count, training.micro_batch_size * devices.count
    learned = sum(stage.seconds for name, stage in stages.items() if name not in {"sample", "second turn", "critique"})
    waiting = simulate_step(
        ended, latencies, max_concurrency=critic.max_concurrency, micro_batch_size=size_of_pass, learning=learned,
        overlap=training.overlap,
    ).waiting  # fmt: skip
    return waiting, enough_concurrency(ended, latencies, micro_batch_size=size_of_pass, learning=learned)


def asks_critic(settings: config.Recipe) -> bool:
    """Return whether a model critic is asked. A context without a critique, RefSol's for instance, leaves it idle."""
    algorithm, critic = settings.algorithm, settings.critic
    if critic is None or not critic.is_remote or not algorithm.uses_teacher:
        return False
    needs = contexts.load(settings.context.design).needs_critique or isinstance(algorithm, config.RLTFFMConfig)
    if isinstance(algorithm, config.CreditGRPOConfig):
        needs |= algorithm.credit == "verdicts"
    if isinstance(algorithm, config.DistillationConfig):
        needs |= algorithm.loss_span == "until_first_error"
    return needs
