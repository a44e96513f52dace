"""Post-train reasoning models from feedback whose structure you design.

    import stepalign
    settings = stepalign.load_recipe("recipes/quickstart.toml", ["training.steps=4"])
    report = stepalign.train(settings)

Everything is imported when it is first asked for: `import stepalign` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from stepalign.critiquing import benchmark as critic_bench
    from stepalign.critiquing import critique
    from stepalign.probing.stage import probe
    from stepalign.recipe import load as load_recipe
    from stepalign.slips.sets import plant_set as plant
    from stepalign.stages import evaluate, sample, select
    from stepalign.training.loop import train

_WHERE = {
    "load_recipe": ("stepalign.recipe", "load"),
    "train": ("stepalign.training.loop", "train"),
    "sample": ("stepalign.stages", "sample"),
    "critique": ("stepalign.critiquing", "critique"),
    "critic_bench": ("stepalign.critiquing", "benchmark"),
    "evaluate": ("stepalign.stages", "evaluate"),
    "plant": ("stepalign.slips.sets", "plant_set"),
    "probe": ("stepalign.probing.stage", "probe"),
    "select": ("stepalign.stages", "select"),
}

__all__ = [
    "__version__",
    "critic_bench",
    "critique",
    "evaluate",
    "load_recipe",
    "plant",
    "probe",
    "sample",
    "select",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'stepalign' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
