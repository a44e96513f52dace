"""A plan as tables for the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table

from stepalign.planning import Plan
from stepalign.planning.model_size import DECODE_SHARE, GPUS, PASS_SHARE


def table(estimated: Plan, *, price: float | None = None) -> RenderableType:
    """Lay a plan out for the terminal. `price` is that of one device for an hour."""
    size, given, gpu = estimated.size, estimated.lengths, GPUS.get(estimated.hardware or "")
    device = f"{estimated.devices} × {estimated.hardware or 'device'}"
    lines: list[RenderableType] = [
        f"{estimated.name}: {size.parameters / 1e9:.3f} B parameters, adapter {size.adapter / 1e6:.1f} M, on {device}",
        f"a rollout: {given.prompt:,.0f} prompt tokens, {given.completion:,.0f} completion tokens"
        + (f"; {given.teacher_prompt:,.0f} before it for the teacher" if "teacher" in estimated.stages else ""),
    ]
    stages = Table("one step", "tokens", "TFLOP", *(["time"] if gpu else []))
    for name, stage in {**estimated.stages, "evaluation": estimated.evaluation}.items():
        if stage.tokens:
            flops = f"{stage.flops / 1e12:,.3g}" if stage.flops else "elsewhere"
            stages.add_row(name, f"{stage.tokens:,.0f}", flops, *([_time(stage.seconds)] if gpu else []))
    memory = Table("memory of a device", "GB")
    for title, parts in {"learning": estimated.memory, "sampling": estimated.sampling_memory}.items():
        memory.add_row(title, f"{sum(parts.values()) / 1e9:,.2f}", style="bold")
        for name, value in parts.items():
            memory.add_row(f"  {name}", f"{value / 1e9:,.2f}")
        memory.add_section()
    if gpu:
        memory.add_row("available", f"{gpu.memory / 1e9:,.1f}")
    for column in (*stages.columns[1:], memory.columns[1]):
        column.justify = "right"
    lines += ["", stages, "", memory, ""]
    if "critique" in estimated.stages:
        enough = f"; critic.max_concurrency = {estimated.critic_concurrency} keeps up with sampling"
        rollouts = estimated.rollouts_per_step
        lines.append(
            f"critic: reads {rollouts * given.critic_prompt:,.0f} and writes {rollouts * given.critique:,.0f} tokens a "
            f"step{enough if gpu else ''}"
        )
    if gpu is None:
        lines.append("hours: state --hardware, or time two steps on your own (training.max_steps=2)")
    else:
        device_hours = estimated.hours * estimated.devices
        cost = f", {device_hours * price:,.2f} at {price:g} an hour" if price is not None else ""
        lines += [
            f"{estimated.steps} steps of {_time(estimated.step_seconds)} and {estimated.evaluations} evaluations of "
            f"{_time(estimated.evaluation.seconds)}: {estimated.hours:,.1f} hours, {device_hours:,.1f} device hours"
            + cost,
            f"(assumed: {PASS_SHARE:.0%} of {gpu.flops / 1e12:,.3g} TFLOP/s in passes, {DECODE_SHARE:.0%} of "
            f"{gpu.bandwidth / 1e12:,.3g} TB/s in decoding)",
        ]
    return Group(*lines)


def _time(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"
