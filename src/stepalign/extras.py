"""Optional packages: each comes with an extra of Stepalign and is imported where it is used."""

from importlib.util import find_spec

from stepalign.errors import not_installed

_MODULES = {
    "qlora": ("bitsandbytes",),
    "reasoning-gym": ("reasoning_gym",),
    "smollm2": ("gguf",),
    "tensorboard": ("tensorboard", "tensorboardX"),
}
"""The modules of an extra of another name, of which one is enough."""


def require(extra: str, need: str) -> None:
    """Raise an error where the package of an extra is not installed.

    Args:
        extra: the extra of Stepalign that installs it.
        need: what needs it, as key and value.
    """
    modules = _MODULES.get(extra, (extra,))
    if all(find_spec(module) is None for module in modules):
        raise not_installed(f"{need}: {modules[0]} is not installed", extra)
