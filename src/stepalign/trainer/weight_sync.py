"""Weight sync: each version of the policy is loaded into the sampler, and checked.

Only a sampler with weights of its own needs it. One that answers as the base does (the adapter is missing), as the
version before (it is stale), or as neither would sample off-policy for the rest of the run in silence. So after every
sync the sampler scores about 2,000 fixed tokens. With s its log-probabilities, n the trainer's, and o the trainer's
with an older version (or the base):

    t = ⟨s − o, n − o⟩ / ‖n − o‖²        1 where the new version is served, 0 where the older one is
    mean |s − n| ≤ tolerance             catches an adapter that is neither

The projection t averages the sampler's noise over all tokens. Below 0.4 the adapter is loaded once more, then the run
stops. Nothing is decided between 0.4 and 0.6, because rounding in the trainer itself (half precision) moves t to ½
whichever version is served, nor where half of the step is below four standard deviations of the noise. Such a sync is
counted, and the next one compares with the same older version, so that the step grows until it can be decided.

`trainer.accumulation` measures the mismatch of trainer and sampler on the rollouts themselves.
"""

import logging
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.collate import collate
from stepalign.distributed.process import World
from stepalign.errors import StepalignError
from stepalign.losses.log_probs import scores
from stepalign.policy import ADAPTER, Policy
from stepalign.records import TokenIds
from stepalign.rollouts import AdapterVersion, RemoteSampler, Sampler
from stepalign.views import View

log = logging.getLogger("stepalign")

_TOKENS, _TOKENS_PER_TEXT = 2000, 256
"""Tokens that are compared. vLLM holds the logits of a whole text at once, so texts are short."""
_STALE, _ARRIVED = 0.4, 0.6
_DEVIATIONS = 4.0
"""Standard deviations of the noise that half of a step must exceed."""


class NotSyncedError(StepalignError):
    """A sampler that does not answer as the trainer does."""


class WeightSync:
    """Loader of a policy's versions into a sampler; without effect for one that shares the trainer's weights."""

    def __init__(
        self, sampler: Sampler, policy: Policy, settings: config.Recipe, texts: Iterable[TokenIds], world: World
    ) -> None:
        """Take 2,000 tokens to be scored from `texts`, which are of the kind that is sampled."""
        self._sampler = sampler if isinstance(sampler, RemoteSampler) else None
        self._policy, self._world = policy, world
        self._folder = settings.folder / "version"
        tolerance = getattr(settings.sampler, "tolerance", None)
        self.tolerance: float = tolerance or (1e-3 if policy.head.dtype == torch.float32 else 0.05)
        self._texts: list[TokenIds] = []
        # The ends of the first texts, because the solver's own text is there, behind the prompt.
        for ids in texts if self._sampler else ():
            if sum(map(len, self._texts)) >= _TOKENS:
                break
            self._texts.append(ids[-_TOKENS_PER_TEXT:])
        self._step: int | None = None
        self._number = 0
        self._older: dict[str, Float[Tensor, " tokens"]] = {}
        self._undecided = self._reloads = 0
        self.metrics: dict[str, float] = {}
        """The last sync's: mean |s − n| in nats, the least t, and counts over the run; empty without a sync."""

    def sync(self, step: int) -> None:
        """Load the policy into the sampler, if it has changed, and check that it arrived."""
        if self._sampler is None or self._step == step:
            return
        new = self._score_texts()
        if not self._older:
            with self._policy.model.disable_adapter():
                self._older["the base"] = self._score_texts()
        version = self._world.on_main(lambda: self._export(step))
        self._sampler.load_adapter(version)
        try:
            decided = self._check(step, new)
        except NotSyncedError as error:
            log.warning("%s. It is loaded once more.", error)
            self._reloads += 1
            self._sampler.load_adapter(replace(version, name=f"{version.name}-again", number=version.number + 1))
            decided = self._check(step, new)
        if decided:
            self._older = {"the base": self._older["the base"], f"the policy of step {step}": new}
        self._step = step
        if self._world.is_main:
            for folder in self._folder.iterdir():
                if folder != version.folder:
                    shutil.rmtree(folder, ignore_errors=True)

    def sleep(self) -> None:
        """Let the sampler free the memory that training needs."""
        if self._sampler is not None:
            self._sampler.sleep()

    def close(self) -> None:
        """Stop the sampler. The adapters stay in the checkpoints."""
        if self._sampler is not None:
            self._sampler.close()
            if self._world.is_main:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _check(self, step: int, new: Float[Tensor, " tokens"]) -> bool:
        """Compare every server with the trainer; True where each older version is told from the new one."""
        assert self._sampler is not None
        differences, projections = [], []
        for server, by_text in self._sampler.prompt_logprobs(self._texts, adapter=ADAPTER).items():
            served = torch.tensor([value for values in by_text for value in values])
            complaint = f"{server} does not sample from the policy of step {step}, which it loaded"
            difference, found = check_synced(served, new, self._older, self.tolerance, complaint)
            differences.append(difference)
            projections.append(found)
        changed = [name for name, old in self._older.items() if not torch.equal(old, new)]
        decided = all(len(found) == len(changed) for found in projections)
        self._undecided += not decided
        values = [t for found in projections for t in found.values()]
        self.metrics = {
            "weight_sync_difference": max(differences),
            **({"weight_sync_projection": min(values)} if values else {}),
            "weight_sync_undecided": self._undecided,
            "weight_sync_reloads": self._reloads,
        }
        return decided and bool(changed)

    def _export(self, step: int) -> AdapterVersion:
        self._number += 2  # the next number is that of a second attempt
        # A resumed run trains step 12 again: its adapter must not be taken for the old one.
        name = f"step-{step:06d}-{uuid.uuid4().hex[:8]}"
        self._policy.save(self._folder / name)
        return AdapterVersion(name=name, number=self._number, folder=self._folder / name)

    @torch.no_grad()
    def _score_texts(self) -> Float[Tensor, " tokens"]:
        """Score every token of the texts but each first one with the trainer's policy, without dropout."""
        training = self._policy.training
        self._policy.eval()
        scored = []
        for ids in self._texts:
            batch = collate([View.whole(ids[:1], ids[1:])]).to(self._policy.head.device)
            log_probs = scores(self._policy(batch), self._policy.head, batch.targets).log_probs
            scored.append(log_probs.float().cpu())
        self._policy.train(training)
        return torch.cat(scored)


def check_synced(
    served: Float[Tensor, " tokens"],
    new: Float[Tensor, " tokens"],
    older: dict[str, Float[Tensor, " tokens"]],
    tolerance: float,
    complaint: str,
) -> tuple[float, dict[str, float]]:
    """Check that a sampler answers as the trainer does. `complaint` begins the error.

    Args:
        served: the sampler's log-probabilities of some tokens.
        new: the trainer's.
        older: the trainer's without the adapter, or with an older one, by name.
        tolerance: the largest mean difference, in nats a token.

    Returns:
        The mean difference, and the projection on the step from each older version where that is decided.

    Raises:
        NotSyncedError: with the measured difference, and the version that the sampler answers like.
    """
    difference = _mean_difference(served, new)
    projections: dict[str, float] = {}
    stale = False
    for name, old in older.items():
        step, offset = (new - old).double(), (served - old).double()
        length = step.norm().item()
        if length == 0:
            continue
        t = (offset @ step).item() / length**2
        noise = (offset - t * step).norm().item() / len(new) ** 0.5
        if length / 2 >= _DEVIATIONS * noise and not _STALE < t < _ARRIVED:
            stale = stale or t <= _STALE
            projections[name] = t
    if not stale and difference <= tolerance:
        return difference, projections
    distances = {name: _mean_difference(served, old) for name, old in older.items()}
    nearest = min(distances, key=lambda name: distances[name])
    step_length = _mean_difference(new, older[nearest])
    like = nearest if stale and distances[nearest] <= max(tolerance, step_length / 2) else "nothing the trainer has"
    raise NotSyncedError(
        f"{complaint}: it answers like {like}. On {len(new)} tokens its log-probabilities differ from the trainer's by "
        f"{difference:.2g} nats on average, at most {(served - new).abs().max():.2g} (sampler.tolerance = "
        f"{tolerance:g}); the step from {nearest} is {step_length:.2g} nats"
        + "".join(f", of which the sampler has made {projections[name]:.2f}" for name in projections if name == nearest)
    )


def _mean_difference(one: Float[Tensor, " tokens"], other: Float[Tensor, " tokens"]) -> float:
    return (one - other).abs().mean().item()
