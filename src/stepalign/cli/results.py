"""Commands that give results away."""

from pathlib import Path
from typing import Annotated, Literal

import typer

import stepalign

app = typer.Typer()

Dtype = Literal["float32", "bfloat16", "float16"]

RunFolder = Annotated[Path, typer.Argument(help="Folder of a run.")]
Checkpoint = Annotated[int | None, typer.Option("--step", min=0, help="Checkpoint's step. Default: the last.")]
Base = Annotated[str | None, typer.Option(help="Base's name where others load it from. Default: the recipe's.")]
Merge = Annotated[bool, typer.Option("--merge", help="Merge the adapter into the base, and write a whole model.")]
Dataset = Annotated[bool, typer.Option("--dataset", help="Rollouts and critiques as a data set, and no weights.")]


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="New folder. Default: one within the run's.")] = None,
    step: Checkpoint = None,
    merge: Merge = False,
    base: Base = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Dtype of merged weights. Default: the base's.")] = None,
    dataset: Dataset = False,
) -> None:
    """Write a run's adapter with a model card, a merged model, or its rollouts and critiques, into a folder."""
    if dataset:
        from stepalign.exporting.dataset import WITHOUT_WEIGHTS, refuse_options

        refuse_options({"step": step, "merge": merge, "base": base, "dtype": dtype}, WITHOUT_WEIGHTS)
        out = out or run / "dataset"
        rows = stepalign.export_dataset(run, out)
        typer.echo(f"{out}: {', '.join(f'{count} rollouts of {split}' for split, count in rows.items())}")
        return
    exported = stepalign.export(run, out, step=step, merge=merge, base=base, dtype=dtype)
    typer.echo(f"{exported.folder}\nto serve it: {exported.serve}")
    if agreement := exported.agreement:
        typer.echo(
            f"merged and adapter, {agreement.tokens} tokens: in float32 logits differ by {agreement.difference:.1e} of "
            f"the largest; in {agreement.dtype} by {agreement.kl:.5f} nats a token"
        )


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, or one that `stepalign export` wrote.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hugging Face hub, owner/name.")],
    step: Checkpoint = None,
    merge: Merge = False,
    base: Base = None,
    dataset: Dataset = False,
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded, and stop.")] = False,
) -> None:
    """Upload a run's checkpoint, or its rollouts and critiques, to the Hugging Face hub."""
    pushed = stepalign.push(
        folder, repo, dataset=dataset, dry_run=dry_run, private=private, step=step, merge=merge, base=base
    )
    for name, size in pushed.files.items():
        typer.echo(f"{size:>14,}  {name}")
    typer.echo(pushed.url or f"nothing was uploaded: {pushed.kind} {repo}, {len(pushed.files)} files")
