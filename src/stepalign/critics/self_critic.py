"""The solver's own base model as the critic, in process: no server, and no weights but those that are loaded.

    [critic]
    kind = "self"

The adapter is off, so the critic stays the same while the solver learns. Message, reading and validation are those of a
served critic (`llm`). Rollouts are taken a batch at a time, because the model cannot sample and learn at once. Left
out: grammars that force the JSON of splice mode, because the in-process sampler has none.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Self

from stepalign import config
from stepalign.critics.llm import CritiqueWriter, ModelReply, PendingCritique, without_thinking
from stepalign.critics.own_model import OwnModel
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import Turn
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.rollouts import Request
from stepalign.seeding import derive_seed


class SelfCritic:
    """The model that is trained, as it was before training."""

    name = "self"

    def __init__(self, settings: config.SelfCriticConfig, grader: Grader, own: Callable[[], OwnModel]) -> None:
        """Check the settings. The model is loaded with the first attempt that it is asked about."""
        self._settings, self._own = settings, own
        self._writer = CritiqueWriter(self.name, settings, grader)
        sampling = settings.model_dump(include={"temperature", "top_p", "enable_thinking"})
        self._sampling = config.SamplingConfig(max_new_tokens=settings.max_tokens, **sampling)

    @classmethod
    def from_config(
        cls, settings: config.SelfCriticConfig, *, grader: Grader, own: Callable[[], OwnModel] | None, **_: object
    ) -> Self:
        """Build the critic of a recipe."""
        if own is None:
            raise StepalignError("critic.kind = 'self': no solver is loaded here that could be the critic")
        return cls(settings, grader, own)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one result an attempt, `max_num_seqs` of them sampled together.

        A failure's reason is `no room` where the message and `max_tokens` do not fit into the model's context.
        """
        source = iter(attempts)
        while batch := list(islice(source, self._settings.max_num_seqs)):
            waiting = []
            for problem, rollout in batch:
                pending = PendingCritique(problem, rollout)
                if self._writer.composes(rollout) and (composed := self._writer.compose(pending)) is not None:
                    yield composed
                else:
                    waiting.append(pending)
            while waiting:
                sampled = list(self._sample(self._own(), waiting))
                waiting = [pending for pending, result in sampled if result is None]
                yield from (result for _, result in sampled if result is not None)

    def lack_of_room(self, problems: Sequence[Problem], max_new_tokens: int) -> str:
        """Say by how much a rollout of full length on the longest problem is too long; empty where it fits."""
        own, longest = self._own(), max(problems, key=lambda problem: len(problem.statement) + len(problem.solution))
        empty = Rollout(id="longest", problem_id=longest.id, completion_ids=(), token_starts=(), text="", finish="stop")
        needed = len(self._ids(own, PendingCritique(longest, empty))) + max_new_tokens + self._settings.max_tokens
        if own.sampling_limit is None or needed <= own.sampling_limit:
            return ""
        return (
            f"critic.kind = 'self': the message on problem {longest.id}, a rollout of sampling.max_new_tokens = "
            f"{max_new_tokens} and critic.max_tokens = {self._settings.max_tokens} are {needed} tokens, the model's "
            f"context or sampler.max_model_len has {own.sampling_limit}: rollouts without room get no critique"
        )

    def _ids(self, own: OwnModel, pending: PendingCritique) -> tuple[int, ...]:
        turn = Turn("user", self._writer.message(pending))
        return own.chat.prompt_ids([turn], thinking=self._settings.enable_thinking)

    def _sample(
        self, own: OwnModel, waiting: Sequence[PendingCritique]
    ) -> Iterator[tuple[PendingCritique, Critique | CritiqueFailure | None]]:
        """Sample one reply an attempt, and yield its result; None is one more request."""
        requests: dict[str, Request] = {}
        by_id = {pending.rollout.id: pending for pending in waiting}
        for name, pending in by_id.items():
            ids = self._ids(own, pending)
            if own.sampling_limit is not None and len(ids) + self._settings.max_tokens > own.sampling_limit:
                lengths = f"a message of {len(ids)} tokens and critic.max_tokens = {self._settings.max_tokens}"
                detail = f"{lengths} do not fit into {own.sampling_limit}, the model's context or sampler.max_model_len"
                yield pending, self._writer.fail(pending, "no room", detail)
                continue
            seed = derive_seed("self-critic", name, len(pending.faults))
            requests[name] = Request(id=name, prompt_ids=ids, seed=seed)
        for completion in own.sampler.sample(list(requests.values()), self._sampling, adapter=None):
            pending = by_id[completion.id]
            reply = ModelReply(
                text=without_thinking(own.chat.decode(completion.ids)[0]),
                truncated=completion.finish == "length",
                prompt_tokens=len(requests[completion.id].prompt_ids),
                completion_tokens=len(completion.ids),
            )
            yield pending, self._writer.judge(pending, reply)
