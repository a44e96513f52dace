"""What a run will take, before anything of it starts: arithmetic on a model's configuration and a recipe.

stepalign plan recipes/paper/stepalign.toml --devices 4 --hardware h100
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stepalign import config
from stepalign.errors import StepalignError

if TYPE_CHECKING:
    from rich.console import RenderableType


def write(
    settings: config.Recipe,
    *,
    hardware: str,
    devices: int,
    like: Path | None,
    completion: int | None,
    price: float | None,
) -> "RenderableType":
    """Estimate a recipe and lay it out. See `estimate.plan` and `lengths.lengths`.

    Raises:
        StepalignError: unknown hardware, or what is counted is not at hand.
    """
    from stepalign.planning import estimate, lengths, table
    from stepalign.planning.hardware import GPUS, Gpu
    from stepalign.planning.shape import shape

    if hardware not in GPUS:
        raise StepalignError(f"hardware {hardware!r}: allowed are {', '.join(GPUS)}")
    sizes = shape(settings.model, settings.lora, gpu=True)
    assumed, problems = lengths.lengths(settings, like=like, completion=completion)
    device = Gpu(GPUS[hardware], sizes)
    found = estimate.plan(settings, sizes, assumed, device, devices=devices, evaluation_problems=problems)
    return table.table(settings, sizes, assumed, device, found, devices=devices, price=price)
