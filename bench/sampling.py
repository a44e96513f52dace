"""Tokens a second of the sampler beside transformers' own `generate`, on the same prompts.

`generate` decodes fixed batches until the last row ends; ours lets rows leave and (refill) others join. Two loads: one
batch of 32, as in a training step, and 96 requests at batch 32, as in an evaluation, where responses end at different
times.

    python bench/sampling.py
    python bench/sampling.py --prefix 500                        behind worked examples of 500 tokens
    python bench/sampling.py --decoding                          ours without `rollouts/token_pass.py`, with an adapter
    python bench/sampling.py --vllm                              vLLM in process, with and without seeds
    python bench/sampling.py --vllm http://localhost:8000/v1     the same of a server
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM

from stepalign import config, data, prompts
from stepalign.chat import load_chat
from stepalign.config import registry
from stepalign.distributed.process import SINGLE
from stepalign.models import load_base, load_policy, resolve_dtype
from stepalign.policy import ADAPTER
from stepalign.precision import set_matmul_precision
from stepalign.prompts.conversation import Turn
from stepalign.records import TokenIds
from stepalign.rollouts import Request
from stepalign.rollouts.token_pass import TokenPass
from stepalign.rollouts.transformers import TransformersSampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--prefix", type=int, default=0, help="tokens that all prompts begin with")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--precision", default="highest", help="ours alone: model.float32_matmul_precision")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=96, help="of vLLM")
    parser.add_argument("--vllm", nargs="?", const="in process", metavar="URL", help="measure vLLM instead")
    parser.add_argument("--decoding", action="store_true", help="compare with ours without `rollouts/token_pass.py`")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = config.ModelConfig(name_or_path=options.model)
    chat = load_chat(settings)
    template, _ = prompts.load("solver", frozenset({"problem"}))
    loaded = data.load(config.SumsConfig(count=max(96, options.requests), terms=4)).problems
    prompt_ids = [chat.prompt_ids([Turn("user", template.render(problem=problem.statement))]) for problem in loaded]
    prefix = (chat.encode_text(" ".join(problem.statement for problem in loaded)) * 9)[: options.prefix]
    prompt_ids = [(*prefix, *ids) for ids in prompt_ids]
    sampling = config.SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=options.tokens)
    if options.vllm:
        results = with_and_without_seeds(options, settings, chat.eos_ids, prompt_ids, sampling)
        return report(results, options, device)
    precision = set_matmul_precision(options.precision, device)
    if options.decoding:  # as in training
        loaded_model, adapter = load_policy(settings, config.LoraConfig(), 0, device).model, ADAPTER
    else:
        model = AutoModelForCausalLM.from_pretrained(settings.location, dtype=resolve_dtype("auto", device)).to(device)
        loaded_model, adapter = load_base(settings, device), None
    sampler = TransformersSampler(loaded_model, eos_ids=chat.eos_ids, batch_size=32)

    def ours(count: int) -> int:
        requests = [Request(id=str(n), prompt_ids=ids, seed=n) for n, ids in enumerate(prompt_ids[:count])]
        return sum(len(completion.ids) for completion in sampler.sample(requests, sampling, adapter=adapter))

    def ours_by_modules(count: int) -> int:
        with patch.object(TokenPass, "supports", return_value=False):
            return ours(count)

    def generate(count: int) -> int:
        torch.manual_seed(0)
        sampled = 0
        for first in range(0, count, 32):
            rows = prompt_ids[first : min(first + 32, count)]
            width = max(map(len, rows))
            padded = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
            output = model.generate(
                padded, attention_mask=mask, do_sample=True, temperature=1.0, top_p=0.95, top_k=0,
                max_new_tokens=options.tokens, eos_token_id=sorted(chat.eos_ids), pad_token_id=min(chat.eos_ids),
            )  # fmt: skip
            for row in output[:, width:].tolist():
                sampled += next((place + 1 for place, token in enumerate(row) if token in chat.eos_ids), len(row))
        return sampled

    other = ("by modules", ours_by_modules) if options.decoding else ("generate", generate)
    results: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for count in (32, 96):
            for name, sample in (other, ("stepalign", ours)):
                torch.set_float32_matmul_precision("highest" if sample is generate else precision)
                start = time.perf_counter()
                sampled = sample(count)
                results.setdefault(f"{name}, {count} requests", []).append(sampled / (time.perf_counter() - start))
    report(results, options, device)


def with_and_without_seeds(
    options: argparse.Namespace,
    model: config.ModelConfig,
    eos_ids: frozenset[int],
    prompt_ids: list[TokenIds],
    sampling: config.SamplingConfig,
) -> dict[str, list[float]]:
    """Sample the same prompts from vLLM with a seed for each request and without, in turns."""
    table: dict[str, Any] = {"kind": "vllm"}
    if options.vllm != "in process":
        table = {"kind": "vllm-server", "base_url": options.vllm}
    sampler = registry.build(
        registry.FAMILIES["sampler"].validate(table),
        model=model,
        dtype=resolve_dtype(model.dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        rank=16,
        seed=0,
        eos_ids=eos_ids,
        world=SINGLE,
    )
    results: dict[str, list[float]] = {}
    for repeat in range(-1, options.repeats):  # the first round warms up
        for seeded in (True, False):
            sampler.seeded = seeded
            requests = [Request(id=str(n), prompt_ids=ids, seed=n) for n, ids in enumerate(prompt_ids)]
            start = time.perf_counter()
            sampled = sum(len(completion.ids) for completion in sampler.sample(requests, sampling, adapter=None))
            if repeat >= 0:
                name = f"vLLM, {'seeded' if seeded else 'unseeded'}"
                results.setdefault(name, []).append(sampled / (time.perf_counter() - start))
    sampler.close()
    return results


def report(results: dict[str, list[float]], options: argparse.Namespace, device: torch.device) -> None:
    print(f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {options.repeats} repeats")
    for name, speeds in results.items():
        print(f"{name:<24} {median(speeds):7.1f} tokens/s  [{min(speeds):.1f}, {max(speeds):.1f}]")
    if options.json:
        summary: dict[str, Any] = {"device": str(device), "tokens_per_second": results}
        options.json.write_text(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
