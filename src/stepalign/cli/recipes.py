"""Commands on recipe files."""

from pathlib import Path
from typing import Annotated

import typer

import stepalign
from stepalign.config import packaged

app = typer.Typer()


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Name of a recipe to copy. Default: list them all.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the copy. Default: the recipe's own name.")] = None,
) -> None:
    """List the recipes that ship with the package, or copy one to change it."""
    if name is not None:
        copied = stepalign.copy_recipe(name, out or Path(f"{Path(name).name}.toml"))
        typer.echo(copied)
        return
    for each, path in packaged.names().items():
        if path.stem != "base":  # a part of others
            typer.echo(f"{each}\n    {packaged.summary(path)}")


@app.command()
def migrate(
    file: Annotated[Path, typer.Argument(help="Recipe of an earlier format (TOML).")],
    out: Annotated[Path | None, typer.Option(help="File for the new recipe. Default: the same file.")] = None,
) -> None:
    """Rewrite a recipe of an earlier format with today's keys. Comments and layout stay."""
    for old, new in stepalign.migrate(file, out):
        typer.echo(f"{old} → {new}")
    typer.echo(out or file)
