"""Teacher that is an exponential moving average of the student: θ̄ ← (1 − ρ) θ̄ + ρ θ, with θ̄ = the base at first.

Of a LoRA adapter it is the effect B·A that is averaged, not B and A apart: the product of two averages is another
matrix. An exact average of products has a rank that grows by r with each update, up to the layer's own width. So the
average is kept in factors of a fixed rank R. An update lays the student's factors beside them and cuts the sum back to
rank R by the singular value decomposition, which is the nearest matrix of that rank:

    [ (1 − ρ)·B̄, ρ·B ] · [ Ā; A ] = U S Vᵀ,      B̄ = U_R √S_R,   Ā = √S_R V_Rᵀ

What is cut off is measured. `teacher_truncation` is an upper bound of the distance from the exact average (Frobenius
norm, all layers), over the norm of the average. It is 0 where R is at least the layer's width.

Where all weights are trained, they are averaged one by one in a copy.

Left out: the dense average of an adapter's effect, because it takes 4 bytes a base weight (5.6 GB at 1.7B, 28 GB at 8B)
and a second product of each layer's size; R = 2r takes 2 adapters.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.collate import Batch
from stepalign.errors import StepalignError
from stepalign.policy import Policy

_LAYERS = 8
"""Layers that are decomposed together."""


class Cut(NamedTuple):
    """A batch of products of rank R, and what their rank has cost."""

    up: Float[Tensor, "layers out rank"]
    down: Float[Tensor, "layers rank in"]
    dropped: Float[Tensor, " layers"]
    """Frobenius norm of what was cut off."""


def nearest_of_rank(up: Float[Tensor, "layers out more"], down: Float[Tensor, "layers more in"], rank: int) -> Cut:
    """Return the matrices of a rank that are nearest to up · down, in balanced factors of that very rank.

    Only small matrices are decomposed: with up = Q₁R₁ and downᵀ = Q₂R₂ these are R₁R₂ᵀ.
    """
    (left, r_left), (right, r_right) = torch.linalg.qr(up), torch.linalg.qr(down.mT)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    dropped = torch.linalg.vector_norm(s[:, rank:], dim=-1)
    root = s[:, :rank].sqrt()
    new_up = (left @ u[:, :, :rank]) * root[:, None, :]
    new_down = root[:, :, None] * (vh[:, :rank] @ right.mT)
    missing = rank - root.shape[-1]  # a narrow layer has no more directions
    if missing > 0:
        new_up = torch.nn.functional.pad(new_up, (0, missing))
        new_down = torch.nn.functional.pad(new_down, (0, 0, 0, missing))
    return Cut(new_up, new_down, dropped)


class LowRankAverage:
    """Moving average of the products B·A of a policy's adapter, in factors of a fixed rank."""

    def __init__(self, policy: Policy, rank: int) -> None:
        """Begin with products of zero, which is the effect of a fresh adapter."""
        self.rank, self.pairs = rank, policy.lora_pairs()
        self.tensors: dict[str, Tensor] = {}
        """Factors, by the names of the parameters that they stand for."""
        for pair in self.pairs:
            up, down = (policy.get_parameter(name).detach() for name in pair)
            self.tensors[pair.up] = up.new_zeros(len(up), rank)
            self.tensors[pair.down] = down.new_zeros(rank, down.shape[1])
        self.error = torch.zeros(len(self.pairs), dtype=torch.float64)
        """An upper bound of each product's distance from the exact average (Frobenius norm)."""

    @torch.no_grad()
    def update(self, policy: Policy, rate: float) -> None:
        """Move by `rate` towards the policy's adapter."""
        for group in self._groups():
            pairs = [self.pairs[index] for index in group]
            ups, downs = ([policy.get_parameter(name) for name in names] for names in zip(*pairs, strict=True))
            self._move(ups[0].device)
            up = [
                torch.cat(((1 - rate) * self.tensors[pair.up], rate * b), 1) for pair, b in zip(pairs, ups, strict=True)
            ]
            down = [torch.cat((self.tensors[pair.down], a)) for pair, a in zip(pairs, downs, strict=True)]
            cut = nearest_of_rank(torch.stack(up), torch.stack(down), self.rank)
            for pair, b, a in zip(pairs, cut.up, cut.down, strict=True):
                self.tensors[pair.up], self.tensors[pair.down] = b.clone(), a.clone()
            self.error[group] = (1 - rate) * self.error[group] + cut.dropped.double().cpu()

    def forward(self, policy: Policy, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the policy's hidden states under the average in place of its adapter."""
        self._move(batch.input_ids.device)
        return policy.forward_with(self.tensors, batch)

    def head(self, policy: Policy) -> Float[Tensor, "vocab hidden"]:
        """Return the policy's output projection, which has no adapter."""
        return policy.head

    def metrics(self) -> Mapping[str, float]:
        """Return the bound of the distance from the exact average, over the norm of the average."""
        # The factors are balanced: each has the square roots of the singular values.
        squares = sum(float((self.tensors[pair.down].double().square().sum(1) ** 2).sum()) for pair in self.pairs)
        return {"teacher_truncation": float(self.error.norm()) / math.sqrt(squares) if squares else 0.0}

    def state(self) -> dict[str, Tensor]:
        """Return the factors and what their rank has cost."""
        return {**self.tensors, "error": self.error}

    def _groups(self) -> Iterator[list[int]]:
        """Yield places of products of one shape, a few together."""
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, pair in enumerate(self.pairs):
            by_shape[len(self.tensors[pair.up]), self.tensors[pair.down].shape[1]].append(index)
        for places in by_shape.values():
            yield from (places[first : first + _LAYERS] for first in range(0, len(places), _LAYERS))

    def _move(self, device: torch.device) -> None:
        """Follow a policy that a strategy has moved."""
        if any(tensor.device != device for tensor in self.tensors.values()):
            self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}


class WeightAverage:
    """Moving average of all weights of a policy, in a copy."""

    def __init__(self, policy: Policy) -> None:
        """Begin at the policy's weights."""
        self.tensors = policy.trained_weights()

    @torch.no_grad()
    def update(self, policy: Policy, rate: float) -> None:
        """Move by `rate` towards the policy."""
        for name, mean in self.tensors.items():
            mean.lerp_(policy.get_parameter(name), rate)

    def forward(self, policy: Policy, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the hidden states under the average."""
        return policy.forward_with(self.tensors, batch)

    def head(self, policy: Policy) -> Float[Tensor, "vocab hidden"]:
        """Return the average's output projection."""
        return policy.head_of(self.tensors)

    def metrics(self) -> Mapping[str, float]:
        """Return no measures: the average is exact."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return the average."""
        return self.tensors


class EMATeacher:
    """Moving average of the student, updated at each optimizer step or once for a step's rollouts."""

    moves: ClassVar[bool] = True

    def __init__(self, settings: config.EMATeacherConfig, *, policy: Policy) -> None:
        """Begin at the policy, which has not been trained yet."""
        self.settings, self._policy = settings, policy
        self.average: LowRankAverage | WeightAverage = (
            WeightAverage(policy)
            if policy.adapter is None and policy.trainable()
            else LowRankAverage(policy, settings.rank or 2 * policy.lora_rank)
        )
        self._updated, self._units = False, 0

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The average's output projection."""
        return self.average.head(self._policy)

    @property
    def shares_prefixes(self) -> bool:
        """The policy's."""
        return self._policy.shares_prefixes

    @property
    def parameters_read(self) -> int:
        """The policy's."""
        return self._policy.parameters_read

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the average's hidden states."""
        return self.average.forward(self._policy, batch)

    def after_update(self, policy: Policy) -> None:
        """Follow an optimizer update, where that is the unit."""
        self._updated = True
        if self.settings.update_every == "optimizer_step":
            self._follow(policy)

    def after_step(self, policy: Policy) -> None:
        """Follow all updates on a step's rollouts, where that is the unit and there were some."""
        if self.settings.update_every == "rollout_batch" and self._updated:
            self._follow(policy)
        self._updated = False

    def _follow(self, policy: Policy) -> None:
        self._units += 1
        if self._units % self.settings.sync_steps == 0:
            self.average.update(policy, self.settings.update_rate)

    def metrics(self) -> Mapping[str, float]:
        """Return the average's own measures."""
        return self.average.metrics()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average and the number of units so far."""
        state = {f"ema.{name}": tensor for name, tensor in self.average.state().items()}
        return {"ema.units": torch.tensor(self._units)} | state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the average.

        Raises:
            StepalignError: it is another kind of teacher's, or of another adapter.
        """
        now = self.state_dict()
        differing = sorted(now.keys() ^ state.keys()) or [n for n in now if now[n].shape != state[n].shape]
        if differing:
            raise StepalignError(f"teacher.kind: the checkpoint holds another kind of teacher: {differing[:3]} …")
        self._units = int(state["ema.units"])
        for name, tensor in self.average.state().items():
            tensor.copy_(state[f"ema.{name}"])
