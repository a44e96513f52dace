"""The command line: reads arguments, calls the Python function of the same name, prints its result."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import stepalign
from stepalign import config
from stepalign.cli import before, recipes, results
from stepalign.cli.options import (
    AdapterFolder,
    Overrides,
    PriceOption,
    ProblemsFile,
    RecipeFile,
    TrustOption,
    interruptible,
    is_main,
    resumable,
)
from stepalign.errors import StepalignError

if TYPE_CHECKING:
    from stepalign.critics.stats import Prices

app = typer.Typer(
    help="Post-train reasoning models from feedback whose structure you design.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(before.app)
app.add_typer(recipes.app)
app.add_typer(results.app)


@app.command()
def train(
    file: RecipeFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe, print it resolved and stop.")] = False,
    trust: TrustOption = False,
) -> None:
    """Train a solver, or resume a stopped run, and write the run's report."""
    settings = config.load(file, overrides or (), trust=trust)
    if dry_run:
        from stepalign.config import machine
        from stepalign.trainer import checks

        checks.check_recipe(settings)
        machine.check_files(settings, *machine.TRAINING)
        typer.echo(config.dump(settings), nl=False)
        try:
            machine.check_packages(settings, *machine.TRAINING)
        except StepalignError as error:  # the run may be meant for another machine
            typer.echo(f"warning: {error}", err=True)
        return
    with resumable(settings.folder):
        result = stepalign.train(settings)
    if is_main():
        typer.echo(result.folder / "report.html")


@app.command()
def quickstart(overrides: Overrides = None) -> None:
    """Train the solver that ships with the package, on a CPU in a minute or two. Nothing is downloaded."""
    train(Path("quickstart"), overrides)


@app.command()
def evaluate(
    file: RecipeFile,
    overrides: Overrides = None,
    adapter: AdapterFolder = None,
    benchmark: Annotated[str | None, typer.Option(help="gsm8k, math-500, aime24 … Default: the recipe's.")] = None,
    out: Annotated[Path, typer.Option(help="File for the evaluation (JSON).")] = Path("evaluation.json"),
    trust: TrustOption = False,
) -> None:
    """Evaluate an adapter, or the base model, on a recipe's evaluation problems or on a benchmark."""
    settings = config.load(file, overrides or (), trust=trust, benchmark=benchmark)
    with interruptible():
        evaluation = stepalign.evaluate(settings, out, adapter=adapter)
    if benchmark is not None:
        known = config.benchmarks.benchmark(benchmark)
        typer.echo(f"{benchmark}: {len(evaluation.problem_ids)} of {known.size} problems; {known.contamination}")
    typer.echo(f"{out}: {len(evaluation.problem_ids)} problems, {evaluation.n} samples each")
    for name, measure in evaluation.measures.items():
        typer.echo(f"{name:<10} {measure.value:8.3f}   [{measure.low:.3f}, {measure.high:.3f}]")


@app.command()
def compare(
    files: Annotated[list[Path], typer.Argument(help="Two or more: evaluations (JSON) or graded rollouts (JSONL).")],
) -> None:
    """Compare evaluations with the first one, problem by problem."""
    from stepalign.evaluation.metrics import read_evaluation
    from stepalign.report.comparison import evaluations_table

    if len(set(files)) < max(2, len(files)):
        raise StepalignError(f"compare needs two or more files, each once; it was given {', '.join(map(str, files))}")
    typer.echo(evaluations_table({str(file): read_evaluation(file) for file in files}).markdown())


@app.command()
def sample(
    file: RecipeFile,
    overrides: Overrides = None,
    adapter: AdapterFolder = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of rollouts of each problem.")] = 1,
    out: Annotated[Path, typer.Option(help="File for the rollouts (JSONL).")] = Path("rollouts.jsonl"),
    trust: TrustOption = False,
) -> None:
    """Sample and grade rollouts of a recipe's training problems."""
    with interruptible():
        rollouts = stepalign.sample(
            config.load(file, overrides or (), trust=trust), out, adapter=adapter, samples=samples
        )
    typer.echo(f"{out}: {len(rollouts)} rollouts, {sum(rollout.correct for rollout in rollouts)} correct")


@app.command()
def verify(file: RecipeFile, overrides: Overrides = None, trust: TrustOption = False) -> None:
    """Grade the reference solutions of a recipe's problems, and name those that are not correct."""
    from stepalign.api import grade_references

    with interruptible():
        graded, lacking = grade_references(config.load(file, overrides or (), trust=trust))
    wrong = [rollout for rollout in graded if not rollout.correct]
    lines = [f"{rollout.problem_id}: {rollout.grade.feedback if rollout.grade else ''}" for rollout in wrong]
    said = f"reference solutions: {len(graded)} verified, {len(wrong)} not correct; problems without one: {lacking}"
    typer.echo("\n".join((*lines, said)))


@app.command()
def critique(
    file: RecipeFile,
    rollouts: Annotated[Path, typer.Argument(help="Graded rollouts (JSONL).")],
    overrides: Overrides = None,
    problems: ProblemsFile = None,
    check: Annotated[Path | None, typer.Option(help="Check this file of critiques and ask no critic.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most rollouts to critique.")] = None,
    prices: PriceOption = None,
    out: Annotated[Path, typer.Option(help="File for the critiques (JSONL).")] = Path("critiques.jsonl"),
    trust: TrustOption = False,
) -> None:
    """Critique a file of rollouts with a recipe's critic, and report how faithful it is. Resumes a stopped file."""
    settings = config.load(file, overrides or (), trust=trust)
    from stepalign import api
    from stepalign.critics import stats

    if check is not None:
        checked = api.check_critiques(settings, rollouts, check, problems_file=problems, limit=limit)
        report = stats.summarize(checked, _prices(prices))
        typer.echo(stats.table(report))
        raise typer.Exit(int(not report.is_sound))
    with resumable(out):
        results = api.critique(settings, rollouts, out, problems_file=problems, limit=limit, prices=_prices(prices))
    typer.echo(stats.table(stats.summarize(results, _prices(prices))))
    typer.echo(f"\n{out}, {api.report_path(out)}")


@app.command()
def critic_bench(
    file: RecipeFile,
    traces: Annotated[Path, typer.Argument(help="Folder that `stepalign plant` wrote, or file of ProcessBench.")],
    overrides: Overrides = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most planted and most natural solutions, or traces.")
    ] = None,
    prices: PriceOption = None,
    out: Annotated[Path, typer.Option(help="Folder for answers and figures.")] = Path("critic-bench"),
    trust: TrustOption = False,
) -> None:
    """Measure how often a recipe's critic, or its locator on ProcessBench, finds the first wrong step."""
    settings = config.load(file, overrides or (), trust=trust)
    if traces.is_file():
        from stepalign.process_supervision import benchmark

        if prices is not None:
            raise StepalignError("--prices: the measures on a file of ProcessBench have no cost; leave it out")
        with resumable(out):
            typer.echo(benchmark.table(stepalign.process_bench(settings, traces, out, limit=limit)))
        return
    from stepalign.evaluation.critic_benchmark import table

    with resumable(out):
        typer.echo(table(stepalign.critic_bench(settings, traces, out, limit=limit, prices=_prices(prices))))


@app.command()
def step_values(
    file: RecipeFile,
    rollouts: Annotated[Path, typer.Argument(help="Graded rollouts (JSONL).")],
    overrides: Overrides = None,
    problems: ProblemsFile = None,
    adapter: AdapterFolder = None,
    num_rollouts: Annotated[int, typer.Option(min=1, help="Number of continuations of each step.")] = 8,
    out: Annotated[Path, typer.Option(help="File for the values (JSONL).")] = Path("step-values.jsonl"),
    trust: TrustOption = False,
) -> None:
    """Value each step by the share of continuations that reach the answer (Math-Shepherd). Resumes a stopped file."""
    settings = config.load(file, overrides or (), trust=trust)
    with resumable(out):
        values = stepalign.step_values(
            settings, rollouts, out, problems_file=problems, adapter=adapter, num_rollouts=num_rollouts
        )
    steps = [value for one in values for value in one.soft]
    typer.echo(f"{out}: {len(steps)} steps of {len(values)} rollouts, {sum(not step for step in steps)} of value 0")


@app.command()
def probe(
    file: RecipeFile,
    overrides: Overrides = None,
    rollouts: Annotated[Path | None, typer.Option(help="Rollouts (JSONL) or folder. Default: sampled.")] = None,
    context: Annotated[list[str] | None, typer.Option(help="Name or file of a context. May be repeated.")] = None,
    adapter: AdapterFolder = None,
    top: Annotated[int, typer.Option(min=0, help="Number of likeliest tokens kept at each position.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rollouts to probe, from the first; groups stay whole.")
    ] = None,
    contrast: Annotated[int, typer.Option(min=0, help="Most wrong contexts to contrast each context with.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the probe.")] = Path("probe"),
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    trust: TrustOption = False,
) -> None:
    """Measure the credit that each context gives to each token, before training. Resumes a stopped probe."""
    settings = config.load(file, overrides or (), trust=trust)
    with resumable(out):
        probed = stepalign.probe(
            settings,
            out,
            rollouts=rollouts,
            contexts=context or (),
            adapter=adapter,
            top=top,
            limit=limit,
            contrast=contrast,
        )
    from stepalign.probing.display import table

    typer.echo(f"{table(probed.measures)}\n{out / 'probe.html'}")
    if show:
        typer.launch(str(out / "probe.html"))


@app.command()
def plant(
    source: Annotated[str, typer.Argument(help="Solutions, rollouts or problems (JSONL), or gsm_symbolic.")],
    model: Annotated[str, typer.Option(help="Folder or hub name of the model whose tokenizer is used.")],
    problems: Annotated[Path | None, typer.Option(help="Problems (JSONL). Required for rollouts.")] = None,
    prompt: Annotated[str, typer.Option(help="Name or file of the solver's template.")] = "solver",
    limit: Annotated[int | None, typer.Option(min=1, help="Most errors to plant.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of errors.")] = 0,
    kind: Annotated[list[str] | None, typer.Option(help="arithmetic, sign, 'copied number' or 'dropped term'.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for slips, rollouts and critiques.")] = Path("planted"),
) -> None:
    """Plant one error into each of a set of correct solutions, so that its position is known exactly."""
    planted = stepalign.plant(
        source,
        out,
        model=config.ModelConfig(name_or_path=model),
        prompts=config.PromptsConfig(solver=prompt),
        problems_file=problems,
        limit=limit,
        seed=seed,
        kinds=kind or (),
    )
    typer.echo(f"{out}: {len(planted.slips)} slips; not planted: {dict(planted.not_planted)}")


@app.command()
def select(
    file: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for the selected problems.")] = Path("selection"),
    trust: TrustOption = False,
) -> None:
    """Select the problems that the solver rarely solves but writes in the format (the paper's filter)."""
    with resumable(out):
        typer.echo(stepalign.select(config.load(file, overrides or (), trust=trust), out))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folder of a run, or of several to compare.")],
    out: Annotated[Path, typer.Option(help="File for a comparison.")] = Path("comparison.html"),
) -> None:
    """Write a run's report again, or one page that compares several runs."""
    typer.echo(stepalign.write_report(folders, out))


@app.command()
def lab(
    conditions: Annotated[list[str] | None, typer.Option("--condition", help="A condition. May be repeated.")] = None,
    overrides: Overrides = None,
    related: Annotated[bool, typer.Option("--related", help="All related systems, beside other conditions.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs of each condition.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the runs and their comparison.")] = Path("runs/lab"),
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs at a time, one core each.")] = 1,
) -> None:
    """Compare feedback designs on a laptop, with the solver and the task that ship with the package."""
    from stepalign.lab import running

    chosen = [*(running.related() if related else ()), *(conditions or ())]
    with resumable(out):
        typer.echo(stepalign.run_lab(chosen, seeds=seeds, out=out, jobs=jobs, overrides=overrides or ()))


@app.command()
def version() -> None:
    """Print the release."""
    typer.echo(stepalign.__version__)


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
