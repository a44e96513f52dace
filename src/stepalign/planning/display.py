"""Layout of a plan on the terminal."""

import math

from rich.console import Group, RenderableType
from rich.table import Table

from stepalign import config
from stepalign.planning import Plan
from stepalign.planning.sizes import DECODE_SHARE, EAGER_LAYER_S, GPUS, PASS_SHARE
from stepalign.planning.stages import sampled_and_made

_SMALLER = "training.micro_batch_size, training.gradient_checkpointing or distributed.strategy = 'fsdp2'"
"""Keys that lower the memory of learning."""
_ROWS = "sampler.max_num_seqs"
"""The key that lowers the memory of sampling without vLLM."""


def table(settings: config.Recipe, plan: Plan, *, price: float | None = None) -> RenderableType:
    """Lay out a recipe's plan. `price` is that of one device for an hour."""
    size, given, gpu = plan.size, plan.lengths, GPUS.get(plan.hardware or "")
    eager = settings.sampler.kind == "transformers"
    stages = Table("one step" if plan.stages else "once", "tokens", "TFLOP", *(["time"] if gpu else []))
    last = "evaluation" if plan.stages else "selection"
    for name, stage in {**plan.stages, last: plan.evaluation}.items():
        if stage.tokens:
            flops = f"{stage.flops / 1e12:,.3g}" if stage.flops else "elsewhere"
            stages.add_row(name, f"{stage.tokens:,.0f}", flops, *([_time(stage.seconds)] if gpu else []))
    memory = Table("memory of a device", "GB")
    needed = {"learning": plan.memory, "sampling": plan.sampling_memory}
    for title, parts in needed.items():
        if not parts:
            continue
        memory.add_row(title, f"{sum(parts.values()) / 1e9:,.2f}", style="bold")
        for name, value in parts.items():
            memory.add_row(f"  {name}", f"{value / 1e9:,.2f}")
    if gpu:
        memory.add_row("available", f"{gpu.memory / 1e9:,.1f}", style="bold")
    for column in (*stages.columns[1:], memory.columns[1]):
        column.justify = "right"
    lines = ["hours: state --hardware, or time two steps on your own (training.max_steps=2)"]
    if gpu:
        in_process = isinstance(settings.sampler, config.VllmConfig)
        smaller = {"learning": _SMALLER, "sampling": "sampler.gpu_memory_utilization" if in_process else _ROWS}
        device_hours = plan.hours * plan.devices
        cost = "" if price is None else f", {device_hours * price:,.2f} at {price:g} an hour"
        lines = [
            (
                f"{plan.steps} steps of {_time(plan.step_seconds)} and {plan.evaluations} evaluations of "
                f"{_time(plan.evaluation.seconds)}"
                if plan.stages
                else "the selection"
            )
            + f": {plan.hours:,.1f} hours, {device_hours:,.1f} device hours{cost}",
            f"(assumed: {PASS_SHARE:.0%} of {gpu.flops / 1e12:,.3g} TFLOP/s in passes, {DECODE_SHARE:.0%} of "
            f"{gpu.bandwidth / 1e12:,.3g} TB/s in decoding"
            + (f", {1e3 * EAGER_LAYER_S:g} ms a layer for each token of transformers" if eager else "")
            + ")",
            *(
                f"does not fit: {title} needs {sum(parts.values()) / 1e9:,.1f} GB of a device's "
                f"{gpu.memory / 1e9:,.1f}; smaller with {smaller[title]}"
                for title, parts in needed.items()
                if sum(parts.values()) > gpu.memory
            ),
        ]
        if isinstance(settings.sampler, config.VllmConfig):
            weights = plan.sampling_memory["sampler's weights"]
            share = settings.sampler.gpu_memory_utilization * gpu.memory
            if weights > share:
                lines.append(
                    f"does not fit: the sampler's weights are {weights / 1e9:,.1f} GB, "
                    f"sampler.gpu_memory_utilization leaves vLLM {share / 1e9:,.1f}"
                )
    if "critique" in plan.stages:
        _, rollouts = sampled_and_made(settings)
        read, written = rollouts * given.critic_prompt, rollouts * given.critique
        lines.insert(0, f"critic: reads {read:,.0f} and writes {written:,.0f} tokens a step")
        if gpu and isinstance(settings.critic, config.OpenAICriticConfig):
            limit, enough = settings.critic.max_concurrency, plan.critic_concurrency
            lines.insert(
                1,
                f"learning waits {_time(plan.waiting)} a step for critiques, {_time(plan.stages['critique'].seconds)} "
                f"each, with critic.max_concurrency = {limit}; {enough} at once are enough"
                + (f", so {math.ceil(enough / limit)} × the servers" if enough and enough > limit else ""),
            )
    teacher = f"; {given.teacher_prompt:,.0f} before it for the teacher" if "teacher" in plan.stages else ""
    return Group(
        f"{settings.name}: {size.parameters / 1e9:.3f} B parameters, adapter {size.adapter / 1e6:.1f} M, "
        f"on {plan.devices} × {plan.hardware or 'device'}",
        f"a rollout: {given.prompt:,.0f} prompt tokens, {given.completion:,.0f} completion tokens{teacher}",
        "",
        stages,
        "",
        memory,
        "",
        *lines,
    )


def _time(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"
