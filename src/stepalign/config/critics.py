"""The critics' tables: who writes critiques, what the checks ask of them, and what becomes of those that fail."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny

from stepalign.config.registry import FAMILIES, register
from stepalign.config.table import Probability, Share, Table, Urls

Fallback = Literal["refsol", "drop"]
"""Without a critique: teach with the reference solution, or leave the rollout out."""
_FALLBACKS: tuple[Fallback, ...] = ("refsol", "drop")

Unread = Literal["retry", "fail", "refsol", "drop"]
Failed = Literal["retry", "fail", "refsol", "drop", "ignore"]
Mendable = Literal["repair", "retry", "fail", "refsol", "drop", "ignore"]


class ChecksConfig(Table):
    """What the checks of a critique allow; `docs/critics.md` defines each measure."""

    min_fidelity: Share = 0.98
    """`exact_copy` and `normalized_copy`: the least share of every correct step that must be the solver's own text."""
    max_reference_overlap: Share = 0.5
    """`reference_overlap`: the largest share of the correction that may be the reference solution's words alone."""
    max_length: PositiveFloat = 4.0
    """`length`: how many times as long as the rollout or the reference solution a critique may be."""


class ValidationConfig(Table):
    """What follows when an answer cannot be read, or a check fails. The first failed check decides.

    `repair`: the program puts the solver's own text in (splice); what still fails is asked for again. `retry`: the
    model is asked again and told what was wrong, `critic.max_attempts` times in all; then `critic.on_failure`. `fail`:
    `critic.on_failure` at once. `refsol`, `drop`: that fallback at once. `ignore`: counted, and taught all the same.
    """

    truncated: Unread = "fail"
    """The answer reached `max_tokens`."""
    parse: Unread = "retry"
    """The answer is not in the schema."""
    layout: Mendable = "repair"
    """The text that teaches is not made of the critique's own parts."""
    case: Failed = "retry"
    """The case contradicts the rollout's grade."""
    verdicts: Failed = "retry"
    """A step has no verdict."""
    exact_copy: Mendable = "repair"
    """A correct step is not copied character for character."""
    normalized_copy: Mendable = "repair"
    """A correct step is not copied even when white space and markup are left aside."""
    error_not_quoted: Mendable = "repair"
    """The wrong step is quoted."""
    final_answer: Failed = "retry"
    """The correction does not end in the reference answer."""
    reference_overlap: Failed = "ignore"
    """The correction repeats the reference solution. A fallback to it would repeat all of it."""
    length: Failed = "retry"
    """The critique is far longer than what it is about."""


class CriticConfig(Table):
    """Base of every critic's table: each critique is checked, whatever wrote it."""

    is_remote: ClassVar[bool] = False
    """Critiques are written on another machine, so that the solver can learn meanwhile."""
    needs_own_model: ClassVar[bool] = False
    """Critiques are sampled from the solver's own base, so that the solver cannot sample meanwhile."""
    kind: str
    on_failure: Fallback = "refsol"
    """The last resort, where no critique can be trusted."""
    checks: ChecksConfig = ChecksConfig()
    validation: ValidationConfig = ValidationConfig()

    @property
    def fallbacks(self) -> frozenset[Fallback]:
        """Every fallback that may be taken."""
        values: set[str] = {self.on_failure, *self.validation.model_dump().values()}
        return frozenset(fallback for fallback in _FALLBACKS if fallback in values)

    def divided(self, world_size: int) -> Self:
        """Return the share of this critic's limits that belongs to one of several processes."""
        return self


AnyCriticConfig = Annotated[SerializeAsAny[CriticConfig], FAMILIES["critic"]]


@register("critic", "program", implementation="stepalign.critics.arithmetic.critic:ProgramCritic")
class ProgramCriticConfig(CriticConfig):
    """A program that checks each step's arithmetic and mends the first wrong step."""

    kind: Literal["program"] = "program"
    on_failure: Fallback = "drop"


@register("critic", "replay", implementation="stepalign.critics.replay:ReplayCritic")
class ReplayCriticConfig(CriticConfig):
    """Critiques that are there already: an earlier run's, planted ones, a person's. They belong to rollouts by id."""

    kind: Literal["replay"] = "replay"
    path: Path
    """Critiques and failures (JSONL)."""


class LLMCriticConfig(CriticConfig):
    """What every critic's table has that is a model."""

    mode: Literal["copy", "splice"] = "copy"
    """`copy`: the model writes the whole critique (the paper's); `splice`: it returns the judgement and the correction
    as JSON, and the program copies the correct steps."""
    prompt: str | None = None
    """A template that ships with the package, or a file; None is the mode's own (`critic`, `critic-splice`)."""
    temperature: NonNegativeFloat = 0.0
    top_p: Probability = 0.95
    max_tokens: PositiveInt = 8000
    max_attempts: PositiveInt = 2
    """How often a rollout is put to the model at most, where the policy says `retry`."""


@register("critic", "self", implementation="stepalign.critics.self_critic:SelfCritic")
class SelfCriticConfig(LLMCriticConfig):
    """The solver's own base model, in process: no server, the adapter off."""

    needs_own_model: ClassVar[bool] = True
    kind: Literal["self"] = "self"
    max_tokens: PositiveInt = 2048
    enable_thinking: bool = False
    """The chat template's thinking switch; the thinking counts towards `max_tokens`."""
    max_num_seqs: PositiveInt = 8
    """Rollouts asked about together: each takes the room of a whole message and its answer in the cache."""


@register("critic", "openai", implementation="stepalign.critics.openai:OpenAICritic")
class OpenAICriticConfig(LLMCriticConfig):
    """A model behind OpenAI-compatible endpoints. The key is read from `api_key_env`, never from a recipe."""

    is_remote: ClassVar[bool] = True
    kind: Literal["openai"] = "openai"
    base_url: Urls
    """One URL, or a list of them that share the load; all must serve `model`."""
    model: str
    api_key_env: str = "STEPALIGN_CRITIC_API_KEY"
    timeout_s: PositiveFloat = 240.0
    """For one request."""
    total_timeout_s: PositiveFloat = 900.0
    """For one rollout: every request, retry and wait, except while all endpoints are dead."""
    max_retries: NonNegativeInt = 3
    """Further requests after a failed one (connection, time-out, 408, 409, 429, 5xx), with growing waits."""
    cooldown_s: PositiveFloat = 15.0
    """How long an endpoint that failed is left alone before it is tried again."""
    max_outage_s: NonNegativeFloat = 600.0
    """How long a run waits while all endpoints are dead, before it stops."""
    max_concurrency: PositiveInt = 32
    """Requests under way at once, over all endpoints."""
    cache: str = "run"
    """Where the server's answers are kept: `run` is `critic-cache.sqlite` in the run's folder, `off` is nowhere, and
    anything else is the path of a file."""

    def divided(self, world_size: int) -> Self:
        """Return this critic with one process' share of the requests under way."""
        return self.model_copy(update={"max_concurrency": -(-self.max_concurrency // world_size)})
