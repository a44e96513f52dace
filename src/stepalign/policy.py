"""Policy, reduced to hidden states at the positions of the loss.

It is a frozen base under one LoRA adapter, or a model whose weights are all trained.
Logits are left to the loss, which computes them a chunk at a time. The adapter is never merged, so the base stays
bit-identical. Without an adapter the base is a frozen copy, kept where something is compared with it.

Left out: loading (`models`), and teachers (`teachers`).
"""

import json
import re
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedModel

from stepalign.attention import CPU_SDPA
from stepalign.collate import Batch
from stepalign.errors import StepalignError

ADAPTER = "default"
"""PEFT's name of the trained adapter."""


class LoraPair(NamedTuple):
    """Names of the two factors of one layer's update."""

    up: str
    """LoRA's B."""
    down: str
    """LoRA's A."""


def logit_scale(model: PreTrainedModel) -> float:
    """Return the factor of hidden · headᵀ in a model's logits: Cohere's `logit_scale`, 1 over Granite's divisor."""
    settings = model.config.get_text_config()

    def number(name: str) -> float:
        value = getattr(settings, name, None)
        return float(value) if isinstance(value, int | float) and value else 1.0

    return number("logit_scale") * number("lm_head_multiplier") / number("logits_scaling")


class Policy(nn.Module):
    """A causal language model with a LoRA adapter, or without one."""

    def __init__(self, model: PeftModel | PreTrainedModel) -> None:
        """Wrap a loaded model. Its output projection has no adapter, because the losses read it as one matrix."""
        super().__init__()
        self.model = model
        self.logit_scale = logit_scale(self.base)
        self._base_weights: dict[str, Tensor] | None = None
        if isinstance(self.base.get_output_embeddings(), BaseTunerLayer):
            raise StepalignError("lora.target_modules: the output projection must stay frozen, leave it out")

    @property
    def base(self) -> PreTrainedModel:
        """The model under the adapter. Its layers still apply the adapter's weights."""
        base: PreTrainedModel = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return base

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The output projection. It is frozen under an adapter."""
        weight: Tensor = self.base.get_output_embeddings().weight
        return weight

    @property
    def adapter(self) -> str | None:
        """The name of the trained adapter; None without one."""
        return ADAPTER if isinstance(self.model, PeftModel) else None

    def keep_base(self) -> None:
        """Copy the weights that training will change, unless an adapter holds them. Call it before the first update."""
        if self.adapter is None and self._base_weights is None:
            self._base_weights = self.trained_weights()

    def trained_weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights that are trained, by parameter name."""
        return {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}

    def head_of(self, weights: Mapping[str, Tensor]) -> Float[Tensor, "vocab hidden"]:
        """Return the output projection among some weights, else the policy's own."""
        name = next(name for name, parameter in self.named_parameters() if parameter is self.head)
        return weights.get(name, self.head)

    @property
    def base_head(self) -> Float[Tensor, "vocab hidden"]:
        """The output projection of the base."""
        return self.head_of(self._base_weights or {})

    @cached_property
    def shares_prefixes(self) -> bool:
        """True where attention takes a mask of any shape, as views in one row need (`collate`)."""
        settings = self.base.config.get_text_config()
        full = set(getattr(settings, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        return full and settings._attn_implementation in {"sdpa", CPU_SDPA}

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the hidden states that predict the batch's loss tokens, times `logit_scale`, with gradients."""
        shared = {"position_ids": batch.position_ids, "attention_mask": batch.attention_mask}
        output = self.base.get_decoder()(
            input_ids=batch.input_ids, use_cache=False, **(shared if batch.attention_mask is not None else {})
        )
        return output.last_hidden_state[batch.rows, batch.columns] * self.logit_scale  # type: ignore[no-any-return]

    @torch.no_grad()
    def forward_base(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the base's hidden states: no adapter, no gradients, the mode unchanged (paper, Section 3.2)."""
        if self._base_weights is not None:
            return self.forward_with(self._base_weights, batch)
        with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
            return self(batch)  # type: ignore[no-any-return]

    @torch.no_grad()
    def forward_with(self, weights: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the hidden states under other weights for some parameters: no gradients, no dropout, mode unchanged.

        Args:
            weights: by parameter name. The factors of an adapter may be of another rank.
            batch: rows to read.
        """
        training = self.training
        try:
            hidden: Tensor = functional_call(self.eval(), dict(weights), (batch,))
        finally:
            self.train(training)
        return hidden

    def lora_pairs(self) -> list[LoraPair]:
        """Return the names of the adapter's factors, layer by layer. A layer's update is up · down times a scale."""
        names = [name for name, _ in self.named_parameters() if re.search(rf"\.lora_(embedding_)?A\.{ADAPTER}", name)]
        return [LoraPair(up=re.sub(r"(\.lora_(embedding_)?)A\.", r"\1B.", name), down=name) for name in names]

    @property
    def lora_rank(self) -> int:
        """The rank of the adapter; 0 without one."""
        return int(self.model.peft_config[ADAPTER].r) if isinstance(self.model, PeftModel) else 0

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that are trained, in a fixed order: the adapter's, or all."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @cached_property
    def parameters_read(self) -> int:
        """The number of base parameters, an estimate of the products a token: an untied embedding is only looked up."""
        return sum(p.numel() for name, p in self.model.named_parameters() if "lora_" not in name)

    def save(self, folder: Path) -> None:
        """Write what is trained: an adapter in PEFT's format, or a whole model in transformers'."""
        self.model.save_pretrained(folder, safe_serialization=True)
        path = folder / "adapter_config.json"
        adapter_config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if isinstance(targets := adapter_config.get("target_modules"), list):
            targets.sort()  # PEFT writes a set in the order of the process' hashes
            path.write_text(json.dumps(adapter_config, indent=2, sort_keys=True), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read the weights from a folder that `save` wrote."""
        if self.adapter is None:
            self._load_model(folder)
            return
        path = folder / "adapter_model.safetensors"
        try:
            weights = load_file(path)
        except Exception as error:  # safetensors raises its own type for a half-written file
            raise StepalignError(f"{path}: not a whole adapter: {error}") from None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                outcome = set_peft_model_state_dict(self.model, weights)
            except (RuntimeError, UserWarning) as error:
                raise StepalignError(f"{path}: another adapter than the recipe's: {error}") from None
        # The base's own weights are always missing from an adapter's file.
        missing = [key for key in outcome.missing_keys if f".{ADAPTER}." in key]
        if differing := [*outcome.unexpected_keys, *missing]:
            raise StepalignError(f"{path}: another adapter than the recipe's: {differing[:3]} …")

    @torch.no_grad()
    def _load_model(self, folder: Path) -> None:
        try:
            loaded, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype=self.base.dtype, output_loading_info=True, local_files_only=True
            )
        except Exception as error:  # safetensors raises its own type for a half-written file
            raise StepalignError(f"{folder}: not a whole model: {error}") from None
        differing = [key for name in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[name]]
        mine, theirs = dict(self.base.named_parameters()), dict(loaded.named_parameters())
        if differing := [*differing, *(mine.keys() ^ theirs.keys())]:
            raise StepalignError(f"{folder}: another model than the recipe's: {differing[:3]} …")
        for name, parameter in mine.items():
            parameter.copy_(theirs[name])
