"""Math-Shepherd's step values (arXiv 2312.08935, Eq. 3 and 4): the share of continuations that reach the answer.

Continuations are sampled from the solver's prompt and the trace's own tokens up to the end of a step, and graded whole
against the reference answer. After the last step there is nothing to continue: its value is the rollout's grade. Left
out: a completer other than the solver, because any model can be the recipe's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stepalign import config
from stepalign.append_log import AppendLog
from stepalign.errors import StepalignError
from stepalign.io import remove_leftovers, write_jsonl
from stepalign.records import Problem, Rollout, StepValues, TokenIds
from stepalign.rollouts import Request
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed
from stepalign.trace import parse_rollout, step_spans

_ROLLOUTS_AT_A_TIME = 4

Ends = Mapping[str, Sequence[int]]
"""For each rollout the completion tokens before each step but the first: where continuations begin."""


def step_ends(rollout: Rollout) -> list[int]:
    """Return the tokens up to the end of each step but the last. A final answer is a step."""
    return [start for start, _ in step_spans(rollout, parse_rollout(rollout))[1:]]


def sample_step_values(
    solver: Solver,
    attempts: Sequence[tuple[Problem, Rollout]],
    ends: Ends,
    sampling: config.SamplingConfig,
    path: Path,
    *,
    num_rollouts: int,
    seed: int,
    adapter: str | None = None,
    context_limit: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[StepValues]:
    """Value every step of graded rollouts, and append the values to a file (JSONL). A second start goes on with it.

    Args:
        solver: continues and grades.
        attempts: graded rollouts with their problems.
        ends: where each rollout's continuations begin.
        sampling: the continuations' settings.
        path: the file.
        num_rollouts: continuations of each step.
        seed: each continuation's own is derived from it.
        adapter: the adapter in use; None is the base.
        context_limit: the most tokens of a prompt and its completion (`rollouts.sampling_limit`); None is no limit.
        advance: called with the number of further rollouts, those of the file first.

    Raises:
        StepalignError: the file is damaged, or has values of other rollouts or of another number of continuations; or
            the longest continuation does not fit into the model's context.
    """
    order = {rollout.id: None for _, rollout in attempts}
    remove_leftovers(path.parent, f".{path.name}.*.tmp")
    log, done = AppendLog(path, StepValues), {}
    for one in log.read():
        if one.rollout_id not in order or one.num_rollouts != num_rollouts:
            fault = f"{one.num_rollouts} continuations of rollout {one.rollout_id!r}, not among those asked for"
            raise StepalignError(f"{log.place}: {fault}: delete the file, or name another")
        done[one.rollout_id] = one
    log.truncate()
    advance(len(done))
    pending = [attempt for attempt in attempts if attempt[1].id not in done]
    if context_limit is not None:
        _check_room(solver, pending, ends, sampling, context_limit)
    for first in range(0, len(pending), _ROLLOUTS_AT_A_TIME):
        batch = pending[first : first + _ROLLOUTS_AT_A_TIME]
        found = _values(solver, batch, ends, sampling, num_rollouts=num_rollouts, seed=seed, adapter=adapter)
        log.append(*found)
        done |= {one.rollout_id: one for one in found}
        advance(len(found))
    values = [done[rollout_id] for rollout_id in order]
    write_jsonl(path, values)
    return values


def _check_room(
    solver: Solver,
    attempts: Sequence[tuple[Problem, Rollout]],
    ends: Ends,
    sampling: config.SamplingConfig,
    context_limit: int,
) -> None:
    """Raise a StepalignError, before anything is sampled, where a continuation exceeds the model's context."""
    for problem, rollout in attempts:
        begun = len(_prompt_ids(solver, problem, rollout, sampling)) + max(ends[rollout.id], default=0)
        if ends[rollout.id] and begun + sampling.max_new_tokens > context_limit:
            raise StepalignError(
                f"rollout {rollout.id}: {begun} tokens up to its last step and sampling.max_new_tokens = "
                f"{sampling.max_new_tokens} exceed the model's context of {context_limit} tokens"
            )


def _prompt_ids(solver: Solver, problem: Problem, rollout: Rollout, sampling: config.SamplingConfig) -> TokenIds:
    return rollout.prompt_ids or solver.prompt_ids(problem, thinking=sampling.enable_thinking)


def _values(
    solver: Solver,
    attempts: Sequence[tuple[Problem, Rollout]],
    ends: Ends,
    sampling: config.SamplingConfig,
    *,
    num_rollouts: int,
    seed: int,
    adapter: str | None,
) -> list[StepValues]:
    requests: dict[str, tuple[Request, Rollout, int, int]] = {}
    for problem, rollout in attempts:
        prompt = _prompt_ids(solver, problem, rollout, sampling)
        for step, end in enumerate(ends[rollout.id]):
            for number in range(num_rollouts):
                name = f"{rollout.id}/step-{step + 1}/{number}"
                request = Request(
                    id=name,
                    prompt_ids=(*prompt, *rollout.completion_ids[:end]),
                    seed=derive_seed(seed, "step values", rollout.id, step, number),
                )
                requests[name] = request, rollout, step, end
    written: list[Rollout] = []
    for completion in solver.sampler.sample([one[0] for one in requests.values()], sampling, adapter=adapter):
        _, rollout, _, end = requests[completion.id]
        ids = (*rollout.completion_ids[:end], *completion.ids)
        text, starts = solver.chat.decode(ids)
        written.append(
            replace(
                rollout,
                id=completion.id,
                completion_ids=ids,
                text=text,
                token_starts=starts,
                finish=completion.finish,
                grade=None,
                sampler_logprobs=None,
            )
        )
    problems = {problem.id: problem for problem, _ in attempts}
    reached = {rollout.id: [0] * len(ends[rollout.id]) for _, rollout in attempts}
    tokens = {rollout.id: [0, 0] for _, rollout in attempts}
    for graded in solver.grader.grade(written, problems):
        request, rollout, step, end = requests[graded.id]
        reached[rollout.id][step] += graded.correct
        tokens[rollout.id][0] += len(request.prompt_ids)
        tokens[rollout.id][1] += len(graded.completion_ids) - end
    return [
        StepValues(
            rollout_id=rollout.id,
            num_rollouts=num_rollouts,
            reached=(*reached[rollout.id], num_rollouts * rollout.correct),
            prompt_tokens=tokens[rollout.id][0],
            completion_tokens=tokens[rollout.id][1],
        )
        for _, rollout in attempts
    ]
