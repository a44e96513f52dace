"""A plan as tables for the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table

from stepalign import config
from stepalign.planning import Plan
from stepalign.planning.model_size import DECODE_SHARE, GPUS, PASS_SHARE


def table(settings: config.Recipe, plan: Plan, *, price: float | None = None) -> RenderableType:
    """Lay out a recipe's plan. `price` is that of one device for an hour."""
    size, given, gpu = plan.size, plan.lengths, GPUS.get(plan.hardware or "")
    teacher = f"; {given.teacher_prompt:,.0f} before it for the teacher" if "teacher" in plan.stages else ""
    stages = Table("one step", "tokens", "TFLOP", *(["time"] if gpu else []))
    for name, stage in {**plan.stages, "evaluation": plan.evaluation}.items():
        if stage.tokens:
            flops = f"{stage.flops / 1e12:,.3g}" if stage.flops else "elsewhere"
            stages.add_row(name, f"{stage.tokens:,.0f}", flops, *([_time(stage.seconds)] if gpu else []))
    memory = Table("memory of a device", "GB")
    for title, parts in {"learning": plan.memory, "sampling": plan.sampling_memory}.items():
        memory.add_row(title, f"{sum(parts.values()) / 1e9:,.2f}", style="bold")
        for name, value in parts.items():
            memory.add_row(f"  {name}", f"{value / 1e9:,.2f}")
        memory.add_section()
    if gpu:
        memory.add_row("available", f"{gpu.memory / 1e9:,.1f}")
    for column in (*stages.columns[1:], memory.columns[1]):
        column.justify = "right"
    lines = []
    if "critique" in plan.stages:
        rollouts = settings.training.rollouts_per_step
        keeps_up = f"; critic.max_concurrency = {plan.critic_concurrency} keeps up with sampling" if gpu else ""
        read, written = rollouts * given.critic_prompt, rollouts * given.critique
        lines.append(f"critic: reads {read:,.0f} and writes {written:,.0f} tokens a step{keeps_up}")
    if gpu:
        device_hours = plan.hours * plan.devices
        cost = "" if price is None else f", {device_hours * price:,.2f} at {price:g} an hour"
        lines += [
            f"{plan.steps} steps of {_time(plan.step_seconds)} and {plan.evaluations} evaluations of "
            f"{_time(plan.evaluation.seconds)}: {plan.hours:,.1f} hours, {device_hours:,.1f} device hours{cost}",
            f"(assumed: {PASS_SHARE:.0%} of {gpu.flops / 1e12:,.3g} TFLOP/s in passes, {DECODE_SHARE:.0%} of "
            f"{gpu.bandwidth / 1e12:,.3g} TB/s in decoding)",
        ]
    else:
        lines.append("hours: state --hardware, or time two steps on your own (training.max_steps=2)")
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
