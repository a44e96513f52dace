"""Menders: continuations of a solution's correct steps, with the reference solution in view.

The message is a teacher's (`refsol` by default). The reply begins with the solver's own correct steps and the next
heading, so that the continuation keeps the solver's manner. `program` samples nothing: the critic then recomputes the
solver's text or goes on with the reference's steps.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from jinja2 import Template

from stepalign import config, prompts
from stepalign.critics import sample
from stepalign.critics.chat_completions import ChatCompletions, ReplyCache
from stepalign.critics.locate_mend import Draft, Sample
from stepalign.critics.self_critic import OwnModel
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import Turn
from stepalign.records import Problem
from stepalign.rollouts import Request
from stepalign.seeding import derive_seed
from stepalign.serving.client import UnansweredError, read_key
from stepalign.serving.endpoints import check_urls
from stepalign.serving.loop_thread import LoopThread

VARIABLES = frozenset({"problem", "solution", "answer"})
"""Variables of a mender's template."""


class ProgramMender:
    """No samples: the program corrects."""

    name = "program"
    num_samples = 0
    max_num_seqs = 64

    @classmethod
    def from_config(cls, settings: config.ProgramMenderConfig, **_: object) -> Self:
        """Build the mender of a recipe."""
        return cls()

    def sample(self, drafts: Sequence[Draft], number: int) -> Iterator[tuple[Draft, Sample]]:
        """Yield nothing."""
        return iter(())


class SelfMender:
    """The solver's own base model, in process."""

    name = "self"

    def __init__(self, settings: config.SelfMenderConfig, own: Callable[[], OwnModel]) -> None:
        """Load the template. The model is loaded with the first attempt."""
        self.num_samples, self.max_num_seqs = settings.num_samples, settings.max_num_seqs
        self._template, self._own = load_template(settings), own
        self._thinking = settings.enable_thinking
        self._sampling = config.SamplingConfig(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_tokens,
            enable_thinking=settings.enable_thinking,
        )

    @classmethod
    def from_config(cls, settings: config.SelfMenderConfig, *, own: Callable[[], OwnModel] | None, **_: object) -> Self:
        """Build the mender of a recipe."""
        if own is None:
            raise StepalignError("critic.mender.kind = 'self': no solver is loaded here that could be the mender")
        return cls(settings, own)

    def sample(self, drafts: Sequence[Draft], number: int) -> Iterator[tuple[Draft, Sample]]:
        """Sample one continuation of each draft that has room in the model's context."""
        if not drafts:
            return
        own = self._own()
        by_id = {draft.location.rollout_id: draft for draft in drafts}
        requests = {}
        for name, draft in by_id.items():
            turn = Turn("user", _message(self._template, draft.attempt.problem, draft.attempt.reference))
            begun = own.chat.encode_text(f"{draft.before}{draft.heading}")
            ids = (*own.chat.prompt_ids([turn], thinking=self._thinking), *begun)
            if own.context_limit is None or len(ids) + self._sampling.max_new_tokens <= own.context_limit:
                seed = derive_seed("self-mender", name, number)
                requests[name] = Request(id=name, prompt_ids=ids, seed=seed)
            else:
                draft.faults.append("no room")
        for completion in own.sampler.sample(list(requests.values()), self._sampling, adapter=None):
            text, _ = own.chat.decode(completion.ids)
            yield (
                by_id[completion.id],
                Sample(
                    text=text,
                    whole=completion.finish == "stop",
                    prompt_tokens=len(requests[completion.id].prompt_ids),
                    completion_tokens=len(completion.ids),
                ),
            )


class OpenAIMender:
    """A served model that continues a begun reply (vLLM, SGLang: `continue_final_message`)."""

    def __init__(self, settings: config.OpenAIMenderConfig, folder: Path) -> None:
        """Check URLs and key, and load the template."""
        check_urls("critic.mender.base_url", settings.base_url)
        self.name, self.num_samples, self.max_num_seqs = settings.model, settings.num_samples, settings.max_concurrency
        self._settings, self._template = settings, load_template(settings)
        self._key = read_key(settings.api_key_env)
        self._request = settings.model_dump(include={"model", "temperature", "top_p", "max_tokens"})
        self._request |= {"continue_final_message": True, "add_generation_prompt": False}
        path = {"run": folder / "critic-cache.jsonl", "off": None}.get(settings.cache, Path(settings.cache))
        self._cache = ReplyCache(path) if path else None

    @classmethod
    def from_config(cls, settings: config.OpenAIMenderConfig, *, folder: Path, **_: object) -> Self:
        """Build the mender of a recipe, with its cache in the run's folder."""
        return cls(settings, folder)

    def sample(self, drafts: Sequence[Draft], number: int) -> Iterator[tuple[Draft, Sample]]:
        """Ask for one continuation of each draft, all at once. An answer that does not come is a fault."""
        server = ChatCompletions(self._settings, self._key, self._cache)
        thread = LoopThread("mender")
        thread.run(server.__aenter__())
        try:
            asked = [(draft, thread.start(server.ask(self._body(draft, number)))) for draft in drafts]
            for draft, future in asked:
                try:
                    reply = future.result()
                except UnansweredError as error:
                    draft.faults.append(error.reason)
                    continue
                whole = not reply.truncated and reply.finish == "stop"
                yield (
                    draft,
                    Sample(
                        text=reply.text,
                        whole=whole,
                        prompt_tokens=reply.prompt_tokens,
                        completion_tokens=reply.completion_tokens,
                    ),
                )
        finally:
            thread.close(server.__aexit__())

    def _body(self, draft: Draft, number: int) -> dict[str, Any]:
        messages = [
            {"role": "user", "content": _message(self._template, draft.attempt.problem, draft.attempt.reference)},
            {"role": "assistant", "content": f"{draft.before}{draft.heading}"},
        ]
        return self._request | {"messages": messages, "seed": derive_seed(draft.location.rollout_id, number) % 2**31}


def load_template(settings: config.SampledMenderConfig) -> Template:
    """Load a mender's template, and render it once."""
    template, _ = prompts.load(settings.prompt, VARIABLES)
    _message(template, sample.PROBLEM, sample.PROBLEM.solution)
    return template


def _message(template: Template, problem: Problem, reference: str) -> str:
    values = {"problem": problem.statement, "solution": reference, "answer": problem.answer}
    return prompts.render(template, values)
