"""Credit beside the bare forward passes over the same tokens, and the memory it takes beyond the model.

Time: the log-probabilities of every completion token, beside the decoder alone (no logits) and beside the model's own
forward pass (logits of every position), in the same batches, taking turns. Memory: the most that a fresh process held
beyond what it held before, for rollouts of 1,000 tokens behind prompts of 400; and for the chunks alone, with a head of
151,936 entries. Token ids are random: neither time nor memory depends on them.

    python bench/probe.py
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from objective import high_water_bytes, interval, machine
from stepalign import config
from stepalign.collate import collate, split_views
from stepalign.losses.log_probs import scores
from stepalign.models import load_base
from stepalign.policy import Policy
from stepalign.scoring import BATCH_TOKENS, score_views
from stepalign.views import View

LARGE_VOCABULARY = 151_936


def views(count: int, prompt: tuple[int, int], completion: tuple[int, int]) -> list[View]:
    draws = random.Random(0)
    made = []
    for _ in range(count):
        prompt_ids, ids = (
            tuple(draws.randrange(40_000) for _ in range(draws.randint(*span))) for span in (prompt, completion)
        )
        made.append(View(prompt_ids=prompt_ids, completion_ids=ids, loss_start=0, loss_stop=len(ids)))
    return made


def load(path: str) -> Policy:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Policy(load_base(config.ModelConfig(name_or_path=path), device)).eval()


@torch.no_grad()
def times(policy: Policy, seen: list[View], repeats: int, top: int) -> dict[str, list[float]]:
    device = policy.head.device
    by_length = sorted(seen, key=lambda view: -len(view.input_ids))
    groups = [collate(group).to(device) for group in split_views(by_length, BATCH_TOKENS[device.type])]
    contenders: dict[str, Callable[[], object]] = {
        "credit": lambda: score_views(policy, seen),
        f"credit, top {top}": lambda: score_views(policy, seen, top=top),
        "decoder alone": lambda: [policy(batch) for batch in groups],
        "forward with logits": lambda: [
            policy.base(input_ids=batch.input_ids, use_cache=False).logits.sum().item() for batch in groups
        ],
    }
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            measured[name].append(time.perf_counter() - start)
    return measured


def peak(path: str, what: str) -> int:
    """Bytes beyond what this process held before. Code and thread pools are loaded by a small run before."""
    if what == "chunks":
        head = torch.randn(LARGE_VOCABULARY, 576)
        hidden, targets = torch.randn(1000, 576), torch.randint(LARGE_VOCABULARY, (1000,))
        run: Callable[[], object] = lambda: scores(hidden, head, targets)  # noqa: E731
        scores(hidden[:2], head[:64], targets[:2] % 64)
    else:
        policy = load(path)
        seen = views(4, (400, 400), (1000, 1000))
        run = lambda: score_views(policy, seen)  # noqa: E731
        score_views(policy, views(1, (8, 8), (8, 8)))
        policy.head.sum()  # a mapped file counts once it was read
        for parameter in policy.parameters():
            parameter.sum()
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_bytes()
    run()
    return high_water_bytes() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=("credit", "chunks"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.model, options.peak))
        return

    policy = load(options.model)
    seen = views(options.views, (150, 450), (60, 200))
    measured = times(policy, seen, options.repeats, options.top)
    tokens = sum(len(view.input_ids) for view in seen)
    where = machine(policy.head.device.type)
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(f"{options.views} views, {tokens:,} tokens, {options.repeats} rounds; median [least, most]")
    for name, values in measured.items():
        seconds = interval(values)
        ratio = interval([a / b for a, b in zip(measured["credit"], values, strict=True)])
        print(
            f"{name:<20} {seconds['median']:6.2f} s [{seconds['least']:.2f}, {seconds['most']:.2f}]   credit takes of "
            f"it {ratio['median']:.2f} [{ratio['least']:.2f}, {ratio['most']:.2f}]"
        )
    peaks = {}
    for what in ("credit", "chunks"):
        command = [sys.executable, __file__, "--model", options.model, "--peak", what]
        peaks[what] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"peak extra memory, {what}: {peaks[what] / 1e6:,.0f} MB")
    if options.json:
        everything = {"machine": where, "tokens": tokens, "seconds": measured, "peak_bytes": peaks}
        options.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    main()
