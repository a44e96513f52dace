"""Generation of rollouts: problems in, graded rollouts out; and the solver that a recipe names."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Literal
from uuid import uuid4

import torch
from accelerate import Accelerator

from stepalign import config, models
from stepalign.chat import Chat, load_chat
from stepalign.config import registry
from stepalign.distributed.process import SINGLE, World
from stepalign.manifest import read_manifest
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem, Rollout, RolloutSource, TokenIds
from stepalign.rewards import Grader
from stepalign.rollouts import AdapterVersion, Completion, RemoteSampler, Request, Sampler
from stepalign.rollouts.references import ReferenceSampler
from stepalign.rollouts.transformers import TransformersSampler
from stepalign.seeding import derive_seed
from stepalign.trace import response_start


class Solver:
    """Prompt, sampler and grader, in each of a run's processes."""

    def __init__(
        self, chat: Chat, sampler: Sampler, grader: Grader, prompt: SolverPrompt, world: World = SINGLE
    ) -> None:
        self.chat, self.sampler, self.grader, self.prompt, self.world = chat, sampler, grader, prompt, world

    def alone(self) -> "Solver":
        """Return this solver for the work of one process, in which the others have no part."""
        return Solver(self.chat, self.sampler, self.grader, self.prompt)

    def prompt_ids(self, problem: Problem, *, thinking: bool) -> TokenIds:
        """Encode the prompt for a problem."""
        return self.chat.prompt_ids(self.prompt.turns(problem), thinking=thinking)

    def generate_rollouts(
        self,
        problems: Sequence[Problem],
        num_samples: int,
        sampling: config.SamplingConfig,
        *,
        adapter: str | None,
        policy_step: int,
        seed: int,
        prefix: str,
        on_rollout: Callable[[Rollout], None] = lambda _: None,
        grade: Callable[[Sequence[Rollout]], list[Rollout]] | None = None,
        prompts: Mapping[str, TokenIds] | None = None,
        thinking: bool | None = None,
        sampler: Sampler | None = None,
        source: RolloutSource = "policy",
    ) -> list[Rollout]:
        """Sample and grade rollouts; each process does its share.

        Args:
            problems: may hold a problem more than once; its samples are then numbered on.
            num_samples: rollouts for each entry.
            sampling: the decoding's settings, and the thinking switch of the prompt.
            adapter: the adapter in use, of `policy_step`; None is the base.
            policy_step: for the record.
            seed: each rollout's own is derived from it.
            prefix: the beginning of the rollouts' ids.
            on_rollout: called with each rollout of this process when it ends, before it is graded.
            grade: grades the rollouts of this process; None uses the solver's grader.
            prompts: prompt ids by problem id; None is the solver's own.
            thinking: the thinking switch of the prompts; None is that of `sampling`.
            sampler: None is the solver's own.
            source: for the record.

        Returns:
            The rollouts of all processes in the order of `problems`, samples of one problem side by side.
        """
        by_id = {problem.id: problem for problem in problems}
        thinking = sampling.enable_thinking if thinking is None else thinking
        if prompts is None:
            prompts = {name: self.prompt_ids(problem, thinking=thinking) for name, problem in by_id.items()}
        opened = self._opened(by_id if source != "reference" else {}, thinking)
        places = rollout_ids(problems, num_samples, prefix)
        requests = {
            rollout_id: Request(id=rollout_id, prompt_ids=prompts[name], seed=derive_seed(seed, name, number))
            for rollout_id, (name, number) in places.items()
        }
        sample = (sampler or self.sampler).sample

        def rollout_of(completion: Completion) -> Rollout:
            name, number = places[completion.id]
            request = requests[completion.id]
            return self._rollout(request, completion, by_id[name], number, policy_step, name in opened, source=source)

        return self._graded(
            requests, lambda mine: sample(mine, sampling, adapter=adapter), rollout_of, by_id, on_rollout, grade
        )

    def reference_rollouts(
        self,
        problems: Sequence[Problem],
        sampling: config.SamplingConfig,
        *,
        policy_step: int,
        prefix: str,
        on_rollout: Callable[[Rollout], None] = lambda _: None,
        grade: Callable[[Sequence[Rollout]], list[Rollout]] | None = None,
    ) -> list[Rollout]:
        """Return each problem's reference solution as a rollout, in the solver's format; see `generate_rollouts`.

        Raises:
            StepalignError: a problem has no solution that can be written in the format.
        """
        by_id = {problem.id: problem for problem in problems}
        places = {rollout_id: by_id[name] for rollout_id, (name, _) in rollout_ids(problems, 1, prefix).items()}
        return self.generate_rollouts(
            problems,
            1,
            sampling,
            adapter=None,
            policy_step=policy_step,
            seed=0,
            prefix=prefix,
            on_rollout=on_rollout,
            grade=grade,
            sampler=ReferenceSampler(self.chat, places),
            source="reference",
        )

    def second_turns(
        self,
        first: Sequence[Rollout],
        prompts: Mapping[str, TokenIds],
        problems: Mapping[str, Problem],
        sampling: config.SamplingConfig,
        *,
        adapter: str | None,
        seed: int,
    ) -> list[Rollout]:
        """Sample and grade a second completion for first rollouts, each from a prompt of its own.

        Args:
            first: the first turns, in every process.
            prompts: by the first rollout's id; the others have no second turn.
            problems: by id.
            sampling: the decoding's settings.
            adapter: the adapter in use; None is the base.
            seed: each rollout's own is derived from it.
        """
        firsts = {f"{rollout.id}/second": rollout for rollout in first if rollout.id in prompts}
        requests = {
            rollout_id: Request(
                id=rollout_id,
                prompt_ids=prompts[rollout.id],
                seed=derive_seed(seed, rollout.problem_id, rollout.sample),
            )
            for rollout_id, rollout in firsts.items()
        }

        opened = self._opened(problems, sampling.enable_thinking)

        def rollout_of(completion: Completion) -> Rollout:
            of, request = firsts[completion.id], requests[completion.id]
            in_thought = of.problem_id in opened
            problem = problems[of.problem_id]
            return self._rollout(request, completion, problem, of.sample, of.policy_step, in_thought, turn=2)

        return self._graded(
            requests, lambda mine: self.sampler.sample(mine, sampling, adapter=adapter), rollout_of, problems
        )

    def _opened(self, problems: Mapping[str, Problem], thinking: bool) -> set[str]:
        """Return the ids of the problems whose prompt ends inside a thought."""
        turns = {name: self.prompt.turns(problem) for name, problem in problems.items()}
        return {
            name for name, conversation in turns.items() if self.chat.opens_thought(conversation, thinking=thinking)
        }

    def _graded(
        self,
        requests: Mapping[str, Request],
        complete: Callable[[Sequence[Request]], Iterator[Completion]],
        rollout_of: Callable[[Completion], Rollout],
        problems: Mapping[str, Problem],
        on_rollout: Callable[[Rollout], None] = lambda _: None,
        grade: Callable[[Sequence[Rollout]], list[Rollout]] | None = None,
    ) -> list[Rollout]:
        """Complete and grade this process' share of the requests; return all processes' rollouts in their order."""
        mine = dict(self.world.shard(list(requests.items())))
        done: dict[str, Rollout] = {}
        for completion in complete(list(mine.values())):
            rollout = rollout_of(completion)
            done[rollout.id] = rollout
            on_rollout(rollout)
        rollouts = [done[rollout_id] for rollout_id in mine]
        return self.world.gather(grade(rollouts) if grade else self.grader.grade(rollouts, problems))

    def _rollout(
        self,
        request: Request,
        completion: Completion,
        problem: Problem,
        number: int,
        policy_step: int,
        opened: bool,
        *,
        source: RolloutSource = "policy",
        turn: Literal[1, 2] = 1,
    ) -> Rollout:
        text, starts = self.chat.decode(completion.ids)
        return Rollout(
            id=request.id,
            problem_id=problem.id,
            sample=number,
            prompt_ids=request.prompt_ids,
            completion_ids=completion.ids,
            text=text,
            token_starts=starts,
            finish=completion.finish,
            response_start=response_start(text, marks=self.chat.thought_marks, opened=opened),
            policy_step=policy_step,
            seed=request.seed,
            sampler_logprobs=completion.logprobs,
            source=source,
            turn=turn,
            trace_format=problem.trace_format,
        )


def rollout_ids(problems: Sequence[Problem], num_samples: int, prefix: str) -> dict[str, tuple[str, int]]:
    """Return problem id and sample number of each rollout by its id, in their order. See `generate_rollouts`."""
    numbers: Counter[str] = Counter()
    found = {}
    for problem in problems:
        for number in range(numbers[problem.id], numbers[problem.id] + num_samples):
            found[f"{prefix}/{problem.id}/{number}"] = (problem.id, number)
        numbers[problem.id] += num_samples
    return found


def make_sampler(
    settings: config.Recipe,
    load: Callable[[], torch.nn.Module],
    dtype: torch.dtype,
    *,
    eos_ids: frozenset[int],
    world: World = SINGLE,
) -> Sampler:
    """Build the sampler that a recipe names. `load` returns the training model, of `dtype`."""
    sampler: Sampler = registry.build(
        settings.sampler,
        load=load,
        dtype=dtype,
        model=settings.model,
        rank=settings.lora.r,
        seed=settings.seed,
        eos_ids=eos_ids,
        world=world,
    )
    return sampler


@contextmanager
def open_solver(settings: config.Recipe, adapter: Path | None, date: date | None = None) -> Iterator[Solver]:
    """Load a recipe's solver with a PEFT adapter, or with none, and close it at the end.

    A chat template shows `date`. Without one it shows the day on which the adapter's run began, else today.
    """
    prompt = SolverPrompt(settings.prompts)
    if adapter is not None:
        date = date or read_manifest(adapter.absolute().parent.parent).get("date")
    chat = load_chat(settings.model, prompt.before, date)
    device = Accelerator().device
    dtype = models.resolve_dtype(settings.model.dtype, device)
    with ExitStack() as stack:
        sampler = make_sampler(
            settings, lambda: models.load_model(settings.model, adapter, device), dtype, eos_ids=chat.eos_ids
        )
        if isinstance(sampler, RemoteSampler):
            stack.callback(sampler.close)
            if adapter is not None:
                models.check_adapter(settings.model, adapter)
                sampler.load_adapter(AdapterVersion(name=f"{adapter.name}-{uuid4().hex[:8]}", number=1, folder=adapter))
        grader = stack.enter_context(registry.build(settings.grader))
        yield Solver(chat, sampler, grader, prompt)


@contextmanager
def solver_on(settings: config.Recipe, chat: Chat, model: torch.nn.Module) -> Iterator[Solver]:
    """Build the recipe's solver on a model that is loaded already, which is also the sampler's."""
    sampler = TransformersSampler(model, eos_ids=chat.eos_ids, batch_size=settings.sampler.max_num_seqs)
    with registry.build(settings.grader) as grader:
        yield Solver(chat, sampler, grader, SolverPrompt(settings.prompts))
