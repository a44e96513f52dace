"""The policy's way to an engine with weights of its own, and the guard behind it.

After every hand-over the trainer and the engine score the same few tokens. An engine that answers as the base does
(the adapter is missing), as the version before (it is stale), or as neither, would sample off-policy for the rest of
the run without a word: here the run stops with the measured difference.

Two rules, both on log-probabilities s of the engine and n of the trainer's policy:

    mean |s − n| ≤ tolerance                      catches what is plainly wrong
    ‖s − o‖ ≥ ½ ‖n − o‖ for o: base, version before     catches an old adapter below the tolerance: one small step of
                                                  training moves log-probabilities less than half precision rounds

The second needs no threshold: with noise e, s = n + e, it fails only if e undoes at least half of the step.
"""

import shutil
import uuid
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import recipe
from stepalign.errors import StepalignError
from stepalign.objectives.credit import scores
from stepalign.records import TokenIds
from stepalign.sampling import Engine, Handover, Sampler
from stepalign.training.policy import ADAPTER, Policy
from stepalign.views import View, collate
from stepalign.world import World

_PROBES = 4
_PROBE_TOKENS = 256
"""A probe is a prompt and what follows it, cut to so many tokens."""


class Handovers:
    """Brings each version of a policy to the sampler, where that has weights of its own."""

    def __init__(
        self,
        sampler: Sampler,
        policy: Policy,
        settings: recipe.Recipe,
        probes: Sequence[TokenIds],
        world: World,
    ) -> None:
        """`probes` are texts of the kind that is sampled; the first few are scored on both sides."""
        self._engine = sampler if isinstance(sampler, Engine) else None
        self._policy, self._world = policy, world
        self._folder = settings.folder / "handover"
        self._tolerance = _tolerance(settings, policy)
        self._probes = [ids[:_PROBE_TOKENS] for ids in probes[:_PROBES]]
        self._step: int | None = None
        self._number = 0
        self._others: dict[str, Float[Tensor, " tokens"]] = {}
        self.difference: float | None = None
        """The mean difference (nats a token) that was measured last."""

    def bring(self, step: int) -> None:
        """Hand the policy over, if it has changed, and check that it arrived.

        Raises:
            StepalignError: it cannot be loaded, or the engine does not answer as the trainer does.
        """
        if self._engine is None or self._step == step:
            return
        handover = self._world.lead(lambda: self._export(step))
        self._engine.adopt(handover)
        now = self._scores()
        if "the base" not in self._others:
            with self._policy.model.disable_adapter():
                self._others["the base"] = self._scores()
        answers = self._engine.log_probs(self._probes, adapter=ADAPTER)
        found = {name: torch.tensor([value for row in rows for value in row]) for name, rows in answers.items()}
        self.difference = guard(found, now, self._others, self._tolerance, f"the policy of step {step}")
        self._others = {"the base": self._others["the base"], f"the policy of step {step}": now}
        self._step = step
        self._world.lead(lambda: self._forget(handover))

    def rest(self) -> None:
        """Let the engine give back what training needs."""
        if self._engine is not None:
            self._engine.rest()

    def close(self) -> None:
        """End the engine. The adapters stay in the checkpoints."""
        if self._engine is not None:
            self._engine.close()
            if self._world.leads:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _export(self, step: int) -> Handover:
        self._number += 1
        # A run that goes on trains step 12 again: the engine must not take the old one for it.
        name = f"step-{step:06d}-{uuid.uuid4().hex[:8]}"
        self._policy.save(self._folder / name)
        return Handover(name=name, number=self._number, folder=self._folder / name)

    def _forget(self, kept: Handover) -> None:
        for folder in self._folder.iterdir():
            if folder.name != kept.name:
                shutil.rmtree(folder, ignore_errors=True)

    @torch.no_grad()
    def _scores(self) -> Float[Tensor, " tokens"]:
        """The trainer's log-probabilities of every token of the probes but the first of each."""
        policy, training = self._policy, self._policy.training
        policy.eval()
        found = []
        for ids in self._probes:
            view = View(prompt_ids=ids[:1], completion_ids=ids[1:], start=0, stop=len(ids) - 1)
            batch = collate([view]).to(policy.head.device)
            found.append(scores(policy(batch), policy.head, batch.targets).log_probs.float().cpu())
        policy.train(training)
        return torch.cat(found)


def guard(
    found: Mapping[str, Float[Tensor, " tokens"]],
    now: Float[Tensor, " tokens"],
    others: Mapping[str, Float[Tensor, " tokens"]],
    tolerance: float,
    policy: str,
) -> float:
    """Check that engines answer as the trainer does.

    Args:
        found: what each of the engine's servers gives the probes' tokens, by name.
        now: what the trainer gives them.
        others: what it gives them without the adapter, or gave them before, by name.
        tolerance: the largest mean difference, in nats a token.
        policy: what was handed over, by name.

    Returns:
        The largest server's mean difference.

    Raises:
        StepalignError: with the measured difference, and what the server answers like.
    """
    worst = 0.0
    for server, given in found.items():
        difference = (given - now).abs().mean().item()
        worst = max(worst, difference)
        old = next((name for name, other in others.items() if (given - other).norm() < (now - other).norm() / 2), None)
        if old is None and difference <= tolerance:
            continue
        like = f"it answers like {old}" if old else "it answers like nothing the trainer knows"
        raise StepalignError(
            f"{server} does not sample from {policy}, which it was handed: {like}. On {len(now)} tokens its "
            f"log-probabilities differ from the trainer's by {difference:.2g} nats on average, at most "
            f"{(given - now).abs().max():.2g} (sampler.tolerance = {tolerance:g})"
        )
    return worst


def _tolerance(settings: recipe.Recipe, policy: Policy) -> float:
    chosen = getattr(settings.sampler, "tolerance", None)
    return chosen or (1e-3 if policy.head.dtype == torch.float32 else 0.05)
