"""The policy: frozen base weights under one LoRA adapter, reduced to hidden states at the positions of the loss.

Logits are left to the loss, which computes them a chunk at a time. The adapter is never merged, so the base stays
bit-identical.

Left out: loading (`models`), and teachers (`teachers`).
"""

import json
import warnings
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepalign.collate import Batch
from stepalign.errors import StepalignError

ADAPTER = "default"
"""PEFT's name of the trained adapter."""


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

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the hidden states that predict the batch's loss tokens, with gradients to the adapter."""
        output = self.base.get_decoder()(input_ids=batch.input_ids, use_cache=False)
        hidden: Tensor = output.last_hidden_state[batch.rows, batch.columns]
        return hidden

    @torch.no_grad()
    def forward_base(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the base's hidden states: no adapter, no gradients, the mode unchanged (paper, Section 3.2)."""
        with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
            return self(batch)  # type: ignore[no-any-return]

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
