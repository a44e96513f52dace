"""Checks before a run: templates that cannot be rendered, URLs, a critic that fails on everything.

Left out: a critic that does well on right solutions and badly on wrong ones. The share of failures in each step shows
it (`critic.max_failure_share`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from stepalign import config, contexts, python_objects
from stepalign.algorithms.teacher_context import TeacherContext
from stepalign.critics import llm, mending, verdicts
from stepalign.critics.files import lacks_reply
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CriticResult, CritiqueFailure, Grade, Problem, Rollout
from stepalign.serving.endpoints import check_urls
from stepalign.trace import parse_rollout, trace_format

NUM_TRIALS = 3
_NO_REPLY = frozenset({"server", "timeout", "refused"})
"""Faults of a request without a reply."""


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
    served: dict[str, config.Table | None] = {"critic": recipe.critic, "sampler": recipe.sampler}
    if isinstance(recipe.critic, config.LocateMendCriticConfig):
        served["critic.mender"] = recipe.critic.mender
        _check_stages(recipe.critic)
    for key, table in served.items():
        if isinstance(table, (config.ServedModelConfig, config.VllmServerConfig)):
            check_urls(f"{key}.base_url", table.base_url)


def check_dtype(recipe: config.Recipe) -> None:
    """Refuse to train in float16, where small gradients are 0 without a loss scale, and there is none."""
    if recipe.model.dtype == "float16":
        raise StepalignError(
            "model.dtype = 'float16': training has no loss scale, so that small gradients would be 0; allowed: "
            "'bfloat16', 'float32' and 'auto'. Sampling, evaluation and probes take float16"
        )


def _check_stages(critic: config.LocateMendCriticConfig) -> None:
    """Load what mender and locators read, and check the locators' URLs."""
    if isinstance(critic.mender, config.SampledMenderConfig):
        mending.load_template(critic.mender)
    for locator in critic.locator.parts:
        if isinstance(locator, config.VerdictsConfig):
            verdicts.load_template(locator)
        if isinstance(locator, config.ServedVerdictsLocatorConfig):
            check_urls("critic.locator.base_url", locator.base_url)
        if isinstance(locator, config.CreditLocatorConfig):
            for design in locator.contexts:
                contexts.load(design)


def trial_attempts(problems: Sequence[Problem], *, cut: bool = False) -> list[tuple[Problem, Rollout]]:
    """Return the first problems with their own solutions as attempts, which any critic should find correct.

    Cut ones end before their last section: for critics whose model is not asked about right answers.
    """
    solved = [(problem, _solved(problem, number)) for number, problem in enumerate(problems[:NUM_TRIALS])]
    return [(problem, _cut(rollout)) for problem, rollout in solved] if cut else solved


def check_trial(results: Iterable[CriticResult]) -> None:
    """Refuse a critic that failed on every attempt of the trial.

    Raises:
        StepalignError: with the reasons and an example.
    """
    results = list(results)
    failures = failed(results)
    if failures and len(failures) == len(results):
        raise StepalignError(
            f"the critic failed on all {len(failures)} of its first attempts, which are reference solutions "
            f"({count_reasons(failures)}). For example: {failures[0].detail or failures[0].reason}. Another critic or "
            "prompt? With critic.max_failure_share = 1 the run starts all the same"
        )


def failed(results: Iterable[CriticResult]) -> list[CritiqueFailure]:
    """Return the failures, among them a mender's that got no reply at all, whatever the program made of it."""
    failures = []
    for result in results:
        if isinstance(result, CritiqueFailure):
            failures.append(result)
        elif lacks_reply(result, _NO_REPLY):
            reason = f"mender: {result.retried[-1]}"
            failures.append(CritiqueFailure(rollout_id=result.rollout_id, critic=result.critic, reason=reason))
    return failures


def count_reasons(failures: Iterable[CritiqueFailure]) -> str:
    """Count failures by reason, the most frequent first."""
    reasons = Counter(failure.reason for failure in failures)
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def _cut(rollout: Rollout) -> Rollout:
    sections = parse_rollout(rollout).sections
    end = sections[-1].start or len(rollout.text) // 2
    grade = Grade(correct=False, outcome="missing")
    return replace(rollout, text=rollout.text[:end], finish="length", grade=grade)


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
