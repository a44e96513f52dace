"""The policy's way to an engine with weights of its own, and the guard behind it.

After every hand-over the engine draws a token behind each of some fixed prompts, and its log-probability is held
against the trainer's. An engine that answers as the base does (the adapter is missing), as the version before (it is
stale), or as neither, would sample off-policy for the rest of the run without a word: here the run stops with the
measured difference.

Two rules, on log-probabilities s of the engine and n of the trainer's policy:

    mean |s − n| ≤ tolerance        catches what is plainly wrong
    ‖s − o‖ ≥ ½ ‖n − o‖             for o the base's and the version before's: catches an old adapter below the
                                    tolerance, since a small step moves log-probabilities less than bfloat16 rounds

The second needs no threshold: with noise e, s = n + e, it fails only if e undoes at least half of the step.
"""

import shutil
import uuid
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.collate import collate
from stepalign.distributed.process import World
from stepalign.errors import StepalignError
from stepalign.policy import ADAPTER, Policy
from stepalign.records import TokenIds
from stepalign.rollouts import AdapterVersion, Engine, Sampler
from stepalign.views import View

_TOKENS = 48
"""So many are drawn and compared."""


class WeightSync:
    """Brings each version of a policy to the sampler, where that has weights of its own."""

    def __init__(
        self,
        sampler: Sampler,
        policy: Policy,
        settings: config.Recipe,
        probes: Sequence[TokenIds],
        world: World,
    ) -> None:
        """`probes` are texts of the kind that is sampled; tokens are drawn behind beginnings of them."""
        self._engine = sampler if isinstance(sampler, Engine) else None
        self._policy, self._world = policy, world
        self._folder = settings.folder / "version"
        self._tolerance = _tolerance(settings, policy)
        self._probes = probes
        each = -(-_TOKENS // len(probes))
        # They end all over the probes' second halves, where the solver's own text is.
        self._ends = [[len(ids) - number * len(ids) // (2 * each) for number in range(each)] for ids in probes]
        self._prompts = [ids[:end] for ids, ends in zip(probes, self._ends, strict=True) for end in ends]
        self._step: int | None = None
        self._number = 0
        self._others: dict[str, Float[Tensor, "prompts vocab"]] = {}
        self.difference: float | None = None
        """The mean difference (nats a token) that was measured last."""

    def sync(self, step: int) -> None:
        """Hand the policy over, if it has changed, and check that it arrived.

        Raises:
            StepalignError: it cannot be loaded, or the engine does not answer as the trainer does.
        """
        if self._engine is None or self._step == step:
            return
        version = self._world.on_main(lambda: self._export(step))
        self._engine.load_adapter(version)
        now = self._scores()
        if "the base" not in self._others:
            with self._policy.model.disable_adapter():
                self._others["the base"] = self._scores()
        self.difference = 0.0
        for server, drawn in self._engine.sample_logprobs(self._prompts, adapter=ADAPTER).items():
            rows, tokens = range(len(drawn)), [token for token, _ in drawn]
            difference = guard(
                torch.tensor([given for _, given in drawn]),
                now[rows, tokens],
                {name: other[rows, tokens] for name, other in self._others.items()},
                self._tolerance,
                f"{server} does not sample from the policy of step {step}, which it was handed",
            )
            self.difference = max(self.difference, difference)
        self._others = {"the base": self._others["the base"], f"the policy of step {step}": now}
        self._step = step
        self._world.on_main(lambda: self._forget(version))

    def sleep(self) -> None:
        """Let the engine give back what training needs."""
        if self._engine is not None:
            self._engine.sleep()

    def close(self) -> None:
        """End the engine. The adapters stay in the checkpoints."""
        if self._engine is not None:
            self._engine.close()
            if self._world.is_main:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _export(self, step: int) -> AdapterVersion:
        self._number += 1
        # A run that goes on trains step 12 again: the engine must not take the old one for it.
        name = f"step-{step:06d}-{uuid.uuid4().hex[:8]}"
        self._policy.save(self._folder / name)
        return AdapterVersion(name=name, number=self._number, folder=self._folder / name)

    def _forget(self, kept: AdapterVersion) -> None:
        for folder in self._folder.iterdir():
            if folder.name != kept.name:
                shutil.rmtree(folder, ignore_errors=True)

    @torch.no_grad()
    def _scores(self) -> Float[Tensor, "prompts vocab"]:
        """The trainer's log-probabilities of every token that may follow a prompt."""
        policy, training = self._policy, self._policy.training
        policy.eval()
        found = []
        for ids, ends in zip(self._probes, self._ends, strict=True):
            view = View(prompt_ids=ids[:1], completion_ids=(*ids[1:], 0), loss_start=0, loss_stop=len(ids))
            hidden = policy(collate([view]).to(policy.head.device))[[end - 1 for end in ends]]
            found.append((hidden @ policy.head.T).float().log_softmax(dim=-1).cpu())
        policy.train(training)
        return torch.cat(found)


def guard(
    given: Float[Tensor, " tokens"],
    now: Float[Tensor, " tokens"],
    others: Mapping[str, Float[Tensor, " tokens"]],
    tolerance: float,
    complaint: str,
) -> float:
    """Check that an engine answers as the trainer does.

    Args:
        given: the engine's log-probabilities of some tokens.
        now: what the trainer gives them.
        others: what it gives them without the adapter, or with the one before, by name.
        tolerance: the largest mean difference, in nats a token.
        complaint: what the error begins with.

    Returns:
        The mean difference.

    Raises:
        StepalignError: with the measured difference, and what the engine answers like.
    """
    difference = (given - now).abs().mean().item()
    old = next((name for name, other in others.items() if (given - other).norm() < (now - other).norm() / 2), None)
    if old is None and difference <= tolerance:
        return difference
    like = f"it answers like {old}" if old else "it answers like nothing the trainer knows"
    raise StepalignError(
        f"{complaint}: {like}. On {len(now)} tokens its log-probabilities differ from the trainer's by "
        f"{difference:.2g} nats on average, at most {(given - now).abs().max():.2g} (sampler.tolerance = {tolerance:g})"
    )


def _tolerance(settings: config.Recipe, policy: Policy) -> float:
    chosen = getattr(settings.sampler, "tolerance", None)
    return chosen or (1e-3 if policy.head.dtype == torch.float32 else 0.05)
