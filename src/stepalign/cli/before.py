"""Commands that look at a recipe before it is run."""

from pathlib import Path
from typing import Annotated

import typer

import stepalign
from stepalign import config
from stepalign.cli.options import Overrides, RecipeFile, TrustOption, interruptible, resumable

app = typer.Typer()


@app.command()
def preview(
    file: RecipeFile,
    overrides: Overrides = None,
    rollouts: Annotated[Path | None, typer.Option(help="Rollouts (JSONL) or folder. Default: sampled.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rollouts to show.")] = 2,
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids below each text.")] = False,
    out: Annotated[Path | None, typer.Option(help="File for a page (HTML).")] = None,
    trust: TrustOption = False,
) -> None:
    """Show the exact text and ids that student, teacher and critic read of a few rollouts."""
    settings = config.load(file, overrides or (), trust=trust)
    from rich.console import Console

    from stepalign.previewing import display

    with interruptible():
        previewed = stepalign.preview(settings, rollouts=rollouts, limit=limit, out=out)
    Console(highlight=False).print(display.render(previewed.rollouts, ids=ids))
    typer.echo(f"a step on these rollouts: {previewed.counts}" + (f"\n{out}" if out else ""))


@app.command()
def preflight(
    file: RecipeFile,
    overrides: Overrides = None,
    limit: Annotated[
        int | None, typer.Option(min=4, help="Training problems. Default: preflight.num_problems.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for attempts, measures and the page.")] = Path("preflight"),
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    trust: TrustOption = False,
) -> None:
    """Measure whether a recipe can work, before it is run. A gate that fails exits with 1. Resumes."""
    settings = config.load(file, overrides or (), trust=trust)
    with resumable(out):
        measured = stepalign.preflight(settings, out, limit=limit)
    from stepalign.gates import page

    typer.echo(f"{page.table(measured)}\n{out / 'preflight.html'}")
    if show:
        typer.launch(str(out / "preflight.html"))
    raise typer.Exit(int(measured.verdict == "fail"))


@app.command()
def plan(
    file: RecipeFile,
    overrides: Overrides = None,
    hardware: Annotated[str | None, typer.Option(help="h100, h200, a100, l40s or rtx4090. Default: no hours.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Number of GPUs that train and sample.")] = 1,
    from_run: Annotated[Path | None, typer.Option(help="Folder of an earlier run whose text lengths are used.")] = None,
    completion_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of one completion.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of one device for one hour.")] = None,
    selection: Annotated[bool, typer.Option("--select", help="Plan `stepalign select` instead of training.")] = False,
    trust: TrustOption = False,
) -> None:
    """Estimate memory, tokens, operations and hours of a run. No weights are loaded."""
    settings = config.load(file, overrides or (), trust=trust)
    from rich.console import Console

    from stepalign.planning.display import table

    with interruptible():
        estimated = stepalign.plan(
            settings,
            hardware=hardware,
            devices=devices,
            from_run=from_run,
            completion_tokens=completion_tokens,
            select=selection,
        )
    Console(highlight=False, soft_wrap=True).print(table(settings, estimated, price=price))
