from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import stepalign
from stepalign.config import PromptsConfig, Recipe, SamplingConfig
from stepalign.errors import StepalignError
from stepalign.io import write_jsonl
from stepalign.process_supervision.step_values import sample_step_values
from stepalign.process_supervision.traces import LabelledTraces
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem, Rollout, StepValues
from stepalign.rewards import FunctionGrader
from stepalign.rollouts.generate import Solver, open_solver

SAMPLING = SamplingConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def solver(recipe_in: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Solver]:
    with open_solver(recipe_in(tmp_path_factory.mktemp("solver")), None) as opened:
        yield opened


def graded_by(solver: Solver, grade: Callable[[Problem, Rollout], bool]) -> Solver:
    return Solver(solver.chat, solver.sampler, FunctionGrader(grade), SolverPrompt(PromptsConfig()))


def sample(
    solver: Solver, traces: LabelledTraces, path: Path, num_rollouts: int = 3, context_limit: int | None = None
) -> list[StepValues]:
    return sample_step_values(
        solver,
        [(trace.problem, trace.rollout) for trace in traces.with_answer],
        {trace.rollout.id: [first for first, _ in trace.token_spans[1:]] for trace in traces.with_answer},
        SAMPLING,
        path,
        num_rollouts=num_rollouts,
        seed=0,
        context_limit=context_limit,
    )


def test_continuations_go_on_from_the_traces_own_tokens(solver: Solver, traces: LabelledTraces, tmp_path: Path) -> None:
    written: list[Rollout] = []

    def grade(_: Problem, rollout: Rollout) -> bool:
        written.append(rollout)
        return "/step-1/" in rollout.id

    values = sample(graded_by(solver, grade), traces, tmp_path / "values.jsonl")
    by_id = {trace.rollout.id: trace for trace in traces.with_answer}
    for rollout in written:
        name, step, _ = rollout.id.rsplit("/", 2)
        trace = by_id[name]
        end = trace.token_spans[int(step.removeprefix("step-"))][0]
        assert rollout.completion_ids[:end] == trace.rollout.completion_ids[:end]
        assert end < len(rollout.completion_ids) <= end + SAMPLING.max_new_tokens
        assert rollout.text.startswith(trace.rollout.text[: trace.spans[0][1]])
    assert len({rollout.completion_ids for rollout in written}) > len(written) / 2
    for one in values:
        trace = by_id[one.rollout_id]
        # Every continuation of step 1 was graded right, none of step 2; the last step has the trace's own grade.
        assert one.reached == (3, *[0] * (len(trace.spans) - 2), 3 * trace.rollout.correct)
        assert one.soft[0] == one.hard[0] == 1
        assert one.completion_tokens > 0


def test_a_stopped_file_goes_on_to_the_same_values(solver: Solver, traces: LabelledTraces, tmp_path: Path) -> None:
    by_length = graded_by(solver, lambda _, rollout: len(rollout.text) % 2 == 0)
    whole = sample(by_length, traces, tmp_path / "whole.jsonl")
    assert 0 < sum(sum(one.reached[:-1]) for one in whole) < 3 * sum(len(one.reached) - 1 for one in whole)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    assert sample(by_length, traces, cut) == whole
    assert cut.read_bytes() == b"".join(lines)


def test_values_of_something_else_are_refused(solver: Solver, traces: LabelledTraces, tmp_path: Path) -> None:
    by_length = graded_by(solver, lambda _, rollout: True)
    path = tmp_path / "values.jsonl"
    sample(by_length, traces, path)
    with pytest.raises(StepalignError, match=r"values\.jsonl, line 1: 3 continuations of rollout '17-right'"):
        sample(by_length, traces, path, num_rollouts=2)
    with pytest.raises(StepalignError, match="not among those asked for"):
        sample(by_length, replace(traces, traces=traces.traces[2:]), path)


def test_a_continuation_that_does_not_fit_is_refused_before_any_is_sampled(
    solver: Solver, traces: LabelledTraces, tmp_path: Path
) -> None:
    begun = {trace.rollout.id: len(trace.rollout.prompt_ids) + trace.token_spans[-1][0] for trace in traces.with_answer}
    longest = max(begun, key=begun.__getitem__)
    path, limit = tmp_path / "values.jsonl", begun[longest] + SAMPLING.max_new_tokens
    with pytest.raises(StepalignError, match=rf"rollout {longest}: {begun[longest]} tokens .* context of {limit - 1} "):
        sample(solver, traces, path, context_limit=limit - 1)
    assert not path.exists()
    assert sample(solver, traces, path, num_rollouts=1, context_limit=limit)


def test_values_of_other_problems_words_or_graders_are_refused(
    make_recipe: Callable[..., Recipe], traces: LabelledTraces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, problems, rollouts = (tmp_path / name for name in ("solver.txt", "problems.jsonl", "rollouts.jsonl"))
    template.write_text("Solve: {{ problem }}")
    trace = traces.with_answer[0]
    write_jsonl(problems, [trace.problem])
    write_jsonl(rollouts, [trace.rollout])
    recipe = make_recipe(f"prompts.solver={template}", "sampling.max_new_tokens=2")

    def run(grader: Callable[[Problem, Rollout], bool]) -> object:
        return stepalign.step_values(
            recipe, rollouts, tmp_path / "out.jsonl", problems_file=problems, num_rollouts=1, grader=grader
        )

    assert run(never) == run(never)
    monkeypatch.setattr(always, "__qualname__", "never")
    with pytest.raises(StepalignError, match=r"words\.\S*never\.py: "):
        run(always)
    write_jsonl(problems, [replace(trace.problem, answer="9")])
    with pytest.raises(StepalignError, match="problems: "):
        run(never)
    write_jsonl(problems, [trace.problem])
    template.write_text("Solve this: {{ problem }}")
    with pytest.raises(StepalignError, match=r"words\.\S*solver\.txt: "):
        run(never)


def never(problem: Problem, rollout: Rollout) -> bool:
    return False


def always(problem: Problem, rollout: Rollout) -> bool:
    return True
