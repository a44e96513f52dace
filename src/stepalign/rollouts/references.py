"""Sampler of reference solutions in the solver's format (GKD's data-set sequences)."""

from collections.abc import Iterator, Mapping, Sequence

from stepalign import config
from stepalign.chat import Chat
from stepalign.errors import StepalignError
from stepalign.records import FinishReason, Problem
from stepalign.rollouts import Completion, Request
from stepalign.trace import trace_format


class ReferenceSampler:
    """Reference solutions as completions, an EOS at their end."""

    def __init__(self, chat: Chat, problems: Mapping[str, Problem]) -> None:
        """Take the problem of each request, by the request's id."""
        self._chat, self._problems = chat, problems

    def sample(
        self, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
    ) -> Iterator[Completion]:
        """Yield the solutions. One longer than `sampling.max_new_tokens` is cut, as a sampled one is."""
        for request in requests:
            ids = self._chat.completion_ids(reference_text(self._problems[request.id]))
            finish: FinishReason = "stop" if len(ids) <= sampling.max_new_tokens else "length"
            yield Completion(id=request.id, ids=ids[: sampling.max_new_tokens], finish=finish)


def reference_text(problem: Problem) -> str:
    """Return a problem's reference solution in the solver's format.

    Raises:
        StepalignError: there is none, or it cannot be written so.
    """
    text = trace_format(problem.trace_format).write(problem.solution, problem.answer) if problem.solution else None
    if text is None:
        fault = f"breaks the format {problem.trace_format!r}" if problem.solution else "is missing"
        raise StepalignError(f"problem {problem.id}: its reference solution {fault}, but is to be learned from")
    return text
