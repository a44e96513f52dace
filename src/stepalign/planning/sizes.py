"""A plan's inputs: sizes of a model, peak rates of GPUs, and lengths of texts.

Parameters are counted on a model without storage. Lengths are counted, taken from an earlier run, or the recipe's caps.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from stepalign import config, contexts
from stepalign.chat import load_chat
from stepalign.config.registry import FAMILIES
from stepalign.data import prepare
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl
from stepalign.models import load_config
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Rollout
from stepalign.report.run import read_run


class Gpu(NamedTuple):
    """A GPU's peak rates by its maker: dense bfloat16 operations a second, bytes a second, bytes."""

    flops: float
    bandwidth: float
    memory: float

    def pass_seconds(self, flops: float) -> float:
        """Return the seconds of forward and backward passes."""
        return flops / (self.flops * PASS_SHARE)


GPUS = {
    "h200": Gpu(989e12, 4.8e12, 141e9),
    "h100": Gpu(989e12, 3.35e12, 80e9),
    "a100": Gpu(312e12, 2.04e12, 80e9),
    "l40s": Gpu(362e12, 0.864e12, 48e9),
    "rtx4090": Gpu(165e12, 1.008e12, 24e9),
}
PASS_SHARE, DECODE_SHARE = 0.4, 0.5
"""Shares that are assumed to be reached: of `Gpu.flops` in passes, of `Gpu.bandwidth` in decoding."""
EAGER_LAYER_S = 1e-3
"""Assumed seconds in which Python calls one layer's kernels."""
_COUNTED = 64
"""Problems whose prompts and solutions are tokenized."""
_JUDGEMENT, _INSTRUCTIONS = 250, 960
"""Tokens of a critique beside what it copies, and of the critic's template."""
_FOUR_BIT = 0.516
"""Bytes of a weight in NormalFloat with quantized scales (QLoRA: 4.127 bits)."""
_SPLICED = 0.5
"""Length of a critique in splice mode over one that copies."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a decoder with an adapter."""

    parameters: int
    """All of the base's, tied ones once."""
    projections: int
    """Weights of the layers' projections, without the head."""
    adapter: int
    rank_sum: int
    """Sum of the ranks of one layer's adapters."""
    layers: int
    hidden: int
    intermediate: int
    query_width: int
    """Width of all query heads."""
    key_width: int
    """Width of all key heads, and of all value heads."""
    qk_norm: bool
    """Queries and keys have norms of their own (Qwen3)."""
    vocab: int
    weight_bytes: int
    projection_bytes: float
    """Of one weight of the layers' projections: `weight_bytes`, or half a byte and its scales."""

    @property
    def trained(self) -> int:
        """Parameters that are trained: the adapter's, or all."""
        return self.adapter or self.parameters

    @property
    def bytes(self) -> float:
        """Bytes of the base's weights."""
        return self.projection_bytes * self.projections + self.weight_bytes * (self.parameters - self.projections)

    def forward_flops(self, length: float) -> float:
        """Return the operations of one sequence through the layers, without the head."""
        return 2 * self.projections * length + 2 * self.layers * self.query_width * length**2

    def decode_flops(self, context: float) -> float:
        """Return the operations of one more token behind a context, through layers and head."""
        return 2 * (self.projections + self.vocab * self.hidden) + 4 * self.layers * self.query_width * context

    def decode_step_s(self, gpu: Gpu, rows: float, context: float, *, eager: bool) -> float:
        """Return the seconds of one more token for every row, bound by operations, bytes read, or calls of kernels.

        `eager`: each layer's kernels are called from Python, as transformers does and vLLM does not.
        """
        read = self.weight_bytes * (self.projections + self.vocab * self.hidden) + rows * context * self.cache_bytes
        calls = self.layers * EAGER_LAYER_S if eager else 0.0
        return max(gpu.pass_seconds(rows * self.decode_flops(context)), read / (gpu.bandwidth * DECODE_SHARE), calls)

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.key_width * self.weight_bytes

    @property
    def layer_activation_bytes(self) -> int:
        """Bytes that the backward pass keeps of one token in one layer, without checkpointing.

        A frozen base's projections keep nothing; the adapters (or projections that are trained) keep their inputs,
        norms, attention and the gate what they multiply. A float32 adapter on a half-precision base keeps a float32
        copy for each projection.
        """
        h, i, q, k = self.hidden, self.intermediate, self.query_width, self.key_width
        normed = q + k if self.qk_norm else 0
        if self.weight_bytes == 4:
            return 4 * (4 * h + 2 * q + 2 * k + 4 * i + self.rank_sum + normed)
        return 4 * (7 * h + q + i + self.rank_sum + normed) + 2 * (2 * q + 2 * k + 3 * i)


def model_size(model: config.ModelConfig, lora: config.LoraConfig | None, *, gpu: bool) -> ModelSize:
    """Read a model's sizes from its configuration; no weights are loaded.

    Without `lora` there is no adapter, and all weights are trained. `dtype = "auto"` is then float32, else bfloat16 on
    a GPU.
    """
    settings = load_config(model)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(settings)
    linear = {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    targets = lora.target_modules if lora else ()
    adapted = [module for name, module in linear.items() if name.rpartition(".")[2] in targets]
    rank = lora.r if lora else 0
    if lora and not adapted:
        raise StepalignError(f"lora.target_modules = {list(lora.target_modules)}: the model has none of them")
    text, layers = settings.get_text_config(), base.get_decoder().layers
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    half = model.dtype in ("bfloat16", "float16") or (model.dtype == "auto" and gpu and lora is not None)
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in base.parameters()),
        projections=sum(module.weight.numel() for module in layers.modules() if isinstance(module, nn.Linear)),
        adapter=sum(rank * (module.in_features + module.out_features) for module in adapted),
        rank_sum=rank * len(adapted) // len(layers),
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query_width=head_dim * text.num_attention_heads,
        key_width=head_dim * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        qk_norm=any(name.endswith("q_norm") for name, _ in layers.named_modules()),
        vocab=text.vocab_size,
        weight_bytes=2 if half else 4,
        projection_bytes=_FOUR_BIT if model.load_in_4bit else 2 if half else 4,
    )


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean tokens of one rollout's texts."""

    prompt: float
    completion: float
    max_completion: float
    teacher_prompt: float
    critic_prompt: float = 0.0
    critique: float = 0.0
    """Tokens that the critic writes, thinking included."""
    evaluation: float
    """A completion under the evaluation's settings."""
    read_share: float = 1.0
    """Share of a completion up to its last token in the loss."""
    learned_share: float = 1.0
    """Share of rollouts that the loss uses."""
    feedback: float = 0.0
    """Tokens of problem, attempt and critique, where the policy learns to write critiques (`rltf-fm`)."""
    feedback_share: float = 1.0
    """Share of rollouts whose critique is learned."""

    @property
    def feedback_written(self) -> float:
        """Tokens of the critique that the policy learns to write."""
        return self.feedback - self.prompt - self.completion


def lengths(
    settings: config.Recipe, *, from_run: Path | None = None, completion_tokens: int | None = None
) -> tuple[Lengths, int, int]:
    """Return a rollout's lengths under a recipe, and the numbers of its training and its evaluation problems."""
    train, evaluation, _ = prepare(settings.problems)
    prompt = SolverPrompt(settings.prompts)
    chat = load_chat(settings.model, prompt.before)
    sample, thinking = train[:_COUNTED], settings.sampling.enable_thinking

    def mean_tokens(texts: Iterable[str]) -> float:
        return fmean(len(chat.encode_text(text)) for text in texts)

    given = Lengths(
        prompt=fmean(len(chat.prompt_ids(prompt.turns(problem), thinking=thinking)) for problem in sample),
        completion=settings.sampling.max_new_tokens,
        max_completion=settings.sampling.max_new_tokens,
        teacher_prompt=0.0,
        evaluation=settings.evaluation.sampling.max_new_tokens,
    )
    if from_run is not None:
        given = _of_run(from_run, given)
    if completion_tokens:
        given = replace(
            given, completion=completion_tokens, max_completion=completion_tokens, evaluation=completion_tokens
        )
    solution = mean_tokens(problem.solution or problem.answer for problem in sample)
    copied = given.completion + _JUDGEMENT
    spliced = isinstance(settings.critic, config.LLMCriticConfig) and settings.critic.mode == "splice"
    shown = copied if contexts.load(settings.context.design).needs_critique else solution
    statement = mean_tokens(problem.statement for problem in sample)
    feedback = given.feedback
    if isinstance(settings.algorithm, config.RLTFFMConfig):
        feedback = feedback or min(given.prompt + given.completion + copied, settings.teacher.max_length)
    return (
        replace(
            given,
            teacher_prompt=min(
                given.teacher_prompt or given.prompt + shown, settings.teacher.max_length - given.completion
            ),
            critic_prompt=_INSTRUCTIONS + statement + solution + given.completion,
            critique=copied * (_SPLICED if spliced else 1.0),
            feedback=feedback,
        ),
        len(train),
        len(evaluation),
    )


def _of_run(folder: Path, assumed: Lengths) -> Lengths:
    try:
        prompts, completions = zip(
            *(
                (len(rollout.prompt_ids), len(rollout.completion_ids))
                for file in sorted((folder / "rollouts").glob("*.jsonl"))
                for rollout in read_jsonl(file, Rollout)
            ),
            strict=True,
        )
        run = read_run(folder)
        algorithm: Any = FAMILIES["algorithm"].validate(run.recipe["algorithm"])
        learned, feedback = (
            sum(step["outcomes"].get(name, 0) for step in run.steps) for name in ("trained", "feedback")
        )
        prompt, completion = fmean(prompts), fmean(completions)
        student, teacher = (
            sum(step.get(name, 0) for step in run.steps) for name in ("student_tokens", "teacher_tokens")
        )
        student /= algorithm.num_updates
        if feedback:  # the policy's other passes are over whole rollouts
            rest, read = student - learned * (prompt + completion), completion
            assumed = replace(assumed, feedback=rest / feedback, feedback_share=feedback / len(completions))
        else:  # a view ends before the last token in the loss
            read = student / learned - prompt
        return replace(
            assumed,
            prompt=prompt,
            completion=completion,
            max_completion=max(completions),
            teacher_prompt=max(teacher / (learned or 1) / algorithm.teacher_readings - read, 0.0),
            evaluation=fmean([e.measures["length"].value for e in run.evaluations] or [assumed.evaluation]),
            read_share=read / completion,
            learned_share=learned / len(completions),
        )
    except (ValueError, KeyError, ZeroDivisionError) as error:
        raise StepalignError(f"{folder}: not the folder of a run that made a step: {error}") from None
