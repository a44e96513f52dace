"""Checks before a run: templates that cannot be rendered, URLs, a critic that fails on everything.

Left out: a critic that does well on right solutions and badly on wrong ones. The share of failures in each step shows
it (`critic.max_failure_share`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from accelerate.tracking import get_available_trackers

from stepalign import config, contexts, python_objects
from stepalign.algorithms.teacher_context import TeacherContext
from stepalign.critics import llm, mending
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CriticResult, CritiqueFailure, Grade, Problem, Rollout
from stepalign.serving.endpoints import check_urls
from stepalign.trace import trace_format

NUM_TRIALS = 3


def check_recipe(recipe: config.Recipe) -> None:
    """Load and render every template of a recipe, and check its URLs. Nothing is sent, no weights are loaded.

    Raises:
        StepalignError: naming the template or the key.
    """
    SolverPrompt(recipe.prompts)
    probed = recipe.probe.contexts if recipe.probe else ()
    for design in (recipe.context.design, recipe.context.fallback_template, *probed):
        contexts.load(design)
    for key, function in recipe.marked("python"):
        python_objects.load(function, key)
    if recipe.algorithm.uses_teacher:
        TeacherContext.of(recipe)
    if isinstance(recipe.algorithm, config.RLTFFMConfig):
        contexts.load(recipe.algorithm.feedback_template)
    if isinstance(recipe.critic, config.LLMCriticConfig):
        llm.load_template(recipe.critic)
    mender = recipe.critic.mender if isinstance(recipe.critic, config.LocateMendCriticConfig) else None
    if isinstance(mender, config.SampledMenderConfig):
        mending.load_template(mender)
    for key, table in (("critic", recipe.critic), ("critic.mender", mender), ("sampler", recipe.sampler)):
        if isinstance(table, (config.OpenAICriticConfig, config.OpenAIMenderConfig, config.VllmServerConfig)):
            check_urls(f"{key}.base_url", table.base_url)
    path = recipe.model.chat_template_path
    if path is not None and not path.is_file():
        raise StepalignError(f"model.chat_template_path = {str(path)!r}: no such file")


def check_trackers(tracking: config.TrackingConfig) -> None:
    """Refuse a tracker that is not installed, which Accelerate would leave out.

    Raises:
        StepalignError: naming the tracker.
    """
    if missing := [name for name in tracking.report_to if name not in map(str, get_available_trackers())]:
        raise StepalignError(
            f"tracking.report_to: {missing[0]} is not installed: pip install {missing[0]}, or leave it out"
        )


def trial_attempts(problems: Sequence[Problem]) -> list[tuple[Problem, Rollout]]:
    """Return the first problems with their own solutions as attempts, which any critic should find correct."""
    return [(problem, _solved(problem, number)) for number, problem in enumerate(problems[:NUM_TRIALS])]


def check_trial(results: Iterable[CriticResult]) -> None:
    """Refuse a critic that failed on every attempt of the trial.

    Raises:
        StepalignError: with the reasons and an example.
    """
    results = list(results)
    failures = [result for result in results if isinstance(result, CritiqueFailure)]
    if failures and len(failures) == len(results):
        raise StepalignError(
            f"the critic failed on all {len(failures)} of its first attempts, which are right solutions "
            f"({count_reasons(failures)}). For example: {failures[0].detail or failures[0].reason}. Another critic or "
            "prompt? With critic.max_failure_share = 1 the run starts all the same"
        )


def count_reasons(failures: Iterable[CritiqueFailure]) -> str:
    """Count failures by reason, the most frequent first."""
    reasons = Counter(failure.reason for failure in failures)
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def _solved(problem: Problem, number: int) -> Rollout:
    form, text = trace_format(problem.trace_format), problem.solution
    if not form.parse(text).formatted:
        text = form.write(text, problem.answer) or (
            f"### Step 1: Solve the problem\n{text or problem.answer}\n\n### Final Answer:\n\\boxed{{{problem.answer}}}"
        )
    return Rollout(
        id=f"trial-{number}",
        problem_id=problem.id,
        completion_ids=(),
        token_starts=(),
        text=text,
        finish="stop",
        trace_format=problem.trace_format,
        grade=Grade(correct=True, outcome="correct", final_answer=problem.answer),
    )
