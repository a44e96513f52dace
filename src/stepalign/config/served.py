"""The keys of models behind OpenAI-compatible endpoints, the same for critics, menders and locators."""

from typing import Annotated, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from stepalign.config.registry import KEY_VARIABLE, RUNTIME, Table, Urls


class ServedModelConfig(Table):
    """Base of the tables of models behind OpenAI-compatible endpoints.

    The key is read from `api_key_env`, never from a recipe.
    """

    base_url: Annotated[Urls, RUNTIME]
    """One URL, or a list of URLs that share the load; all must serve `model`."""
    model: str
    """The name of the served model."""
    api_key_env: Annotated[str, KEY_VARIABLE] = "STEPALIGN_CRITIC_API_KEY"
    """The environment variable of the API key."""
    timeout_s: Annotated[PositiveFloat, RUNTIME] = 240.0
    """Seconds for one request."""
    total_timeout_s: Annotated[PositiveFloat, RUNTIME] = 900.0
    """Seconds for one reply, with its retries and waits, except while no endpoint answers."""
    max_retries: Annotated[NonNegativeInt, RUNTIME] = 3
    """Requests after a failed one (connection, time-out, 408, 409, 429, 5xx), with growing waits."""
    cooldown_s: Annotated[PositiveFloat, RUNTIME] = 15.0
    """Seconds before a failed endpoint is tried again."""
    max_outage_s: Annotated[NonNegativeFloat, RUNTIME] = 600.0
    """Seconds that a run waits while no endpoint answers, before it stops."""
    max_concurrency: Annotated[PositiveInt, RUNTIME] = 32
    """The most requests under way at once, over all endpoints and training processes; at least one a process."""
    cache: Annotated[str, RUNTIME] = "run"
    """The file of kept replies: `run` is `critic-cache.jsonl` in the run's folder, `off` is none, else a path."""

    def divided(self, world_size: int) -> Self:
        """Return this table with one process' share of the requests under way, at least one."""
        return self.model_copy(update={"max_concurrency": max(1, self.max_concurrency // world_size)})
