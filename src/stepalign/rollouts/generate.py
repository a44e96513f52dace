"""Generation of rollouts: problems in, graded rollouts out; and the solver that a recipe names."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import torch
from accelerate import Accelerator

from stepalign import config, models
from stepalign.chat import Chat, load_chat
from stepalign.config import registry
from stepalign.distributed.process import SINGLE, World
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem, Rollout, TokenIds
from stepalign.rewards import Grader
from stepalign.rollouts import AdapterVersion, Completion, RemoteSampler, Request, Sampler
from stepalign.rollouts.transformers import TransformersSampler
from stepalign.seeding import derive_seed
from stepalign.trace import response_start


class Solver:
    """Prompt, sampler and grader, in each of a run's processes."""

    def __init__(
        self, chat: Chat, sampler: Sampler, grader: Grader, prompt: SolverPrompt, world: World = SINGLE
    ) -> None:
        self.chat, self.sampler, self.grader, self.prompt, self.world = chat, sampler, grader, prompt, world

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

        Returns:
            The rollouts of all processes in the order of `problems`, samples of one problem side by side.
        """
        by_id = {problem.id: problem for problem in problems}
        prompts = {name: self.prompt_ids(problem, thinking=sampling.enable_thinking) for name, problem in by_id.items()}
        opened = {
            name: self.chat.opens_thought(self.prompt.turns(problem), thinking=sampling.enable_thinking)
            for name, problem in by_id.items()
        }
        mine = dict(self.world.shard(list(rollout_ids(problems, num_samples, prefix).items())))
        requests = {
            rollout_id: Request(id=rollout_id, prompt_ids=prompts[name], seed=derive_seed(seed, name, number))
            for rollout_id, (name, number) in mine.items()
        }
        sampled: dict[str, Rollout] = {}
        for completion in self.sampler.sample(list(requests.values()), sampling, adapter=adapter):
            name, number = mine[completion.id]
            rollout = self._rollout(requests[completion.id], completion, name, number, policy_step, opened[name])
            sampled[rollout.id] = rollout
            on_rollout(rollout)
        rollouts = [sampled[rollout_id] for rollout_id in mine]
        return self.world.gather(grade(rollouts) if grade else self.grader.grade(rollouts, by_id))

    def _rollout(
        self,
        request: Request,
        completion: Completion,
        problem_id: str,
        number: int,
        policy_step: int,
        opened: bool,
    ) -> Rollout:
        text, starts = self.chat.decode(completion.ids)
        return Rollout(
            id=request.id,
            problem_id=problem_id,
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
def open_solver(settings: config.Recipe, adapter: Path | None) -> Iterator[Solver]:
    """Load a recipe's solver with a PEFT adapter, or with none, and close it at the end."""
    chat = load_chat(settings.model)
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
        yield Solver(chat, sampler, grader, SolverPrompt(settings.prompts))


@contextmanager
def solver_on(settings: config.Recipe, chat: Chat, model: torch.nn.Module) -> Iterator[Solver]:
    """Build the recipe's solver on a model that is loaded already, which is also the sampler's."""
    sampler = TransformersSampler(model, eos_ids=chat.eos_ids, batch_size=settings.sampler.max_num_seqs)
    with registry.build(settings.grader) as grader:
        yield Solver(chat, sampler, grader, SolverPrompt(settings.prompts))
