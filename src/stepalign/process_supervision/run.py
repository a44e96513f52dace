"""Step values of a file of rollouts; measures of a locator on a file of ProcessBench.

stepalign step-values recipes/process-bench/gsm8k.toml rollouts.jsonl --problems problems.jsonl
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Unpack

from pydantic import PositiveInt

from stepalign import models, prompts
from stepalign.arguments import checked
from stepalign.chat import load_chat
from stepalign.config import machine, registry
from stepalign.console import Console
from stepalign.critics.files import read_attempts
from stepalign.critics.own_model import own_model
from stepalign.critics.run import critique_attempts
from stepalign.data import load, processbench
from stepalign.io import claim, file_path, kept_date, sha256, to_json, write_atomically
from stepalign.objects import AnyRecipe, Objects, with_objects
from stepalign.policy import ADAPTER
from stepalign.process_supervision import benchmark, locators
from stepalign.process_supervision.step_values import sample_step_values, step_ends
from stepalign.process_supervision.traces import to_traces
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import StepValues
from stepalign.rollouts import sampling_limit
from stepalign.rollouts.generate import open_solver
from stepalign.trainer.checkpoints import adapter_folder


@checked
def step_values(
    recipe: AnyRecipe,
    rollouts: Path | str,
    out: Path | str,
    *,
    problems_file: Path | str | None = None,
    adapter: Path | str | None = None,
    num_rollouts: PositiveInt = 8,
    **objects: Unpack[Objects],
) -> list[StepValues]:
    """Value every step of graded rollouts by continuations from it (Math-Shepherd), with a recipe's solver.

    Values are appended to `out` (JSONL) as they come; a second start samples only what is missing.

    Args:
        recipe: its model, prompt, sampling and grader are used, and its training problems without `problems_file`.
        rollouts: graded rollouts (JSONL).
        out: the values; `STEM-settings.json` beside it keeps what they depend on.
        problems_file: the rollouts' problems (JSONL).
        adapter: the solver's; None is the base.
        num_rollouts: continuations of each step.
        objects: problems and grader in place of the recipe's (`objects.Objects`).
    """
    settings, rollouts, out = with_objects(recipe, **objects), Path(rollouts), file_path(out)
    adapter = adapter_folder(adapter)
    machine.check(settings, "model", "sampler", "grader", *(() if problems_file else ("problems",)))
    attempts = read_attempts(rollouts, problems_file or settings.problems)
    with prompts.recorded() as texts, registry.build(settings.grader):
        SolverPrompt(settings.prompts)
    kept = out.with_name(f"{out.stem}-settings.json")
    date = kept_date(kept)
    claim(
        kept,
        {
            **settings.model_dump(mode="json", include={"model", "prompts", "sampling", "grader", "seed"}),
            "adapter": adapter and str(adapter),
            "rollouts": sha256(rollouts),
            "problems": sha256(Path(problems_file)) if problems_file else settings.problems.model_dump(mode="json"),
            "words": prompts.digests(texts),
            "num_rollouts": num_rollouts,
            "date": str(date),
        },
        started=out.exists(),
        refusal="its values were sampled otherwise (choose another file with --out, or delete that one)",
        owns_folder=False,
    )
    with (
        open_solver(settings, adapter, date) as solver,
        Console() as console,
        console.stage("step values", len(attempts)) as advance,
    ):
        return sample_step_values(
            solver,
            attempts,
            {rollout.id: step_ends(rollout) for _, rollout in attempts},
            settings.sampling,
            out,
            num_rollouts=num_rollouts,
            seed=settings.seed,
            adapter=ADAPTER if adapter else None,
            context_limit=sampling_limit(settings.sampler, models.context_limit(settings.model)),
            advance=advance,
        )


@checked
def process_bench(
    recipe: AnyRecipe,
    file: Path | str,
    out: Path | str,
    *,
    limit: PositiveInt | None = None,
    **objects: Unpack[Objects],
) -> benchmark.ProcessBenchmark:
    """Measure a recipe's `[locator]` of the first wrong step on a ProcessBench file.

    Reference answers and solutions are those of the recipe's training problems with the same statements. Writes the
    traces, what the locator found (resumable) and `benchmark.json` into the folder `out`. With a `limit`, at most so
    many traces are taken, evenly spaced. For `objects` see `objects.Objects`.
    """
    settings, file, out = with_objects(recipe, **objects), Path(file), Path(out)
    machine.check(settings, "model", "critic", "locator", "problems.train")
    with prompts.recorded() as texts, registry.build(settings.grader):
        locators.check(settings.locator, settings)
        prompt = SolverPrompt(settings.prompts)
    solutions = list(processbench.read(file))
    date = kept_date(out / "settings.json")
    chat = load_chat(settings.model, prompt.before, date)
    traces = to_traces(solutions, load(settings.problems.train).problems, chat, prompt, limit=limit)
    keys = {"model", "prompts", "sampling", "grader", "critic", "context", "teacher", "locator", "problems", "seed"}
    claim(
        out / "settings.json",
        {
            **settings.model_dump(mode="json", include=keys),
            "file": sha256(file),
            "words": prompts.digests(texts),
            "limit": limit,
            "date": str(date),
        },
        started=any((out / name).exists() for name in locators.RESULTS),
        refusal="it holds another benchmark (choose another folder with --out, or delete that one)",
    )
    traces.write(out / "traces")
    with ExitStack() as stack:
        located = locators.locate(
            settings,
            traces=traces,
            out=out,
            critique=lambda attempts, path: critique_attempts(settings, attempts, path),
            own=own_model(settings, stack, date),
        )
    found = benchmark.score(traces, located, seed=settings.seed)
    write_atomically(out / "benchmark.json", to_json(found) + "\n")
    return found
