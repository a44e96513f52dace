"""The command line: reads arguments, calls a room, prints an error's message and nothing else of it."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepalign import __version__, config
from stepalign.errors import StepalignError

if TYPE_CHECKING:
    from stepalign.critics.stats import Prices

app = typer.Typer(
    help="Post-train reasoning models from feedback whose structure you design.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe (TOML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values laid over it, like optimizer.lr=1e-5.", show_default=False)
]
ProblemsFile = Annotated[Path | None, typer.Option(help="The problems (JSONL) that the rollouts belong to.")]
PriceOption = Annotated[
    tuple[float, float] | None, typer.Option(help="What a million tokens cost: read, written.", show_default=False)
]
AdapterFolder = Annotated[Path | None, typer.Option(help="A PEFT adapter's folder; without it the base is used.")]


@app.command()
def train(
    file: RecipeFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False,
) -> None:
    """Train a solver, or go on with a run that was stopped, and write its report."""
    settings = config.load(file, overrides or ())
    if dry_run:
        typer.echo(config.dump(settings), nl=False)
        return
    try:
        from stepalign.trainer.loop import train as train_run

        report = train_run(settings)
    except KeyboardInterrupt:
        if _leads():
            typer.echo(f"\nstopped; the same command goes on from {settings.folder}", err=True)
        raise typer.Exit(130) from None
    if _leads():
        typer.echo(report)


@app.command()
def plan(
    file: RecipeFile,
    overrides: Overrides = None,
    hardware: Annotated[str, typer.Option(help="this (measured), h100, h200, a100, l40s or rtx4090.")] = "this",
    devices: Annotated[int, typer.Option(min=1, help="How many train and sample.")] = 1,
    like: Annotated[Path | None, typer.Option(help="An earlier run's folder, for lengths of texts.")] = None,
    completion: Annotated[int | None, typer.Option(min=1, help="Tokens of a completion; the cap without it.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device for an hour.", show_default=False)] = None,
) -> None:
    """Say what a run will take: memory, tokens, operations, hours. Nothing is loaded but tokenizer and problems."""
    settings = config.load(file, overrides or ())
    from rich.console import Console

    from stepalign import planning

    options = {"hardware": hardware, "devices": devices, "like": like, "completion": completion, "price": price}
    Console(highlight=False, soft_wrap=True).print(planning.write(settings, **options))  # type: ignore[arg-type]


@app.command()
def evaluate(
    file: RecipeFile,
    overrides: Overrides = None,
    adapter: AdapterFolder = None,
    out: Annotated[Path, typer.Option(help="Where the evaluation goes (JSON).")] = Path("evaluation.json"),
) -> None:
    """Judge an adapter, or the base, on a recipe's evaluation problems."""
    settings = config.load(file, overrides or ())
    from stepalign import api as stages

    evaluation = stages.evaluate(settings, out, adapter=adapter)
    for name, measure in evaluation.measures.items():
        typer.echo(f"{name:<10} {measure.value:8.3f}   [{measure.low:.3f}, {measure.high:.3f}]")


@app.command()
def sample(
    file: RecipeFile,
    overrides: Overrides = None,
    adapter: AdapterFolder = None,
    samples: Annotated[int, typer.Option(min=1, help="Rollouts a problem.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the rollouts go (JSONL).")] = Path("rollouts.jsonl"),
) -> None:
    """Draw and grade rollouts of a recipe's training problems."""
    settings = config.load(file, overrides or ())
    from stepalign import api as stages

    rollouts = stages.sample(settings, out, adapter=adapter, samples=samples)
    typer.echo(f"{out}: {len(rollouts)} rollouts, {sum(rollout.correct for rollout in rollouts)} correct")


@app.command()
def critique(
    file: RecipeFile,
    rollouts: Annotated[Path, typer.Argument(help="Graded rollouts (JSONL).")],
    overrides: Overrides = None,
    problems: ProblemsFile = None,
    check: Annotated[Path | None, typer.Option(help="Only check this file of critiques; no critic is asked.")] = None,
    prices: PriceOption = None,
    out: Annotated[Path, typer.Option(help="Where the critiques go (JSONL).")] = Path("critiques.jsonl"),
) -> None:
    """Have a recipe's critic answer a file of rollouts, and say how faithful it was. A second start goes on."""
    settings = config.load(file, overrides or ())
    from stepalign import api
    from stepalign.critics import stats

    if check is not None:
        report = stats.summarize(api.check_critiques(settings, rollouts, check, problems_file=problems))
        typer.echo(stats.table(report))
        raise typer.Exit(int(not report.is_sound))
    results = api.critique(settings, rollouts, out, problems_file=problems, prices=_prices(prices))
    typer.echo(stats.table(stats.summarize(results, _prices(prices))))
    typer.echo(f"\n{out}, {api.report_path(out)}")


@app.command()
def critic_bench(
    file: RecipeFile,
    folder: Annotated[Path, typer.Argument(help="A folder of planted slips (`stepalign plant`).")],
    overrides: Overrides = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many slips and natural solutions, no more.")] = None,
    prices: PriceOption = None,
    out: Annotated[Path, typer.Option(help="The folder of answers and figures.")] = Path("critic-bench"),
) -> None:
    """Measure how often a recipe's critic finds the first wrong step, and how faithfully it copies."""
    settings = config.load(file, overrides or ())
    from stepalign import api
    from stepalign.evaluation import critic_benchmark

    benchmark = api.critic_bench(settings, folder, out, limit=limit, prices=_prices(prices))
    typer.echo(critic_benchmark.table(benchmark))


@app.command()
def probe(
    file: RecipeFile,
    overrides: Overrides = None,
    rollouts: Annotated[
        Path | None,
        typer.Option(
            help="Rollouts (JSONL), or a folder of them with problems, critiques, slips or marks; else they are drawn.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(help="A context design, by name or file; again for more.", show_default=False)
    ] = None,
    adapter: AdapterFolder = None,
    top: Annotated[int, typer.Option(min=0, help="Keep so many of the likeliest tokens in each place.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at the first so many rollouts only.")] = None,
    out: Annotated[Path, typer.Option(help="The probe's folder.")] = Path("probe"),
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """See where each context's signal lands, token by token, before training; goes on where it was stopped."""
    settings = config.load(file, overrides or ())
    try:
        from stepalign.probing.run import probe as look

        found = look(settings, out, rollouts=rollouts, contexts=context or (), adapter=adapter, top=top, limit=limit)
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; the same command goes on from {out}", err=True)
        raise typer.Exit(130) from None
    from stepalign.probing.display import table

    typer.echo(f"{table(found.measures)}\n{out / 'probe.html'}")
    if show:
        typer.launch(str(out / "probe.html"))


@app.command()
def plant(
    source: Annotated[str, typer.Argument(help="Model solutions, rollouts or problems (JSONL), or gsm_symbolic.")],
    model: Annotated[str, typer.Option(help="The solver whose tokenizer is used: a folder or a name on the hub.")],
    problems: ProblemsFile = None,
    prompt: Annotated[str, typer.Option(help="The solver's template: shipped or a file.")] = "solver",
    limit: Annotated[int | None, typer.Option(min=1, help="Plant at most this many slips.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    kind: Annotated[
        list[str] | None, typer.Option(help="arithmetic, sign, 'copied number' or 'dropped term'; all without it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of the slips, rollouts and critiques.")] = Path("planted"),
) -> None:
    """Put one slip into each of a set of correct solutions: where they go wrong is then known exactly."""
    from stepalign.error_injection import sets

    planted = sets.plant_set(
        source,
        out,
        model=config.ModelConfig(name_or_path=model),
        prompts=config.PromptsConfig(solver=prompt),
        problems_file=problems,
        limit=limit,
        seed=seed,
        kinds=sets.kinds_of(kind or ()),
    )
    typer.echo(f"{out}: {len(planted.slips)} slips; not planted: {dict(planted.not_planted)}")


@app.command()
def select(
    file: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The folder of the selection.")] = Path("selection"),
) -> None:
    """Keep the problems that the solver finds hard but writes well (the paper's filter)."""
    settings = config.load(file, overrides or ())
    from stepalign import api as stages

    typer.echo(stages.select(settings, out))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="One run's folder, or several to compare.")],
    out: Annotated[Path, typer.Option(help="Where a comparison goes.")] = Path("comparison.html"),
) -> None:
    """Write a run's report again, or one page that compares several runs."""
    from stepalign import report as reports

    typer.echo(reports.write(folders[0]) if len(folders) == 1 else reports.write_comparison(folders, out))


@app.command()
def lab(
    conditions: Annotated[
        list[str] | None,
        typer.Option("--condition", help="A condition, by its recipe's name; may be given again.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each condition.")] = 1,
    out: Annotated[Path, typer.Option(help="The folder of the runs and of their comparison.")] = Path("runs/lab"),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, one core each.")] = 1,
) -> None:
    """Compare feedback designs on a laptop: a solver and a task that ship with the package."""
    from stepalign.lab import comparing, running

    folders = running.run(conditions or running.DEFAULT, seeds=seeds, out=out, jobs=jobs, overrides=overrides or ())
    typer.echo(comparing.write(folders, out))


@app.command()
def version() -> None:
    """Print the release."""
    typer.echo(__version__)


def _leads() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _prices(prices: tuple[float, float] | None) -> "Prices | None":
    from stepalign.critics.stats import Prices

    return None if prices is None else Prices(prompt=prices[0], completion=prices[1])


def main() -> None:
    """Run the command line. Bad input exits with 2, an interrupt with 130."""
    try:
        app()
    except StepalignError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
