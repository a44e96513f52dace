"""Locators by a model's verdicts: for each step log p(right) − log p(wrong), read in one forward pass.

    [critic]
    kind = "locate-mend"
    locator = { kind = "verdicts", threshold = -1.5 }

The model reads the problem, what it is told, and the solution up to the end of a step, and is asked about that step
alone. So no verdict depends on an earlier one. Nothing is generated: the score is the log-odds of the two words as the
reply's first token, each with a small or a capital letter. The questions on one solution begin alike and share a row of
the pass, where the model allows that (`collate`).

A served model is asked for one token a step, with the log-probabilities of the likeliest. A word that is not among them
counts as the least likely of them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import Self

from accelerate import Accelerator
from jinja2 import Template

from stepalign import config, models, prompts
from stepalign.chat import Chat, load_chat
from stepalign.critics import sample
from stepalign.critics.llm import ModelReply
from stepalign.critics.location import ScoredLocator, SectionScores, counted_sections, section_texts
from stepalign.critics.own_model import OwnModel
from stepalign.critics.quoting import quote
from stepalign.critics.schema import label_of
from stepalign.critics.served_model import ServedModel
from stepalign.errors import StepalignError
from stepalign.policy import Policy
from stepalign.prompts.conversation import Turn
from stepalign.records import Problem, Rollout, TokenIds
from stepalign.scoring import Predictor, log_odds
from stepalign.serving.client import UnansweredError
from stepalign.trace import parse_rollout

VARIABLES = frozenset({"problem", "solution", "answer", "grade", "attempt", "step"})
"""Variables of the template."""
_RIGHT, _WRONG = ("right", "Right"), ("wrong", "Wrong")
_TOP_LOGPROBS = 20
"""Likeliest tokens that a server returns, the most that the protocol allows."""


class _Verdicts(ScoredLocator):
    """Base: the questions about a rollout's complete sections."""

    def __init__(self, settings: config.VerdictsConfig) -> None:
        self._template, self._told, self.threshold = load_template(settings), settings.told, settings.threshold
        self.facts = settings.told
        self.name = "verdicts" + ("" if settings.told else ", told nothing")

    def _questions(self, problem: Problem, rollout: Rollout) -> list[str]:
        """Return the message about each complete section."""
        trace, count = parse_rollout(rollout), len(section_texts(rollout))
        return [
            prompts.render(self._template, _values(self._told, problem, rollout, trace.text[: section.end], label))
            for section, label in (
                (section, label_of(trace, k)) for k, section in enumerate(counted_sections(trace)[:count], start=1)
            )
        ]


class VerdictLocator(_Verdicts):
    """A model in process: the solver's own base, or a model of its own."""

    def __init__(self, settings: config.VerdictsLocatorConfig, own: Callable[[], OwnModel] | None) -> None:
        """Load the template. Weights are loaded with the first attempt."""
        super().__init__(settings)
        self._model, self._own = settings.model, own
        if settings.model is None and own is None:
            raise StepalignError("locator.kind = 'verdicts': no solver is loaded here that could judge")

    @classmethod
    def from_config(
        cls, settings: config.VerdictsLocatorConfig, *, own: Callable[[], OwnModel] | None, **_: object
    ) -> Self:
        """Build the locator of a recipe."""
        return cls(settings, own)

    def score(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[SectionScores]:
        """Yield the scores of each attempt, in order. Those without room in the model's context have none."""
        chat, limit, opened = self._judge()
        right, wrong = _first_ids(chat)
        questions = [
            [chat.prompt_ids([Turn("user", message)]) for message in self._questions(*attempt)] for attempt in attempts
        ]
        fits = [limit is None or max(map(len, ids), default=0) < limit for ids in questions]
        asked = [one for ids, is_room in zip(questions, fits, strict=True) if is_room for one in ids]
        with opened as model:
            scores, shares = iter(log_odds(model, asked, right, wrong)), model.shares_prefixes
        for ids, is_room in zip(questions, fits, strict=True):
            if is_room:
                yield SectionScores(tuple(next(scores) for _ in ids), _tokens_read(ids, shares))
            else:
                yield SectionScores((), fault="the questions do not fit into the model's context.")

    def _judge(self) -> tuple[Chat, int | None, AbstractContextManager[Predictor]]:
        """Return the model's chat template, its positions, and a context that yields it."""
        if self._model is None:
            assert self._own is not None
            own = self._own()
            return own.chat, own.context_limit, own.base()
        return load_chat(self._model), models.context_limit(self._model), nullcontext(self._loaded)

    @cached_property
    def _loaded(self) -> Policy:
        assert self._model is not None
        return Policy(models.load_model(self._model, None, Accelerator().device)).eval()


class ServedVerdictLocator(_Verdicts):
    """A model behind OpenAI-compatible endpoints that return log-probabilities."""

    def __init__(self, settings: config.ServedVerdictsLocatorConfig, folder: Path) -> None:
        """Check URLs and key, and load the template."""
        super().__init__(settings)
        request = {"model": settings.model, "temperature": 0.0, "max_tokens": 1}
        request |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        self._served = ServedModel(settings, "critic.locator", request, folder)

    @classmethod
    def from_config(cls, settings: config.ServedVerdictsLocatorConfig, *, folder: Path, **_: object) -> Self:
        """Build the locator of a recipe, with its cache in the run's folder."""
        return cls(settings, folder)

    def check_servers(self) -> None:
        """Raise a StepalignError where no server works, or one refuses key, model, URL or log-probabilities."""
        self._served.check()

    def score(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[SectionScores]:
        """Yield the scores of each attempt, in order. Those with a step that no verdict came for have none.

        Raises:
            StepalignError: a server returns no log-probabilities.
        """
        questions = [self._questions(*attempt) for attempt in attempts]
        bodies = [{"messages": [{"role": "user", "content": one}]} for messages in questions for one in messages]
        replies = self._served.ask(bodies)
        for messages in questions:
            own = [next(replies) for _ in messages]
            answered = [reply for reply in own if isinstance(reply, ModelReply)]
            scores = tuple(map(served_log_odds, answered))
            errors = [reply for reply in own if isinstance(reply, UnansweredError)]
            faults = [error.detail for error in errors]
            faults += ["neither word is among the likeliest tokens." for score in scores if score is None]
            yield SectionScores(
                scores=() if faults else tuple(score for score in scores if score is not None),
                prompt_tokens=sum(reply.prompt_tokens for reply in answered),
                completion_tokens=sum(reply.completion_tokens for reply in answered),
                fault=next(iter(faults), ""),
                unanswered=errors[0].reason if errors else "",
            )


def load_template(settings: config.VerdictsConfig) -> Template:
    """Load the template of a question, and render it once.

    Raises:
        StepalignError: it is not a valid template, or the model that reads it is not there.
    """
    if isinstance(settings, config.VerdictsLocatorConfig) and settings.model is not None:
        models.context_limit(settings.model)
    template, _ = prompts.load(settings.prompt, VARIABLES)
    prompts.render(template, _values(settings.told, sample.PROBLEM, sample.ROLLOUT, sample.ROLLOUT.text, "1"))
    return template


def served_log_odds(reply: ModelReply) -> float | None:
    """Return the log-odds of the two words in a reply's likeliest first tokens; None where both are missing.

    Raises:
        StepalignError: the reply has no log-probabilities.
    """
    if not reply.top_logprobs:
        raise StepalignError("critic.locator.kind = 'openai_verdicts': the server returns no log-probabilities")
    least = min(reply.top_logprobs.values())
    sides = [
        [value for token, value in reply.top_logprobs.items() if token.strip() in words] for words in (_RIGHT, _WRONG)
    ]
    if not any(sides):
        return None
    right, wrong = (_log_sum_exp(side or [least]) for side in sides)
    return round(right - wrong, 6)


def _log_sum_exp(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))


def _values(told: Sequence[str], problem: Problem, rollout: Rollout, attempt: str, step: str) -> Mapping[str, object]:
    """Return a template's values; what is not told is empty."""
    facts = {
        "solution": quote(problem.solution),
        "answer": quote(problem.answer),
        "grade": "right" if rollout.correct else "wrong",
    }
    shown = {name: value if name in told else "" for name, value in facts.items()}
    return {**shown, "problem": quote(problem.statement), "attempt": quote(attempt.rstrip()), "step": step}


def _first_ids(chat: Chat) -> tuple[list[int], list[int]]:
    """Return the first tokens of the two words.

    Raises:
        StepalignError: the vocabulary does not tell the words apart by their first tokens.
    """
    right, wrong = ({chat.encode_text(word)[0] for word in words} for words in (_RIGHT, _WRONG))
    if right & wrong:
        raise StepalignError("locator.kind = 'verdicts': 'right' and 'wrong' begin with the same token of the model")
    return sorted(right), sorted(wrong)


def _tokens_read(prompts: Sequence[TokenIds], shares_prefixes: bool) -> int:
    """Count the tokens of prompts; of those that begin alike the common ones once, where the model shares them."""
    if not shares_prefixes:
        return sum(map(len, prompts))
    return sum(
        len(ids) - len(commonprefix([ids, before])) for ids, before in zip(prompts, ((), *prompts), strict=False)
    )
