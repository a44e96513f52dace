"""Generation of rollouts: problems in, graded rollouts out."""

from collections import Counter
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
    """Prompt, sampler and grader, in each of a run's processes."""

    def __init__(
        self, chat: Chat, sampler: Sampler, grader: Grader, prompt: SolverPrompt, world: World = SINGLE
    ) -> None:
        self.chat, self.sampler, self.grader, self.prompt, self.world = chat, sampler, grader, prompt, world

    def prompt_ids(self, problem: Problem, *, thinking: bool) -> TokenIds:
        """Encode the solver's prompt for a problem."""
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
            sampling: temperature, top-p, top-k, length cap and thinking switch.
            adapter: the adapter in use; None is the base.
            policy_step: the optimizer step of the adapter, for the record.
            seed: each rollout's own seed is derived from it.
            prefix: the beginning of the rollouts' ids.
            on_rollout: called with each rollout of this process when it ends, before it is graded.
            grade: grades the rollouts of this process; None uses the solver's grader.

        Returns:
            The rollouts of all processes in the order of `problems`, samples of one problem side by side.
        """
        by_id = {problem.id: problem for problem in problems}
        prompts = {name: self.prompt_ids(problem, thinking=sampling.enable_thinking) for name, problem in by_id.items()}
        numbers: Counter[str] = Counter()
        entries: list[tuple[str, int]] = []  # problem id and the sample's number
        for problem in problems:
            entries += [(problem.id, numbers[problem.id] + number) for number in range(num_samples)]
            numbers[problem.id] += num_samples
        mine = {f"{prefix}/{name}/{number}": (name, number) for name, number in self.world.shard(entries)}
        requests = {
            rollout_id: Request(id=rollout_id, prompt_ids=prompts[name], seed=derive_seed(seed, name, number))
            for rollout_id, (name, number) in mine.items()
        }
        sampled: dict[str, Rollout] = {}
        for completion in self.sampler.sample(list(requests.values()), sampling, adapter=adapter):
            rollout = self._rollout(requests[completion.id], completion, *mine[completion.id], policy_step)
            sampled[rollout.id] = rollout
            on_rollout(rollout)
        rollouts = [sampled[rollout_id] for rollout_id in mine]
        return self.world.gather(grade(rollouts) if grade else self.grader.grade(rollouts, by_id))

    def _rollout(
        self, request: Request, completion: Completion, problem_id: str, number: int, policy_step: int
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
            policy_step=policy_step,
            seed=request.seed,
            sampler_logprobs=completion.logprobs,
        )
