"""Loading of models: the base's weights, a fresh or a saved adapter on it, the context limit, the precision.

Every command loads through `load_base`, which checks the output projection. A model whose logits are more than
hidden · headᵀ (Granite scales them, Gemma 2 caps them) is refused everywhere, because sampler and losses multiply
hidden states with the head themselves.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from stepalign import config
from stepalign.errors import StepalignError, first_line
from stepalign.policy import Policy
from stepalign.seeding import derive_seed


def load_policy(
    model: config.ModelConfig,
    lora: config.LoraConfig,
    seed: int,
    device: torch.device,
    *,
    load_device: torch.device | None = None,
) -> Policy:
    """Load the base and add a fresh adapter. Its effect is zero until it is trained.

    The policy will run on `device`. The weights are loaded on `load_device` instead where a strategy moves them itself.
    """
    base = load_base(model, device, load_device=load_device)
    adapter = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "adapter"))
        try:
            with warnings.catch_warnings():  # PEFT calls a method that transformers has renamed
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                policy = Policy(get_peft_model(base, adapter))
        except ValueError as error:
            raise StepalignError(f"lora.target_modules = {list(lora.target_modules)}: {error}") from None
    # PEFT refuses only if no target names a layer; a single misspelt one would train less than the recipe states.
    layers = [f".{name}" for name in policy.model.base_model.targeted_module_names]
    if missing := [target for target in lora.target_modules if not any(name.endswith(f".{target}") for name in layers)]:
        raise StepalignError(f"lora.target_modules: the model has no layers named {', '.join(missing)}")
    return policy


def load_model(model: config.ModelConfig, adapter: Path | None, device: torch.device) -> PreTrainedModel | PeftModel:
    """Load the base with a saved PEFT adapter on it, or with none."""
    base = load_base(model, device)
    if adapter is None:
        return base
    try:
        with warnings.catch_warnings():  # PEFT only warns of an adapter that lacks weights
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            return PeftModel.from_pretrained(base, adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError, UserWarning) as error:
        raise StepalignError(f"{adapter}: not a PEFT adapter for this model: {first_line(error)}") from None


def load_base(
    model: config.ModelConfig,
    device: torch.device,
    *,
    load_device: torch.device | None = None,
    device_map: str | None = None,
) -> PreTrainedModel:
    """Load base weights in the recipe's precision, without dropout, frozen.

    Dropout is off because the teacher runs in the student's mode and would be noisy. For `device` and `load_device`
    see `load_policy`. `device_map` spreads the weights over devices instead.
    """
    transformers_logging.disable_progress_bar()
    try:
        base = AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.revision,
            dtype=resolve_dtype(model.dtype, device),
            attn_implementation=model.attn_implementation,
            device_map=device_map,
        )
    except (OSError, ValueError, ImportError) as error:
        raise _cannot_load(model, f"cannot be loaded: {first_line(error)}") from None
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    base = (base if device_map else base.to(load_device or device)).requires_grad_(False)
    _check_head(base)
    return base


def load_config(model: config.ModelConfig) -> PretrainedConfig:
    """Read a model's configuration, without weights."""
    try:
        return AutoConfig.from_pretrained(model.location, revision=model.revision)
    except (OSError, ValueError) as error:
        raise _cannot_load(model, first_line(error)) from None


def context_limit(model: config.ModelConfig) -> int | None:
    """Return a model's number of positions, or None if its configuration has none."""
    limit: int | None = getattr(load_config(model).get_text_config(), "max_position_embeddings", None)
    return limit


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch type of `model.dtype`; `auto` is bfloat16 on a GPU that supports it, else float32."""
    if dtype == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    resolved = getattr(torch, dtype)
    assert isinstance(resolved, torch.dtype)
    return resolved


@torch.no_grad()
def _check_head(base: PreTrainedModel) -> None:
    """Refuse a head that is not a plain projection.

    No layer is run, because a layer's kernel may not run on the loading device. Hidden states are scaled until logits
    reach 50, because a cap (30 in Gemma 2) shows on large logits only.
    """
    decoder, head = base.get_decoder(), base.get_output_embeddings().weight
    hidden: list[Tensor] = []

    def rescale(_module: nn.Module, _inputs: object, output: Any) -> None:
        states = output.last_hidden_state
        output.last_hidden_state = states * (50 / F.linear(states, head).abs().max())
        hidden.append(output.last_hidden_state)

    handle = decoder.register_forward_hook(rescale)
    layers = getattr(decoder, "layers", None)  # GPT-2 names them otherwise; they are run there
    if layers is not None:
        decoder.layers = nn.ModuleList()
    try:
        logits = base(input_ids=torch.arange(4, device=head.device)[None] % head.shape[0], use_cache=False).logits
    finally:
        handle.remove()
        if layers is not None:
            decoder.layers = layers
    if not torch.allclose(F.linear(hidden[0], head).float(), logits.float(), rtol=2e-2, atol=1e-2):
        more = "its logits are more than hidden · headᵀ (a bias, a scale, a soft cap), which is not supported"
        raise StepalignError(f"model {base.config.model_type}: {more}")


def _cannot_load(model: config.ModelConfig, reason: str) -> StepalignError:
    return StepalignError(f"model.name_or_path = {model.name_or_path!r}: {reason}")
