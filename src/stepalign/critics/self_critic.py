"""The solver's own base model as the critic, in process: no server, and no weights but those that are loaded.

    [critic]
    kind = "self"

The adapter is off, so the critic stays the same while the solver learns. It gets the same message as a served critic,
and what it says is read and checked in the same way (`dialogue`). Rollouts are taken a batch at a time, since the model
cannot sample and learn at once. Left out: grammars that would hold the model to the JSON of splice mode.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from stepalign import config
from stepalign.critics import OwnModel
from stepalign.critics.llm import Answer, Dialogue, Opened
from stepalign.critics.validation import Refusal
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import Turn
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards.math import Grader
from stepalign.rollouts import Request
from stepalign.seeding import derive_seed


class SelfCritic:
    """Asks the model that is being trained, as it was before training."""

    name = "self"

    def __init__(self, settings: config.SelfCriticConfig, grader: Grader, own: Callable[[], OwnModel]) -> None:
        """Check the settings; the model is only asked for with the first attempt.

        Raises:
            StepalignError: there is no such template.
        """
        self._settings, self._own = settings, own
        self._dialogue = Dialogue(self.name, settings, grader)
        self._sampling = config.SamplingConfig(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_tokens,
            enable_thinking=settings.enable_thinking,
        )

    @classmethod
    def from_config(
        cls, settings: config.SelfCriticConfig, *, grader: Grader, own: Callable[[], OwnModel] | None, **_: object
    ) -> "SelfCritic":
        """Build the critic of a recipe.

        Raises:
            StepalignError: nothing here has loaded the solver.
        """
        if own is None:
            raise StepalignError("critic.kind = 'self': there is no solver here that could be asked")
        return cls(settings, grader, own)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt, `batch_size` of them asked for together.

        A failure's reason is a check's name, `parse`, `truncated`, or `no room` where the message and `max_tokens` do
        not fit into the model's context.
        """
        own, source = self._own(), iter(attempts)
        while batch := list(islice(source, self._settings.max_num_seqs)):
            waiting = [Opened(problem, rollout) for problem, rollout in batch]
            while waiting:
                answers = list(self._asked(own, waiting))
                waiting = [opened for opened, answer in answers if answer is None]
                yield from (answer for _, answer in answers if answer is not None)

    def _asked(
        self, own: OwnModel, waiting: Sequence[Opened]
    ) -> Iterator[tuple[Opened, Critique | CritiqueFailure | None]]:
        """Each attempt with what the model's next words on it come to."""
        requests: dict[str, Request] = {}
        by_id = {opened.rollout.id: opened for opened in waiting}
        for name, opened in by_id.items():
            turn = Turn("user", self._dialogue.message(opened))
            ids = own.chat.prompt_ids([turn], thinking=self._settings.enable_thinking)
            if own.context_limit is not None and len(ids) + self._settings.max_tokens > own.context_limit:
                detail = (
                    f"a message of {len(ids)} tokens and critic.max_tokens = {self._settings.max_tokens} do not fit "
                    f"into the model's context of {own.context_limit}"
                )
                yield opened, self._dialogue.close(opened, Refusal(reason="no room", detail=detail))
                continue
            seed = derive_seed("self-critic", name, len(opened.faults))
            requests[name] = Request(id=name, prompt_ids=ids, seed=seed)
        for completion in own.sampler.sample(list(requests.values()), self._sampling, adapter=None):
            text, _ = own.chat.decode(completion.ids)
            answer = Answer(
                text=text.rpartition("</think>")[2],
                truncated=completion.finish == "length",
                prompt_tokens=len(requests[completion.id].prompt_ids),
                completion_tokens=len(completion.ids),
            )
            opened = by_id[completion.id]
            yield opened, self._dialogue.settle(opened, answer)
