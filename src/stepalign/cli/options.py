"""Arguments and options that commands share, and their end at an interrupt."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(help="Recipe (TOML), or the name of one that ships with the package.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides of recipe keys, like optimizer.lr=1e-5.")]
ProblemsFile = Annotated[Path | None, typer.Option(help="Problems (JSONL) of the rollouts. Default: the recipe's.")]
PRICE_HELP = "Price of a million prompt tokens and of a million completion tokens."
PriceOption = Annotated[tuple[float, float] | None, typer.Option(help=PRICE_HELP)]
TrustOption = Annotated[bool, typer.Option("--trust", help="Allow templates and key variables of any place and name.")]
AdapterFolder = Annotated[
    Path | None, typer.Option(help="PEFT adapter, or run: its last checkpoint. Default: the base.")
]


def resumable(path: Path) -> AbstractContextManager[None]:
    """Say at an interrupt that the same command goes on from a file or folder."""
    return interruptible(f"the same command goes on from {path}")


@contextmanager
def interruptible(kept: str = "nothing was written") -> Iterator[None]:
    """Exit with 130 at an interrupt, and say what is kept: the interrupt's own message, or `kept`."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if is_main():
            typer.echo(f"\nstopped; {str(interrupt) or kept}", err=True)
        raise typer.Exit(130) from None


def is_main() -> bool:
    """Return whether this process prints."""
    return os.environ.get("RANK", "0") == "0"  # the first of the processes that a launcher started, or the only one
