"""Post-train reasoning models from feedback whose structure you design.

    import stepalign
    settings = stepalign.load_recipe("recipes/quickstart.toml", ["training.max_steps=4"])
    report = stepalign.train(settings)

Everything is imported when it is first asked for: `import stepalign` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from stepalign.api import critic_bench, critique, evaluate, sample, select
    from stepalign.config import load as load_recipe
    from stepalign.error_injection.sets import plant_set as plant
    from stepalign.probing.run import probe
    from stepalign.trainer.loop import train

_WHERE = {
    "load_recipe": ("stepalign.config", "load"),
    "train": ("stepalign.trainer.loop", "train"),
    "sample": ("stepalign.api", "sample"),
    "critique": ("stepalign.api", "critique"),
    "critic_bench": ("stepalign.api", "critic_bench"),
    "evaluate": ("stepalign.api", "evaluate"),
    "plant": ("stepalign.error_injection.sets", "plant_set"),
    "probe": ("stepalign.probing.run", "probe"),
    "select": ("stepalign.api", "select"),
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
