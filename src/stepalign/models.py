"""Loading of models: the base's weights, a fresh or a saved adapter on it, the context limit, the precision.

Every command loads through `load_base`, which checks the output projection. Sampler and losses multiply hidden states
with the head themselves, and know a scale (Granite, Cohere; `policy.logit_scale`). A model whose logits are more than
that (Gemma 2 caps them, Phi adds a bias) is refused everywhere.
"""

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from stepalign import config, extras
from stepalign.attention import use_cpu_sdpa
from stepalign.bfloat16_linear import has_bfloat16_products, use_bfloat16_linear
from stepalign.errors import StepalignError, first_line
from stepalign.io import differences, kept_value
from stepalign.lora_forward import use_fused_lora
from stepalign.manifest import read_manifest
from stepalign.policy import ADAPTER, Policy, logit_scale
from stepalign.precision import set_matmul_precision
from stepalign.seeding import derive_seed


def load_policy(
    model: config.ModelConfig,
    lora: config.LoraConfig | None,
    seed: int,
    device: torch.device,
    *,
    load_device: torch.device | None = None,
) -> Policy:
    """Load the base and add a fresh adapter, whose effect is zero until it is trained. None trains all weights.

    The policy will run on `device`. The weights are loaded on `load_device` instead where a strategy moves them itself.
    """
    if lora is None:
        if model.dtype == "auto":  # an update of half-precision weights is lost below 1/256 of a weight
            model = model.model_copy(update={"dtype": "float32"})
        return Policy(load_base(model, device, load_device=load_device, trainable=True))
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
    if device.type == "cpu":
        use_fused_lora(policy)
    return policy


def with_precision(recipe: config.Recipe, kept: Path, device: torch.device) -> config.Recipe:
    """Return a recipe with the measured precision of float32 products in place of `auto`.

    A settings file that `kept` names has the one with which its folder was begun. Another measurement may differ.
    """
    if recipe.model.float32_matmul_precision != "auto":
        return recipe
    precision = kept_value(kept, "model", "float32_matmul_precision", read=str)
    if precision not in ("highest", "medium"):
        precision = set_matmul_precision("auto", device)
    model = recipe.model.model_copy(update={"float32_matmul_precision": precision})
    return recipe.model_copy(update={"model": model})


def load_model(model: config.ModelConfig, adapter: Path | None, device: torch.device) -> PreTrainedModel | PeftModel:
    """Load the base with a saved PEFT adapter on it, or with none."""
    set_matmul_precision(model.float32_matmul_precision, device)
    if adapter is None:
        return load_base(model, device)
    check_adapter(model, adapter)
    base = load_base(model, device)
    head = base.get_output_embeddings()
    try:
        with warnings.catch_warnings():  # PEFT only warns of an adapter that lacks weights
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            loaded = PeftModel.from_pretrained(base, adapter)
            unknown = loaded.load_adapter(adapter, ADAPTER).unexpected_keys  # from_pretrained keeps silent about them
    except Exception as error:  # the loaders' own types: of pickles, safetensors, configurations
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or first_line(error)
        raise StepalignError(f"{adapter}: not a PEFT adapter for this model: {reason}") from None
    if unknown:
        raise StepalignError(f"{adapter}: not a PEFT adapter for this model, which has no {', '.join(unknown[:3])} …")
    if base.get_output_embeddings() is not head:
        raise StepalignError(f"{adapter}: it changes the output projection, which is not supported")
    if device.type == "cpu":
        use_fused_lora(loaded)
    return loaded


def check_adapter(model: config.ModelConfig, adapter: Path) -> None:
    """Check by its configuration that an adapter belongs to a model and acts within the layers.

    Prompt and prefix tuning act outside of them, in PEFT's own forward pass, which samplers and losses do not call. The
    base is compared by its weights for an adapter within the folder of a run, else by name.

    Raises:
        StepalignError: naming what differs.
    """
    path = adapter / "adapter_config.json"
    try:
        settings = PeftConfig.from_pretrained(str(adapter)) if path.exists() else None
    except Exception as error:
        raise StepalignError(f"{path}: not the configuration of a PEFT adapter: {first_line(error)}") from None
    if settings is None:
        if (adapter / "config.json").exists():
            raise StepalignError(f"{adapter}: a whole model and no adapter: name it as model.name_or_path")
        raise StepalignError(f"{adapter}: not a PEFT adapter: it has no {path.name}")
    if settings.is_prompt_learning:
        raise StepalignError(
            f"{path}: peft_type = {settings.peft_type.value}: prompt and prefix tuning are not supported, "
            "only adapters within the layers, such as LoRA"
        )
    kept = read_manifest(adapter.absolute().parent.parent).get("base", {})
    if kept := {name: digest for name, digest in kept.items() if not name.startswith("teacher/")}:
        if changed := [name for name, _, _ in differences(kept, fingerprint(model))]:
            raise StepalignError(
                f"{adapter}: trained on another base than model.name_or_path = {model.name_or_path!r}: "
                f"{', '.join(changed)} differ"
            )
    elif not _same_name(settings.base_model_name_or_path, model):
        raise StepalignError(
            f"{path}: base_model_name_or_path = {settings.base_model_name_or_path!r}, but model.name_or_path = "
            f"{model.name_or_path!r}; where both are the same weights, change it in that file"
        )


def fingerprint(model: config.ModelConfig) -> dict[str, str]:
    """Return a digest of each file that decides how a model answers.

    Weights, configuration, EOS, and tokenizer. Of a file above 64 MiB the size, the first MiB and 256 blocks of 16 KiB
    are read: training changes them all, but a few altered bytes elsewhere are not seen.
    """
    folder = Path(model.location)
    if not folder.is_dir():
        folder = Path(cached_file(model.location, "config.json", revision=model.revision)).parent
    weights = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    others = (folder / f"{name}.json" for name in ("config", "generation_config", "tokenizer"))
    return {path.name: _digest(path) for path in (*weights, *others) if path.is_file()}


def _digest(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    digest.update(str(size).encode())
    with path.open("rb") as file:
        if size <= 2**26:
            digest.update(file.read())
        else:
            digest.update(file.read(2**20))
            for block in range(256):
                file.seek(block * (size - 2**14) // 255)
                digest.update(file.read(2**14))
    return digest.hexdigest()


def _same_name(name: str | None, model: config.ModelConfig) -> bool:
    """Compare the last part of two names, because folders are moved and hub names have owners."""
    if not name:
        return True
    parts, others = (
        [part for part in re.split(r"[/\\]|--", each.casefold()) if part] for each in (name, model.location)
    )
    return parts[-1] in others or others[-1] in parts


def load_base(
    model: config.ModelConfig,
    device: torch.device,
    *,
    load_device: torch.device | None = None,
    device_map: str | None = None,
    trainable: bool = False,
) -> PreTrainedModel:
    """Load base weights in the recipe's precision, or in 4 bits, without dropout, frozen unless `trainable`.

    Dropout is off because the teacher runs in the student's mode and would be noisy. For `device` and `load_device`
    see `load_policy`. `device_map` spreads the weights over devices instead. Frozen layers keep bfloat16 weights on a
    CPU where this process multiplies in `medium` precision.
    """
    transformers_logging.disable_progress_bar()
    dtype = resolve_dtype(model.dtype, device)
    if model.load_in_4bit and device_map is None:
        device_map = str(load_device or device)  # quantized while they are loaded, and not moved afterwards
    try:
        base = AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.revision,
            dtype=dtype,
            quantization_config=_four_bit(dtype) if model.load_in_4bit else None,
            attn_implementation=model.attn_implementation,
            device_map=device_map,
        )
    except Exception as error:
        raise _cannot_load(model, f"cannot be loaded: {first_line(error)}") from None
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    if device.type == "cpu":
        use_cpu_sdpa(base)
    base = (base if device_map else base.to(load_device or device)).requires_grad_(trainable)
    _check_head(base)
    medium = torch.get_float32_matmul_precision() == "medium" and has_bfloat16_products()
    if device.type == "cpu" and medium and not (trainable or load_device or device_map):
        use_bfloat16_linear(base.get_decoder())
    return base


def _four_bit(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Make QLoRA's setting: NormalFloat with quantized scales, products in `dtype`."""
    extras.require("qlora", "model.load_in_4bit = true")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def load_config(model: config.ModelConfig) -> PretrainedConfig:
    """Read a model's configuration, without weights."""
    location = model.location
    try:
        return AutoConfig.from_pretrained(location, revision=model.revision)
    except Exception as error:
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
    """Refuse a head that is not a projection, times `policy.logit_scale`.

    No layer is run, because a layer's kernel may not run on the loading device. Hidden states are scaled until logits
    reach 50, because a cap (30 in Gemma 2) shows on large logits only.
    """
    decoder, head, scale = base.get_decoder(), base.get_output_embeddings().weight, logit_scale(base)
    hidden: list[Tensor] = []

    def rescale(_module: nn.Module, _inputs: object, output: Any) -> None:
        states = output.last_hidden_state
        output.last_hidden_state = states * (50 / scale / F.linear(states, head).abs().max())
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
    expected = F.linear(hidden[0], head).float() * scale
    if not torch.allclose(expected, logits.float(), rtol=2e-2, atol=1e-2):
        settings, more = base.config.get_text_config(), "a bias, or a scale of another name"
        if cap := getattr(settings, "final_logit_softcapping", None) or getattr(settings, "logits_soft_cap", None):
            more = f"a soft cap at {cap:g}"
        raise StepalignError(
            f"model {base.config.model_type}: its logits are more than hidden · headᵀ ({more}), which is not supported"
        )


def _cannot_load(model: config.ModelConfig, reason: str) -> StepalignError:
    return StepalignError(f"model.name_or_path = {model.name_or_path!r}: {reason}")
