"""Menders: continuations of a solution's correct steps, with the reference solution in view.

The message is a teacher's (`refsol` by default), behind the solver's worked examples. The reply begins with its
own correct steps and the next heading, so that the continuation keeps the solver's manner. `program` samples nothing:
the critic then recomputes the solver's text or goes on with the reference's steps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

from jinja2 import Template

from stepalign import config, prompts
from stepalign.critics import sample
from stepalign.critics.llm import ModelReply
from stepalign.critics.locate_mend import Draft
from stepalign.critics.own_model import OwnModel
from stepalign.critics.pending import Fault
from stepalign.critics.served_model import ServedModel
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import Turn
from stepalign.records import PROGRAM, Problem
from stepalign.rollouts import Request
from stepalign.seeding import derive_seed

VARIABLES = frozenset({"problem", "solution", "answer"})
"""Variables of a mender's template."""


class ProgramMender:
    """No samples: the program corrects."""

    name = PROGRAM
    num_samples = 0
    max_num_seqs = 64

    @classmethod
    def from_config(cls, settings: config.ProgramMenderConfig, **_: object) -> Self:
        """Build the mender of a recipe."""
        return cls()

    def opened(self) -> AbstractContextManager[None]:
        """Hold nothing."""
        return nullcontext()

    def sample(self, drafts: Sequence[Draft], number: int) -> Iterator[tuple[Draft, ModelReply]]:
        """Yield nothing."""
        return iter(())


class SelfMender:
    """The solver's own base model, in process."""

    name = "self"

    def __init__(self, settings: config.SelfMenderConfig, own: Callable[[], OwnModel], before: Sequence[Turn]) -> None:
        """Load the template. The model is loaded with the first attempt."""
        self.num_samples, self.max_num_seqs = settings.num_samples, settings.max_num_seqs
        self._template, self._own, self._before = load_template(settings), own, before
        self._thinking = settings.enable_thinking
        self._sampling = config.SamplingConfig(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_tokens,
            enable_thinking=settings.enable_thinking,
        )

    @classmethod
    def from_config(
        cls,
        settings: config.SelfMenderConfig,
        *,
        own: Callable[[], OwnModel] | None,
        before: Sequence[Turn] = (),
        **_: object,
    ) -> Self:
        """Build the mender of a recipe."""
        if own is None:
            raise StepalignError("critic.mender.kind = 'self': no solver is loaded here that could be the mender")
        return cls(settings, own, before)

    def opened(self) -> AbstractContextManager[None]:
        """Hold nothing."""
        return nullcontext()

    def sample(self, drafts: Sequence[Draft], number: int) -> Iterator[tuple[Draft, ModelReply]]:
        """Sample one continuation of each draft that has room in the model's context."""
        if not drafts:
            return
        own = self._own()
        by_id = {draft.location.rollout_id: draft for draft in drafts}
        requests = {}
        for name, draft in by_id.items():
            turn = Turn("user", _message(self._template, draft.attempt.problem, draft.attempt.reference))
            begun = own.chat.encode_text(f"{draft.before}{draft.heading}")
            ids = (*own.chat.prompt_ids([*self._before, turn], thinking=self._thinking), *begun)
            if own.sampling_limit is None or len(ids) + self._sampling.max_new_tokens <= own.sampling_limit:
                seed = derive_seed("self-mender", name, number)
                requests[name] = Request(id=name, prompt_ids=ids, seed=seed)
            else:
                draft.faults.append(Fault("no room"))
        for completion in own.sampler.sample(list(requests.values()), self._sampling, adapter=None):
            text, _ = own.chat.decode(completion.ids)
            yield (
                by_id[completion.id],
                ModelReply(
                    text=text,
                    truncated=completion.finish == "length",
                    prompt_tokens=len(requests[completion.id].prompt_ids),
                    completion_tokens=len(completion.ids),
                ),
            )


class OpenAIMender:
    """A served model that continues a begun reply (vLLM, SGLang: `continue_final_message`)."""

    def __init__(self, settings: config.OpenAIMenderConfig, folder: Path, before: Sequence[Turn]) -> None:
        """Check URLs and key, and load the template."""
        self.name, self.num_samples, self.max_num_seqs = settings.model, settings.num_samples, settings.max_concurrency
        self._template, self._before = load_template(settings), [vars(turn) for turn in before]
        request = settings.model_dump(include={"model", "temperature", "top_p", "max_tokens"})
        request |= {"continue_final_message": True, "add_generation_prompt": False}
        self._served = ServedModel(settings, "critic.mender", request, folder)

    @classmethod
    def from_config(
        cls, settings: config.OpenAIMenderConfig, *, folder: Path, before: Sequence[Turn] = (), **_: object
    ) -> Self:
        """Build the mender of a recipe, with its cache in the run's folder."""
        return cls(settings, folder, before)

    def check_servers(self) -> None:
        """Raise a StepalignError where no server works, or one refuses key, model, URL or a begun reply."""
        self._served.check(self._messages("Say yes.", "Ye"))

    def opened(self) -> AbstractContextManager[None]:
        """Keep one client for all samples inside a `with`."""
        return self._served.opened()

    def sample(self, drafts: Sequence[Draft], number: int) -> Iterator[tuple[Draft, ModelReply]]:
        """Ask for one continuation of each draft, all at once. An answer that does not come is a fault."""
        bodies = [self._body(draft, number) for draft in drafts]
        for draft, reply in zip(drafts, self._served.ask(bodies), strict=True):
            if isinstance(reply, ModelReply):
                yield draft, reply
            else:
                draft.faults.append(Fault(reply.reason, reply.detail))

    def _body(self, draft: Draft, number: int) -> dict[str, Any]:
        message = _message(self._template, draft.attempt.problem, draft.attempt.reference)
        seed = derive_seed(draft.location.rollout_id, number) % 2**31
        return {**self._messages(message, f"{draft.before}{draft.heading}"), "seed": seed}

    def _messages(self, message: str, begun: str) -> dict[str, Any]:
        turns = [{"role": "user", "content": message}, {"role": "assistant", "content": begun}]
        return {"messages": [*self._before, *turns]}


def load_template(settings: config.SampledMenderConfig) -> Template:
    """Load a mender's template, and render it once."""
    template, _ = prompts.load(settings.prompt, VARIABLES)
    _message(template, sample.PROBLEM, sample.PROBLEM.solution)
    return template


def _message(template: Template, problem: Problem, reference: str) -> str:
    values = {"problem": problem.statement, "solution": reference, "answer": problem.answer}
    return prompts.render(template, values)
