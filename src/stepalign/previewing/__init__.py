"""Previews: the exact text and ids of each model's view of a few rollouts, with the loss span marked.

    stepalign preview quickstart --out preview.html

Examples come from the algorithm's own `build_examples`, as in training. Rollouts are given, or sampled as those of a
run's first step by the base. Without a need for them no weights are loaded. Left out: the ids that a served critic
reads, because its server encodes the message; the replies of a critic, which `stepalign critique` keeps.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from accelerate import Accelerator
from pydantic import PositiveInt

from stepalign import config, data, models
from stepalign.algorithms.base import Algorithm, StepExamples
from stepalign.arguments import checked
from stepalign.chat import Chat, load_chat
from stepalign.config import machine, registry
from stepalign.console import Console
from stepalign.critics.llm import first_message, load_template
from stepalign.io import file_path
from stepalign.objects import AnyRecipe, Objects, with_objects
from stepalign.policy import Policy
from stepalign.previewing import display
from stepalign.previewing.views import RolloutPreview, ViewPreview, view_preview
from stepalign.probing import inputs
from stepalign.probing.folder import Probe
from stepalign.prompts.conversation import SolverPrompt, Turn
from stepalign.records import CriticResult, Critique, Problem, Rollout
from stepalign.report.display import count
from stepalign.rollouts import Completion, Request, sampling_limit
from stepalign.rollouts.generate import Solver
from stepalign.rollouts.room import with_room
from stepalign.rollouts.transformers import TransformersSampler
from stepalign.seeding import derive_seed
from stepalign.trainer.batches import batches, with_teacher_room
from stepalign.trainer.checks import check_recipe
from stepalign.trainer.step_rollouts import make_rollouts
from stepalign.views import TrainingExample, View

_PROBLEMS = 2
"""Problems of a step at least: some contexts show another problem's critique or solution."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The views of a few rollouts, and what a step on them counts."""

    rollouts: tuple[RolloutPreview, ...]
    outcomes: Mapping[str, int]
    """As in a step's line: `trained`, `dropped` …, over all rollouts that were built."""
    failures: Mapping[str, int]
    """Reasons for a missing critique or a missing example."""

    @property
    def counts(self) -> str:
        """Outcomes and failures as one line."""
        parts = [f"{number} {name}" for name, number in self.outcomes.items()]
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.failures.items())
        return ", ".join(parts) + (f" ({reasons})" if reasons else "")

    def __str__(self) -> str:
        return f"{count(len(self.rollouts), 'rollout')} shown; a step on these rollouts: {self.counts}"

    def _repr_html_(self) -> str:
        """Return the views for a notebook."""
        return display.html(self.rollouts, str(self))


class _LazySampler:
    """Sampler on the policy's weights, which are loaded with the first request."""

    def __init__(self, load: Callable[[], Policy], eos_ids: frozenset[int], batch_size: int) -> None:
        self._load, self._eos_ids, self._batch_size = load, eos_ids, batch_size

    def sample(
        self, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
    ) -> Iterator[Completion]:
        sampler = TransformersSampler(self._load().model, eos_ids=self._eos_ids, batch_size=self._batch_size)
        return sampler.sample(requests, sampling, adapter=adapter)


@checked
def preview(
    recipe: AnyRecipe,
    *,
    rollouts: Path | str | None = None,
    limit: PositiveInt = 2,
    out: Path | str | None = None,
    **objects: Unpack[Objects],
) -> Preview:
    """Show what each model reads of a few rollouts of a recipe, and write it as a page to `out`.

    Args:
        recipe: the recipe, or its file.
        rollouts: a file, or a folder as of `stepalign probe --rollouts`. None samples the first ones of a run's step 1.
        limit: the most rollouts to show. Whole groups are read or sampled.
        out: the page's path; None writes none.
        objects: problems, grader, critic and context in place of the recipe's (`objects.Objects`).

    Raises:
        StepalignError: the recipe or the rollouts cannot be used.
    """
    settings, page = with_objects(recipe, **objects), None if out is None else file_path(out)
    check_recipe(settings)
    machine.check(settings, "model", "problems", "grader", "critic", "teacher")
    prompt = SolverPrompt(settings.prompts)
    chat, context_limit = load_chat(settings.model, prompt.before), models.context_limit(settings.model)
    algorithm: Algorithm[Any] = registry.build(
        settings.algorithm, recipe=settings, chat=chat, prompt=prompt, context_limit=context_limit
    )
    train, evaluation, _ = data.prepare(settings.problems)

    @cache
    def load() -> Policy:
        policy = models.load_policy(settings.model, settings.adapter, settings.seed, Accelerator().device)
        algorithm.begin(policy)
        return policy.eval()

    sampler = _LazySampler(load, chat.eos_ids, settings.sampler.max_num_seqs)
    with registry.build(settings.grader) as grader, Console() as console, TemporaryDirectory() as folder:
        solver = Solver(chat, sampler, grader, prompt)
        if rollouts:
            given = _first_groups(inputs.read(Path(rollouts), lambda: [*train, *evaluation]), limit)
        else:
            train = with_room(train, settings.sampling, chat, prompt, sampling_limit(settings.sampler, context_limit))
            given = _sampled(settings, solver, algorithm, load, train, limit, console)
        critic = settings.critic if algorithm.needs_critique else None
        given = inputs.prepare(given, settings.model_copy(update={"critic": critic}), solver, console, Path(folder))
        attempts, problems = given.rollouts, {problem.id: problem for problem in given.problems}
        critiques = {result.rollout_id: result for result in given.critic_results}
        algorithm.check_problems(given.problems)
        second = _second_turns(settings, solver, algorithm, attempts, problems, critiques)
        step = algorithm.build_examples([*attempts, *second], problems, critiques)
    shown = tuple(
        RolloutPreview(
            problem=problems[rollout.problem_id],
            rollout=rollout,
            critique=critiques.get(rollout.id),
            views=(
                *_views(chat, step, rollout),
                *_critic_view(critic, chat, problems[rollout.problem_id], rollout, critiques.get(rollout.id)),
            ),
        )
        for rollout in attempts[:limit]
    )
    previewed = Preview(rollouts=shown, outcomes=+step.outcomes, failures=+Counter(step.failures))
    if page is not None:
        display.write(settings, previewed.rollouts, previewed.counts, page)
    return previewed


def _first_groups(given: Probe, limit: int) -> Probe:
    """Keep the whole groups of the first rollouts, because contexts and advantages depend on all of a group."""
    first = {rollout.problem_id for rollout in given.rollouts[:limit]}
    in_order = list(dict.fromkeys(rollout.problem_id for rollout in given.rollouts))
    kept = set(in_order[: max(_PROBLEMS, len(first))])
    rollouts = {rollout.id: rollout for rollout in given.rollouts if rollout.problem_id in kept}
    return replace(
        given,
        problems=tuple(problem for problem in given.problems if problem.id in kept),
        rollouts=tuple(rollouts.values()),
        critic_results=tuple(result for result in given.critic_results if result.rollout_id in rollouts),
        marks=tuple(mark for mark in given.marks if mark.rollout_id in rollouts),
    )


def _sampled(
    settings: config.Recipe,
    solver: Solver,
    algorithm: Algorithm[Any],
    load: Callable[[], Policy],
    train: Sequence[Problem],
    limit: int,
    console: Console,
) -> Probe:
    """Make the rollouts of the first problems of a run's step 1."""
    training = settings.training
    train = with_teacher_room(train, algorithm)
    batch = next(batches(train, training.rollouts_per_step // training.num_generations, settings.seed))
    batch = batch[: max(_PROBLEMS, -(-limit // training.num_generations))]
    with console.stage("sample", len(batch) * training.num_generations) as advance:
        made = make_rollouts(
            settings,
            solver,
            algorithm,
            load(),
            1,
            batch,
            on_rollout=lambda _: advance(1),
            grade=lambda some: solver.grader.grade(some, {problem.id: problem for problem in batch}),
        )
    return Probe(problems=tuple(batch), rollouts=tuple(made))


def _second_turns(
    settings: config.Recipe,
    solver: Solver,
    algorithm: Algorithm[Any],
    attempts: Sequence[Rollout],
    problems: Mapping[str, Problem],
    critiques: Mapping[str, CriticResult],
) -> list[Rollout]:
    prompts = algorithm.second_turn(attempts, problems, critiques)
    if not prompts:
        return []
    seed = derive_seed(settings.seed, "second turn", 1)
    return solver.second_turns(attempts, prompts, problems, settings.sampling, adapter=None, seed=seed)


def _views(chat: Chat, step: StepExamples[Any], rollout: Rollout) -> Iterator[ViewPreview]:
    """Yield the views of the examples that a rollout led to, each once."""
    for example in step.examples:
        if example.rollout_id == rollout.id or example.rollout_id.startswith(f"{rollout.id}/"):
            turn = example.rollout_id.removeprefix(rollout.id).removeprefix("/")
            for name, view in _views_of(example):
                yield view_preview(chat, f"{name} ({turn})" if turn else name, view)


def _views_of(example: TrainingExample) -> Iterator[tuple[str, View]]:
    for name, value in vars(example).items():
        if isinstance(value, View):
            yield name, value
        elif isinstance(value, tuple) and value and all(isinstance(one, View) for one in value):
            yield from ((f"{name.removesuffix('s')} {k}", one) for k, one in enumerate(value, start=1))


def _critic_view(
    critic: config.CriticConfig | None, chat: Chat, problem: Problem, rollout: Rollout, result: CriticResult | None
) -> Iterator[ViewPreview]:
    """Yield the first message to a critic that is a language model; ids where it is the solver's own model.

    A right answer that the program critiqued has none.
    """
    if not isinstance(critic, config.LLMCriticConfig):
        return
    is_composed = isinstance(result, Critique) and not result.prompt_tokens
    if rollout.correct and critic.right_answers == "program" and is_composed:
        return
    message = first_message(load_template(critic), problem, rollout)
    if isinstance(critic, config.SelfCriticConfig):
        ids = chat.prompt_ids([Turn("user", message)], thinking=critic.enable_thinking)
        yield view_preview(chat, "critic", View(prompt_ids=ids, completion_ids=(), loss_start=0, loss_stop=0))
    else:
        yield ViewPreview(name="critic", message=message)
