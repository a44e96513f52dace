"""A plan as tables for the terminal."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table

from stepalign import config
from stepalign.planning.estimate import Lengths, Plan
from stepalign.planning.hardware import Device
from stepalign.planning.shape import Shape


def table(
    settings: config.Recipe,
    shape: Shape,
    lengths: Lengths,
    device: Device,
    found: Plan,
    *,
    devices: int,
    price: float | None,
) -> RenderableType:
    """Everything that was estimated, with what it rests on.

    Args:
        settings: the recipe.
        shape: the solver's.
        lengths: assumed, counted or of an earlier run.
        device: one of them.
        found: the plan.
        devices: how many.
        price: of a device for an hour, if known.
    """
    device_hours = found.hours * devices
    cost = f", {device_hours * price:,.2f} at {price:g} an hour" if price is not None else ""
    return Group(
        f"{settings.name}: {shape.parameters / 1e9:.3f} B parameters, adapter {shape.adapter / 1e6:.1f} M, "
        f"on {devices} × {device.name}",
        f"a rollout: {lengths.prompt:,.0f} tokens of prompt, {lengths.completion:,.0f} of completion; "
        f"the teacher reads {lengths.teacher_prompt:,.0f} before it",
        "",
        _stages(found),
        "",
        _memory(found, device),
        "",
        *_critic(settings, lengths, found),
        f"{found.steps} steps of {_time(found.step_seconds)} and {found.evaluations} evaluations of "
        f"{_time(found.evaluation.seconds)}: {found.hours:,.1f} hours, {device_hours:,.1f} device hours{cost}",
        f"({device.describe()})",
    )


def _stages(found: Plan) -> Table:
    stages = Table("one step", "tokens", "TFLOP", "time", "tokens/s")
    for column in stages.columns[1:]:
        column.justify = "right"
    for name, stage in {**found.stages, "evaluation": found.evaluation}.items():
        if not stage.tokens:
            continue
        flops = f"{stage.flops / 1e12:,.3g}" if stage.flops else "elsewhere"
        stages.add_row(
            name, f"{stage.tokens:,.0f}", flops, _time(stage.seconds), f"{stage.tokens / stage.seconds:,.0f}"
        )
    return stages


def _memory(found: Plan, device: Device) -> Table:
    memory = Table("a device's memory", "GB")
    memory.columns[1].justify = "right"
    for title, parts in {"learning": found.memory, "sampling": found.sampling_memory}.items():
        _add(memory, title, parts)
    memory.add_row("it has", f"{device.memory / 1e9:,.1f}")
    return memory


def _add(memory: Table, title: str, parts: Mapping[str, float]) -> None:
    memory.add_row(title, f"{sum(parts.values()) / 1e9:,.2f}", style="bold")
    for name, value in parts.items():
        memory.add_row(f"  {name}", f"{value / 1e9:,.2f}")
    memory.add_section()


def _critic(settings: config.Recipe, lengths: Lengths, found: Plan) -> list[str]:
    if "critique" not in found.stages:
        return []
    rollouts = settings.training.rollouts_per_step
    return [
        f"critic: reads {rollouts * lengths.critic_prompt:,.0f} and writes {rollouts * lengths.critique:,.0f} tokens a "
        f"step; {found.critic_concurrency} answers at once (critic.max_concurrency) are written in the time that "
        "sampling takes, if it goes on meanwhile",
    ]


def _time(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"
