"""Trust in recipes: what a recipe of unknown origin may read, send and run.

A recipe is code. A template's text goes to the models that a recipe names, and a key to the servers that it names. So a
recipe of unknown origin could send any file and any variable of this machine to any server. Without `--trust` it reads
templates of the package, of its own folder and of the working directory only, neither hidden nor by way of a link that
leads elsewhere, and variables whose names are those of such servers' keys: `STEPALIGN_…` and `…_API_KEY`, but not
`WANDB_API_KEY`. Its Python functions are not run, wherever they are, because they could do anything. Left out: data
files, which are read as records, and what a server is sent because that is its work.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from stepalign.config.recipe import Recipe
from stepalign.errors import StepalignError

_PACKAGE = Path(__file__).parents[1]
_KEY = re.compile(r"STEPALIGN_\w+|(?!WANDB_)\w+_API_KEY", re.ASCII)
_ADVICE = "If you trust this recipe, give --trust (in Python: load_recipe(…, trust=True))"


def check_trust(recipe: Recipe, file: Path) -> None:
    """Refuse templates elsewhere, variables that are no key's, and Python.

    Raises:
        StepalignError: naming the key, what was found and what is allowed.
    """
    roots = (file.resolve().parent, Path.cwd().resolve(), _PACKAGE)
    for name, value in recipe.marked("template"):
        for template in value if isinstance(value, tuple) else (value,):
            if template is not None and _exists(Path(template)) and not is_within(Path(template), roots):
                raise StepalignError(
                    f"{name} = {str(template)!r} is neither in the recipe's folder {roots[0]} nor in the working "
                    f"directory {roots[1]}, or is hidden there, and its text would be shown to a model. {_ADVICE}"
                )
    for name, function in recipe.marked("python"):
        raise StepalignError(f"{name} = {function.name!r}: Python of the recipe's own would be run. {_ADVICE}")
    for name, variable in recipe.marked("key_variable"):
        if not _KEY.fullmatch(variable):
            raise StepalignError(
                f"{name} = {variable!r}: the variable's value would be sent to a server; allowed: names that begin "
                f"with STEPALIGN_ or end in _API_KEY, but not WANDB_API_KEY. {_ADVICE}"
            )


def is_within(path: Path, roots: Sequence[Path]) -> bool:
    """Return whether a file is in one of these folders, links followed, and not hidden there. `/` holds nothing."""
    real = path.resolve()
    return any(
        root != root.parent
        and real.is_relative_to(root)
        and not any(part.startswith(".") for part in real.relative_to(root).parts)
        for root in roots
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no permission, a name that no file can have
        return False
