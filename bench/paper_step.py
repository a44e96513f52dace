"""A whole step at the paper's size: a Qwen3-1.7B-shaped model with random weights, the paper's lengths, LoRA r 64.

For a GPU. Tokens a second and memory of sampling, teacher, student and optimizer, and the share of the card's peak that
learning reaches (model FLOPs utilization: 2 FLOPs a parameter and token forward, and as many again backward, because
frozen weights have no gradient; attention is left out, so the figure is a lower bound).

    python bench/paper_step.py --peak-tflops 989      # H100 and H200, bfloat16 dense
    python bench/paper_step.py --shape tiny           # on a CPU: does it run?
"""

import argparse
import json
import time
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config

from stepalign import config
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample, DistillationLoss
from stepalign.console import Console
from stepalign.distributed.strategy import DataParallel
from stepalign.models import resolve_dtype
from stepalign.policy import ADAPTER, Policy
from stepalign.rollouts import Request
from stepalign.rollouts.transformers import TransformersSampler
from stepalign.trainer.accumulation import adamw, local_passes, update
from stepalign.views import View

SHAPES = {
    "qwen3-1.7b": {
        "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    },
    "tiny": {
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    },
}  # fmt: skip
LENGTHS = {
    "qwen3-1.7b": {"prompt": 256, "context": 4096, "completion": 2048},
    "tiny": {"prompt": 16, "context": 48, "completion": 32},
}
"""Tokens: of the student's prompt, of what the teacher's prompt has beyond it, and of the completion (paper: 2,048)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-1.7b")
    parser.add_argument("--rollouts", type=int, default=32, help="a step's (paper: 32)")
    parser.add_argument("--micro-batch", type=int, default=2, help="rollouts in one pass (paper: 2)")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep activations instead of recomputing them")
    parser.add_argument("--peak-tflops", type=float, help="the card's, dense, in the model's precision")
    parser.add_argument("--repeats", type=int, default=3, help="learning steps, after one that warms up")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    device = PartialState().device
    policy = build(options.shape, device)
    lengths = LENGTHS[options.shape]
    settings = config.Recipe(
        name="paper-step",
        model=config.ModelConfig(name_or_path="random weights"),
        problems=config.ProblemsConfig(train=config.SumsConfig()),
        training=config.TrainingConfig(rollouts_per_step=options.rollouts, micro_batch_size=options.micro_batch),
    )
    found = {"device": device_name(device), **sample(policy, lengths, options.rollouts)}
    if not options.no_checkpointing:
        policy.base.gradient_checkpointing_enable({"use_reentrant": False})
    found |= learn(policy, lessons(policy, lengths, options.rollouts), settings, options)
    for name, value in found.items():
        print(f"{name:<28} {value if isinstance(value, str) else f'{value:,.2f}'}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


def build(shape: str, device: torch.device) -> Policy:
    torch.manual_seed(0)
    dtype = resolve_dtype("auto", device)
    with torch.device(device):
        shaped = Qwen3Config(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=40_960)
        base = AutoModelForCausalLM.from_config(shaped, dtype=dtype, attn_implementation="sdpa").requires_grad_(False)
    targets = list(config.LoraConfig().target_modules)
    return Policy(get_peft_model(base, LoraConfig(r=64, lora_alpha=128, target_modules=targets, task_type="CAUSAL_LM")))


def lessons(policy: Policy, lengths: dict[str, int], count: int) -> list[DistillationExample]:
    vocab = policy.head.shape[0]

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocab, (length,)).tolist())

    made = []
    for number in range(count):
        prompt, completion = ids(lengths["prompt"]), ids(lengths["completion"])
        span = {"completion_ids": completion, "loss_start": 0, "loss_stop": len(completion)}
        student = View(prompt_ids=prompt, **span)
        teacher = View(prompt_ids=(*prompt, *ids(lengths["context"])), **span)
        made.append(DistillationExample(rollout_id=str(number), student=student, teacher=teacher))
    return made


def sample(policy: Policy, lengths: dict[str, int], count: int) -> dict[str, float]:
    """Every row to the cap: random weights seldom end."""
    policy.eval()
    sampler = TransformersSampler(policy.model, eos_ids=frozenset({0}), batch_size=count)
    sampling = config.SamplingConfig(temperature=1.1, top_p=0.95, top_k=20, max_new_tokens=lengths["completion"] // 8)
    prompts = torch.randint(1, policy.head.shape[0], (count, lengths["prompt"])).tolist()
    requests = [Request(id=str(n), prompt_ids=tuple(ids), seed=n) for n, ids in enumerate(prompts)]
    start = time.perf_counter()
    drawn = sum(len(completion.ids) for completion in sampler.sample(requests, sampling, adapter=ADAPTER))
    return {"sampling tokens/s": drawn / (time.perf_counter() - start)}


def learn(
    policy: Policy,
    taught: list[DistillationExample],
    settings: config.Recipe,
    options: argparse.Namespace,
) -> dict[str, float]:
    optimizer = adamw(policy, settings.optimizer)
    device = policy.head.device
    cuda = device.type == "cuda"
    resting = torch.cuda.memory_allocated() if cuda else 0
    spent: dict[str, float] = {}
    metrics: dict[str, float] = {}
    for repeat in range(options.repeats + 1):
        if cuda and repeat == 1:
            torch.cuda.reset_peak_memory_stats()
        with Console(1) as console:
            strategy = DataParallel(device=device)
            metrics = update(
                DistillationLoss(config.DistillationConfig()),
                policy,
                strategy,
                optimizer,
                StepExamples(examples=taught),
                local_passes(strategy, taught, settings.training.micro_batch_size, None),
                console,
                loss_agg_mode="seq-mean-token-mean",
                max_grad_norm=settings.optimizer.max_grad_norm,
            )
        if repeat:
            for stage in ("teacher", "student", "optimizer"):
                spent[stage] = spent.get(stage, 0.0) + console.seconds[stage] / options.repeats
    parameters = sum(p.numel() for name, p in policy.named_parameters() if "lora_" not in name)
    flops = 2 * parameters * (metrics["teacher_tokens"] + 2 * metrics["student_tokens"])
    learning = spent["teacher"] + spent["student"]
    found = {
        "teacher tokens/s": metrics["teacher_tokens"] / spent["teacher"],
        "student tokens/s": metrics["student_tokens"] / spent["student"],
        "optimizer ms": 1000 * spent["optimizer"],
        "learning s a step": sum(spent.values()),
        "achieved TFLOP/s": flops / learning / 1e12,
    }
    if options.peak_tflops:
        found["model FLOPs utilization"] = flops / learning / 1e12 / options.peak_tflops
    if cuda:
        found["weights, adapter GB"] = resting / 1e9
        found["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    main()
