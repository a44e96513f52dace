"""The Python API: the functions of the commands that sample, evaluate, select and critique.

Each reads and writes the records that training does, so that any stage runs alone on a file. `stepalign` itself exports
them beside the functions of the rooms (`stepalign.train`, `stepalign.probe`, …).

    stepalign.sample(stepalign.load_recipe("quickstart"), Path("rollouts.jsonl"), samples=4)
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from accelerate import Accelerator
from pydantic import PositiveInt

from stepalign import config, models, prompts
from stepalign.arguments import checked
from stepalign.chat import CHAT_TEMPLATE
from stepalign.config import benchmarks, machine, registry
from stepalign.console import Console
from stepalign.critics.files import ReplayCritic, read_attempts
from stepalign.critics.run import critique_attempts
from stepalign.critics.stats import Prices, summarize
from stepalign.critics.validation import ValidatedCritic
from stepalign.data import load, load_evaluation, prepare, selection
from stepalign.errors import StepalignError
from stepalign.evaluation.critic_benchmark import CriticBenchmark, PlantedTraces, score
from stepalign.evaluation.metrics import Evaluation
from stepalign.evaluation.run import evaluate_policy
from stepalign.io import file_path, kept_date, to_json, write_atomically, write_jsonl
from stepalign.objects import AnyRecipe, Objects, with_objects
from stepalign.policy import ADAPTER
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rollouts.generate import open_solver
from stepalign.rollouts.references import reference_text
from stepalign.rollouts.room import LONGER, drop_long
from stepalign.seeding import derive_seed
from stepalign.trainer.checkpoints import adapter_folder


@checked
def sample(
    recipe: AnyRecipe,
    out: Path | str | None = None,
    *,
    adapter: Path | str | None = None,
    samples: PositiveInt = 1,
    **objects: Unpack[Objects],
) -> list[Rollout]:
    """Sample and grade `samples` rollouts of every training problem of a recipe, and write them to `out`.

    An interrupt or an error writes the finished ones, not graded, to `STEM-partial.jsonl` beside it, and says so. With
    None nothing is written. For `objects` see `objects.Objects`.
    """
    settings, adapter = with_objects(recipe, **objects), adapter_folder(adapter)
    machine.check(settings, "model", "sampler", "grader", "problems")
    file = file_path(out) if out is not None else None
    train_problems, _, _ = prepare(settings.problems)
    finished: list[Rollout] = []
    with ExitStack() as stack:
        solver, console = stack.enter_context(open_solver(settings, adapter)), stack.enter_context(Console())
        train_problems = drop_long(settings, solver, train_problems, console)
        advance = stack.enter_context(console.stage("sample", len(train_problems) * samples))

        def keep(rollout: Rollout) -> None:
            finished.append(rollout)
            advance(1)

        try:
            rollouts = solver.generate_rollouts(
                train_problems,
                samples,
                settings.sampling,
                adapter=ADAPTER if adapter else None,
                policy_step=0,
                seed=derive_seed(settings.seed, "rollouts", 0),
                prefix="sample",
                on_rollout=keep,
            )
        except (KeyboardInterrupt, Exception) as error:
            if not finished or file is None:
                raise
            partial = _partial(file)
            write_jsonl(partial, finished)
            kept = f"{len(finished)} of {len(train_problems) * samples} rollouts, not graded, are in {partial}"
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(kept) from None
            if isinstance(error, StepalignError):
                raise StepalignError(f"{error}; {kept}") from error
            error.add_note(kept)
            raise
    if file is not None:
        write_jsonl(file, rollouts)
        _partial(file).unlink(missing_ok=True)
    return rollouts


@checked
def verify(recipe: AnyRecipe, **objects: Unpack[Objects]) -> list[Rollout]:
    """Grade the reference solutions of a recipe's problems as responses, and return those that are not correct.

    Such a problem would punish a right response. Problems without a reference solution are left out.
    """
    return [rollout for rollout in grade_references(recipe, **objects)[0] if not rollout.correct]


def grade_references(recipe: AnyRecipe, **objects: Unpack[Objects]) -> tuple[list[Rollout], int]:
    """Grade the reference solutions as `verify` does, and return them with the number of problems without one."""
    settings = with_objects(recipe, **objects)
    machine.check(settings, "grader", "problems")
    train, evaluation, _ = prepare(settings.problems)
    problems = {problem.id: problem for problem in (*train, *evaluation) if problem.solution}
    blank = Rollout(id="-", problem_id="-", completion_ids=(), token_starts=(), text="", finish="stop")
    texts = {name: reference_text(problem) for name, problem in problems.items()}
    rollouts = [replace(blank, id=name, problem_id=name, text=text, source="reference") for name, text in texts.items()]
    with registry.build(settings.grader) as grader:
        return list(grader.grade(rollouts, problems)), len(train) + len(evaluation) - len(problems)


@checked
def evaluate(
    recipe: AnyRecipe,
    out: Path | str | None = None,
    *,
    adapter: Path | str | None = None,
    benchmark: str | None = None,
    **objects: Unpack[Objects],
) -> Evaluation:
    """Evaluate an adapter (None: the base) on a recipe's evaluation problems.

    Args:
        recipe: the recipe, or its file.
        out: the evaluation's file; its rollouts are written to `STEM-rollouts.jsonl` beside it. None writes nothing.
        adapter: the folder of a PEFT adapter, or of a run, whose last checkpoint is taken.
        benchmark: a name of `config.benchmarks.BENCHMARKS`, whose problems, grader and sampling replace the recipe's.
        objects: problems, grader and critic in place of the recipe's (`objects.Objects`).

    Raises:
        StepalignError: the recipe has no evaluation problems, or `problems` are given that it would not evaluate on.
    """
    settings, adapter = with_objects(recipe, **objects), adapter_folder(adapter)
    if (
        objects.get("problems") is not None
        and objects.get("evaluation_problems") is None
        and settings.problems.evaluation
    ):
        raise StepalignError(
            "evaluate: `problems` are those of training, and the recipe evaluates on others: give `evaluation_problems`"
        )
    if benchmark is not None:
        settings = settings.replace(**{"problems.evaluation": None}).replace(**benchmarks.benchmark(benchmark).values())
    file = file_path(out) if out is not None else None
    # Without a hold-out the training problems, which may be many, are not read.
    source = settings.problems.evaluation
    machine.check(settings, "model", "sampler", "grader", f"problems.{'evaluation' if source else 'train'}")
    evaluation_problems = load_evaluation(source) if source else prepare(settings.problems)[1]
    if not evaluation_problems:
        raise StepalignError("problems.holdout = 0 and no problems.evaluation: there is nothing to evaluate on")
    with open_solver(settings, adapter) as solver, Console() as console:
        evaluation, _ = evaluate_policy(
            solver,
            drop_long(settings, solver, evaluation_problems, console, evaluation=True),
            settings.evaluation,
            console,
            adapter=ADAPTER if adapter else None,
            seed=settings.seed,
            step=0,
            out=file and file.with_name(f"{file.stem}-rollouts.jsonl"),
        )
    if file is not None:
        write_atomically(file, to_json(evaluation) + "\n")
    return evaluation


@checked
def select(recipe: AnyRecipe, out: Path | str, **objects: Unpack[Objects]) -> Path:
    """Select the training problems that the base solver rarely solves but writes in the format (the paper's filter).

    Writes `train.jsonl`, `evaluation.jsonl` and `manifest.json` into the folder `out`. A stopped selection resumes. A
    recipe trains on the selected problems with `source = "file"`. For `objects` see `objects.Objects`.
    """
    settings, out = with_objects(recipe, **objects), Path(out)
    machine.check(settings, "model", "sampler", "grader", "problems.train")
    kept = out / "settings.json"
    settings, date = models.with_precision(settings, kept, Accelerator().device), kept_date(kept)
    loaded = load(settings.problems.train)
    seed = derive_seed(settings.seed, "selection")
    with ExitStack() as stack:
        texts = stack.enter_context(prompts.recorded())
        solver, console = stack.enter_context(open_solver(settings, None, date)), stack.enter_context(Console())
        fitting = drop_long(settings, solver, loaded.problems, console)
        if lacking := len(loaded.problems) - len(fitting):
            loaded = replace(loaded, problems=tuple(fitting), dropped={**loaded.dropped, LONGER: lacking})
        advance = stack.enter_context(console.stage("select", len(fitting), "problems"))

        def attempt(batch: Sequence[Problem]) -> Iterable[Rollout]:
            return solver.generate_rollouts(
                batch,
                settings.selection.num_attempts,
                settings.sampling,
                adapter=None,
                policy_step=0,
                seed=seed,
                prefix="select",
            )

        finished = 0

        def progress(done: int, _: int) -> None:
            nonlocal finished
            advance(done - finished)
            finished = done

        selection.select(
            loaded,
            attempt,
            settings.selection,
            folder=out,
            holdout=settings.problems.holdout,
            seed=settings.problems.seed,
            batch=max(1, 4 * settings.sampler.max_num_seqs // settings.selection.num_attempts),
            fingerprint={
                "seed": settings.seed,
                "date": str(date),
                "words": {**prompts.digests({**texts, CHAT_TEMPLATE: str(solver.chat.tokenizer.chat_template)})},
                **settings.model_dump(mode="json", include={"model", "prompts", "sampling", "grader"}),
            },
            free=tuple(settings.runtime_keys()),
            progress=progress,
        )
    return out


@checked
def critique(
    recipe: AnyRecipe,
    rollouts: Path | str | Sequence[Rollout],
    out: Path | str,
    *,
    problems_file: Path | str | None = None,
    limit: PositiveInt | None = None,
    prices: Prices | None = None,
    **objects: Unpack[Objects],
) -> list[Critique | CritiqueFailure]:
    """Have a recipe's critic critique graded rollouts, and write a report beside the critiques.

    Results are appended to `out` as they come; a second start asks only for what is missing.

    Args:
        recipe: its `[critic]` is used, and its training problems where there is no `problems_file`.
        rollouts: graded rollouts, or their file (JSONL).
        out: the results (JSONL); the report is `STEM-report.json` beside it, and `STEM-settings.json` keeps what the
            results depend on.
        problems_file: the rollouts' problems (JSONL).
        limit: the number of rollouts, from the first. A second start may have a higher one.
        prices: of a million tokens; the report then has the cost.
        objects: critic, grader and problems in place of the recipe's (`objects.Objects`).

    Raises:
        StepalignError: `out` has results of other texts under the same ids, or by other settings.
    """
    settings, file = with_objects(recipe, **objects), file_path(out)
    machine.check(settings, "grader", "critic", *_own(settings), *(() if problems_file else ("problems",)))
    results = critique_attempts(settings, read_attempts(rollouts, problems_file or settings.problems, limit), file)
    write_atomically(report_path(file), to_json(summarize(results, prices)) + "\n")
    return results


@checked
def check_critiques(
    recipe: AnyRecipe,
    rollouts: Path | str | Sequence[Rollout],
    critiques: Path | str,
    *,
    problems_file: Path | str | None = None,
    limit: PositiveInt | None = None,
    **objects: Unpack[Objects],
) -> list[Critique | CritiqueFailure]:
    """Validate a file of critiques as the recipe would. No critic is asked, and nothing is written.

    With a `limit`, only those of the first rollouts.

    Returns:
        Each critique, repaired where the recipe says so, or the reason why no teacher may be shown it.
    """
    settings = with_objects(recipe, **objects)
    machine.check(settings, "grader", *(() if problems_file else ("problems",)))
    attempts = read_attempts(rollouts, problems_file or settings.problems, limit)
    table = settings.critic or config.ProgramCriticConfig()
    results = []
    with registry.build(settings.grader) as grader, Console() as console, console.stage("check", len(attempts)) as done:
        for result in ValidatedCritic(ReplayCritic(Path(critiques)), table, grader).critique(attempts):
            results.append(result)
            done(1)
    return results


@checked
def critic_bench(
    recipe: AnyRecipe,
    folder: Path | str,
    out: Path | str,
    *,
    limit: PositiveInt | None = None,
    prices: Prices | None = None,
    **objects: Unpack[Objects],
) -> CriticBenchmark:
    """Measure a recipe's `[critic]` on a folder that `stepalign plant` wrote.

    Writes the critic's results (`critiques.jsonl`, resumable) and `benchmark.json` into the folder `out`. With a
    `limit`, at most so many slips, their correct traces, and as many natural solutions are judged, evenly spaced.
    `prices` are of a million tokens. For `objects` see `objects.Objects`.

    Raises:
        StepalignError: `out` has results on other traces, or by other settings.
    """
    settings, out = with_objects(recipe, **objects), Path(out)
    machine.check(settings, "grader", "critic", *_own(settings))
    traces = PlantedTraces.read(Path(folder), limit)
    path = out / "critiques.jsonl"
    resumed, start = path.exists(), time.perf_counter()
    results = {result.rollout_id: result for result in critique_attempts(settings, traces.attempts, path)}
    found = score(
        traces,
        results,
        critic=settings.critic.kind if settings.critic else "",
        seconds=None if resumed else round(time.perf_counter() - start, 3),
        prices=prices,
    )
    write_atomically(out / "benchmark.json", to_json(found) + "\n")
    return found


def _own(settings: config.Recipe) -> tuple[str, ...]:
    """Return the tables of the solver where the critic needs it."""
    return ("model", "sampler") if settings.critic and settings.critic.needs_own_model else ()


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.stem}-partial.jsonl")


def report_path(critiques: Path) -> Path:
    """Return the path of the report on a file of critiques."""
    return critiques.with_name(f"{critiques.stem}-report.json")
