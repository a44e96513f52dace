"""Each stage of the pipeline by itself, on a recipe and files: what the command line runs.

A stage reads and writes the same records as the loop does, so that rollouts of one run can be critiqued, scored or
looked at without training anything.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from accelerate import Accelerator
from torch.nn import Module

from stepalign import config, models
from stepalign import data as problems
from stepalign.chat import Chat, load_chat
from stepalign.console import Console
from stepalign.data import selection
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation
from stepalign.evaluation.run import evaluate_policy
from stepalign.io import to_json, write_atomically, write_jsonl
from stepalign.policy import ADAPTER
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem, Rollout
from stepalign.rewards.math import Grader
from stepalign.rollouts import AdapterVersion, Engine
from stepalign.rollouts import build as samplers
from stepalign.rollouts.generate import Solver
from stepalign.rollouts.transformers import TransformersSampler
from stepalign.seeding import derive_seed


def sample(settings: config.Recipe, out: Path, *, adapter: Path | None = None, samples: int = 1) -> list[Rollout]:
    """Draw and grade `samples` rollouts for every training problem of a recipe, and write them to `out`."""
    train_problems, _, _ = problems.prepare(settings.problems)
    with (
        solver(settings, adapter) as solve,
        Console() as console,
        console.stage("sample", len(train_problems) * samples) as advance,
    ):
        rollouts = solve.attempt(
            train_problems,
            samples,
            settings.sampling,
            adapter=ADAPTER if adapter else None,
            policy_step=0,
            seed=derive_seed(settings.seed, "rollouts", 0),
            prefix="sample",
            done=lambda _: advance(1),
        )
    write_jsonl(out, rollouts)
    return rollouts


def evaluate(settings: config.Recipe, out: Path, *, adapter: Path | None = None) -> Evaluation:
    """Judge an adapter (None: the base) on a recipe's evaluation problems.

    Writes the evaluation to `out` and the rollouts behind it to `STEM-rollouts.jsonl` beside it.
    """
    _, evaluation_problems, _ = problems.prepare(settings.problems)
    if not evaluation_problems:
        raise StepalignError("problems.holdout = 0 and no problems.evaluation: there is nothing to evaluate on")
    with solver(settings, adapter) as solve, Console() as console:
        evaluation, rollouts = evaluate_policy(
            solve,
            evaluation_problems,
            settings.evaluation,
            console,
            adapter=ADAPTER if adapter else None,
            seed=settings.seed,
            step=0,
        )
    write_jsonl(out.with_name(f"{out.stem}-rollouts.jsonl"), rollouts)
    write_atomically(out, to_json(evaluation) + "\n")
    return evaluation


def select(settings: config.Recipe, out: Path) -> Path:
    """Keep the training problems that the base solver finds hard but writes well (the paper's filter).

    Writes `train.jsonl`, `evaluation.jsonl` and `manifest.json` into the folder `out`, and goes on where a killed
    selection stopped. A recipe then trains on them with `source = "file"`.
    """
    loaded = problems.load(settings.problems.train)
    seed = derive_seed(settings.seed, "selection")
    fingerprint = {
        "seed": settings.seed,
        **{
            name: getattr(settings, name).model_dump(mode="json") for name in ("model", "prompts", "sampling", "grader")
        },
    }
    with (
        solver(settings, None) as solve,
        Console() as console,
        console.stage("select", len(loaded.problems), "problems") as advance,
    ):

        def attempt(batch: Sequence[Problem]) -> Iterable[Rollout]:
            return solve.attempt(
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
            fingerprint=fingerprint,
            progress=progress,
        )
    return out


@contextmanager
def solver(settings: config.Recipe, adapter: Path | None) -> Iterator[Solver]:
    """The recipe's solver with any PEFT adapter, or with none."""
    chat = load_chat(settings.model)
    device = Accelerator().device
    dtype = models.resolve_dtype(settings.model.dtype, device)

    def model() -> Module:
        trained: Module = models.load_model(settings.model, adapter, device)
        return trained

    with ExitStack() as stack:
        sampler = samplers.make(settings, model, dtype, eos_ids=chat.eos_ids)
        if isinstance(sampler, Engine):
            stack.callback(sampler.close)
            if adapter is not None:
                sampler.load_adapter(AdapterVersion(name=f"{adapter.name}-{uuid4().hex[:8]}", number=1, folder=adapter))
        grader = stack.enter_context(Grader(settings.grader))
        yield Solver(chat, sampler, grader, SolverPrompt(settings.prompts))


@contextmanager
def solver_on(settings: config.Recipe, chat: Chat, model: Module) -> Iterator[Solver]:
    """The recipe's solver on a model that is there already, which is also what samples."""
    sampler = TransformersSampler(model, eos_ids=chat.eos_ids, batch_size=settings.sampler.max_num_seqs)
    with Grader(settings.grader) as grader:
        yield Solver(chat, sampler, grader, SolverPrompt(settings.prompts))
