"""The solver and its teacher: one set of frozen base weights, one LoRA adapter that can be switched off.

`Policy.forward` gives the student's hidden states, `Policy.teacher` those of the initial policy (the same weights
with the adapter disabled, paper Section 3.2); logits are the objective's business, a chunk at a time. Adapters are
never merged, so the base, and with it the teacher, stays bit-identical (`FACTS.md`, trap 9).
"""

import warnings
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from stepalign import config
from stepalign.collate import Batch
from stepalign.errors import StepalignError
from stepalign.seeding import derive_seed

ADAPTER = "default"
"""The adapter that is trained, by PEFT's name for it."""


class Policy(nn.Module):
    """A causal language model with a LoRA adapter, reduced to hidden states at the positions that count.

    A model without an adapter can be looked at, too: it is then its own teacher.
    """

    def __init__(self, model: PeftModel | PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def base(self) -> PreTrainedModel:
        """The model under the adapter. Its layers carry the adapter's weights all the same."""
        base: PreTrainedModel = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return base

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The output projection. It is frozen: LoRA does not touch it."""
        weight: Tensor = self.base.get_output_embeddings().weight
        return weight

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """The student's hidden states that predict the batch's counted tokens, with gradients to the adapter."""
        return self._hidden(batch)

    @torch.no_grad()
    def teacher(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """The same of the initial policy: the adapter disabled, no gradients, the mode left as it is."""
        with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
            return self._hidden(batch)

    def _hidden(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        output = self.base.get_decoder()(input_ids=batch.input_ids, use_cache=False)
        hidden: Tensor = output.last_hidden_state[batch.rows, batch.columns]
        return hidden

    def trainable(self) -> list[nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @cached_property
    def parameters_read(self) -> int:
        """The base's parameters, which every token that is read is multiplied with."""
        return sum(p.numel() for name, p in self.model.named_parameters() if "lora_" not in name)

    def save(self, folder: Path) -> None:
        """Write the adapter as PEFT does: `adapter_model.safetensors` and `adapter_config.json`."""
        self.model.save_pretrained(folder, safe_serialization=True)

    def load(self, folder: Path) -> None:
        """Read the adapter's weights back from where `save` wrote them.

        Raises:
            StepalignError: the file is missing, half-written, or of another adapter.
        """
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
        # Loading is lenient: the base's own weights are missing from an adapter's file as a matter of course.
        wanting = [key for key in outcome.missing_keys if f".{ADAPTER}." in key]
        if strange := [*outcome.unexpected_keys, *wanting]:
            raise StepalignError(f"{path}: another adapter than the recipe's: {strange[:3]} …")


def load(model: config.ModelConfig, adapter: config.LoraConfig, seed: int, device: torch.device) -> Policy:
    """Load the base and put a fresh adapter on it (its effect is zero until it is trained).

    Raises:
        StepalignError: no such model; a target that names no layer; a head that is not a plain projection.
    """
    base = load_base(model, device)
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=list(adapter.target_modules),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "adapter"))
        try:
            with warnings.catch_warnings():  # PEFT asks transformers by a name that is on its way out
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                policy = Policy(get_peft_model(base, config))
        except ValueError as error:
            raise StepalignError(f"lora.target_modules = {list(adapter.target_modules)}: {error}") from None
    _check_targets(policy, adapter)
    check_head(policy)
    return policy


def load_base(model: config.ModelConfig, device: torch.device) -> PreTrainedModel:
    """Load base weights in the recipe's precision, without dropout, frozen.

    Dropout is switched off because the teacher runs in the student's mode: it would make the teacher noisy.
    """
    transformers_logging.disable_progress_bar()
    try:
        base = AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.revision,
            dtype=precision(model.dtype, device),
            attn_implementation=model.attn_implementation,
        )
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise StepalignError(f"model.name_or_path = {model.name_or_path!r}: cannot be loaded: {first_line}") from None
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return base.to(device).requires_grad_(False)


def load_trained(model: config.ModelConfig, adapter: Path | None, device: torch.device) -> PreTrainedModel | PeftModel:
    """Load the base with any PEFT adapter on it, or with none.

    Raises:
        StepalignError: no such model, or not an adapter for it.
    """
    loaded: PreTrainedModel | PeftModel = load_base(model, device)
    if adapter is not None:
        try:
            with warnings.catch_warnings():  # PEFT only warns of an adapter that lacks weights
                warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                loaded = PeftModel.from_pretrained(loaded, adapter)
        except (OSError, ValueError, RuntimeError, SafetensorError, UserWarning) as error:
            first_line = str(error).strip().splitlines()[0]
            raise StepalignError(f"{adapter}: not a PEFT adapter for this model: {first_line}") from None
    return loaded


def context_limit(model: config.ModelConfig) -> int | None:
    """How many positions a model has; None where its configuration does not say. No weights are loaded."""
    try:
        config = AutoConfig.from_pretrained(model.location, revision=model.revision)
    except (OSError, ValueError) as error:
        raise StepalignError(
            f"model.name_or_path = {model.name_or_path!r}: {str(error).strip().splitlines()[0]}"
        ) from None
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def precision(dtype: str, device: torch.device) -> torch.dtype:
    """A recipe's `model.dtype` on a device: `auto` is bfloat16 on a GPU that has it, else float32."""
    if dtype == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    chosen = getattr(torch, dtype)
    assert isinstance(chosen, torch.dtype)
    return chosen


def _check_targets(policy: Policy, adapter: config.LoraConfig) -> None:
    """PEFT minds only if no target names a layer; one that is misspelt would train less than the recipe says."""
    found = policy.model.base_model.targeted_module_names
    lost = [target for target in adapter.target_modules if not any(f".{name}".endswith(f".{target}") for name in found)]
    if lost:
        raise StepalignError(f"lora.target_modules: the model has no layers named {', '.join(lost)}")


@torch.no_grad()
def check_head(policy: Policy) -> None:
    """Logits are computed as hidden · headᵀ; a model that does more to them (scales, caps) is refused."""
    head = policy.base.get_output_embeddings()
    ids = torch.arange(4, device=policy.head.device)[None] % policy.head.shape[0]
    logits = policy.base(input_ids=ids, use_cache=False).logits
    hidden = policy.base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    if any(parameter.requires_grad for parameter in head.parameters()):
        raise StepalignError("lora.target_modules: the output projection must stay frozen, leave it out")
    if not torch.allclose((hidden @ policy.head.T).float(), logits.float(), rtol=2e-2, atol=1e-2):
        raise StepalignError(
            f"model {policy.base.config.model_type}: its logits are more than hidden · headᵀ (a bias, a scale, a "
            "soft cap), which is not supported"
        )
