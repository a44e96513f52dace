"""The solver as the rest of the pipeline sees it: problems in, graded rollouts out."""

from collections.abc import Callable, Sequence

from stepalign import config
from stepalign.chat import Chat
from stepalign.distributed.process import SINGLE, World
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem, Rollout, TokenIds
from stepalign.rewards import Grader
from stepalign.rollouts import Completion, Request, Sampler
from stepalign.seeding import derive_seed


class Solver:
    """A sampler with a prompt before it and a grader behind it, in each of a run's processes."""

    def __init__(
        self, chat: Chat, sampler: Sampler, grader: Grader, prompt: SolverPrompt, world: World = SINGLE
    ) -> None:
        self.chat, self.sampler, self.grader, self.prompt, self.world = chat, sampler, grader, prompt, world

    def prompt_ids(self, problem: Problem, *, thinking: bool) -> TokenIds:
        """What the solver sees of a problem."""
        return self.chat.prompt_ids(self.prompt.turns(problem), thinking=thinking)

    def attempt(
        self,
        problems: Sequence[Problem],
        samples: int,
        sampling: config.SamplingConfig,
        *,
        adapter: str | None,
        policy_step: int,
        seed: int,
        prefix: str,
        done: Callable[[Rollout], None] = lambda _: None,
        graded: Callable[[Sequence[Rollout]], list[Rollout]] | None = None,
    ) -> list[Rollout]:
        """Attempt each problem `samples` times and grade the attempts; every process does its share.

        Args:
            problems: may hold a problem more than once; its attempts are numbered on.
            samples: attempts an entry.
            sampling: how tokens are drawn.
            adapter: the adapter in use; None is the base.
            policy_step: the optimizer step the adapter is at, for the record.
            seed: every attempt's own seed is derived from it.
            prefix: what the rollouts' ids begin with.
            done: called with each rollout of this process as it ends, ungraded.
            graded: gives the grades, where `done` had them made; else the solver's own grader does.

        Returns:
            All the rollouts in the order of `problems`, samples of one problem side by side.
        """
        owners: list[Problem] = [problem for problem in problems for _ in range(samples)]
        numbers = _count_up(owners)
        cached = {
            problem.id: self.prompt_ids(problem, thinking=sampling.enable_thinking)
            for problem in {problem.id: problem for problem in problems}.values()
        }
        mine = {
            f"{prefix}/{problem.id}/{number}": (problem, number)
            for problem, number in self.world.shard(list(zip(owners, numbers, strict=True)))
        }
        requests = {
            name: Request(id=name, prompt_ids=cached[problem.id], seed=derive_seed(seed, problem.id, number))
            for name, (problem, number) in mine.items()
        }
        drawn: dict[str, Rollout] = {}
        for completion in self.sampler.sample(list(requests.values()), sampling, adapter=adapter):
            name = completion.id
            drawn[name] = self._rollout(requests[name], completion, *mine[name], policy_step)
            done(drawn[name])
        rollouts = [drawn[name] for name in mine]
        by_id = {problem.id: problem for problem in problems}
        return self.world.gather(graded(rollouts) if graded else self.grader.grade(rollouts, by_id))

    def _rollout(
        self, request: Request, completion: Completion, problem: Problem, number: int, policy_step: int
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
            policy_step=policy_step,
            seed=request.seed,
        )


def _count_up(problems: Sequence[Problem]) -> list[int]:
    """For each entry how many entries of the same problem stand before it."""
    seen: dict[str, int] = {}
    numbers = []
    for problem in problems:
        numbers.append(seen.get(problem.id, 0))
        seen[problem.id] = numbers[-1] + 1
    return numbers
