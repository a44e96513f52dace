"""The policy: frozen base weights under one LoRA adapter, reduced to hidden states at the positions of the loss.

Logits are left to the loss, which computes them a chunk at a time. The adapter is never merged, so the base stays
bit-identical.

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
from transformers import PreTrainedModel

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


class Policy(nn.Module):
    """A causal language model with a LoRA adapter, or without one."""

    def __init__(self, model: PeftModel | PreTrainedModel) -> None:
        """Wrap a loaded model. Its output projection must be frozen, because the losses read it as one matrix."""
        super().__init__()
        self.model = model
        if isinstance(self.base.get_output_embeddings(), BaseTunerLayer):
            raise StepalignError("lora.target_modules: the output projection must stay frozen, leave it out")

    @property
    def base(self) -> PreTrainedModel:
        """The model under the adapter. Its layers still apply the adapter's weights."""
        base: PreTrainedModel = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return base

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The frozen output projection."""
        weight: Tensor = self.base.get_output_embeddings().weight
        return weight

    @cached_property
    def shares_prefixes(self) -> bool:
        """True where attention takes a mask of any shape, as views in one row need (`collate`)."""
        settings = self.base.config.get_text_config()
        full = set(getattr(settings, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        return full and settings._attn_implementation == "sdpa"

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the hidden states that predict the batch's loss tokens, with gradients to the adapter."""
        shared = {"position_ids": batch.position_ids, "attention_mask": batch.attention_mask}
        output = self.base.get_decoder()(
            input_ids=batch.input_ids, use_cache=False, **(shared if batch.attention_mask is not None else {})
        )
        hidden: Tensor = output.last_hidden_state[batch.rows, batch.columns]
        return hidden

    @torch.no_grad()
    def forward_base(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the base's hidden states: no adapter, no gradients, the mode unchanged (paper, Section 3.2)."""
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
        """Return the adapter's parameters, in a fixed order."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @cached_property
    def parameters_read(self) -> int:
        """The number of base parameters, each multiplied once with every token that is read."""
        return sum(p.numel() for name, p in self.model.named_parameters() if "lora_" not in name)

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`."""
        self.model.save_pretrained(folder, safe_serialization=True)
        path = folder / "adapter_config.json"
        adapter_config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if isinstance(targets := adapter_config.get("target_modules"), list):
            targets.sort()  # PEFT writes a set in the order of the process' hashes
            path.write_text(json.dumps(adapter_config, indent=2, sort_keys=True), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read the adapter's weights from a folder that `save` wrote."""
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
