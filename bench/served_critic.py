"""Measure a served critic in the whole training loop: checks, prefix cache, speed.

    python -m vllm.entrypoints.openai.api_server --model models/SmolLM2-135M-Instruct --port 8123 …
    python bench/served_critic.py http://127.0.0.1:8123/v1 models/SmolLM2-135M-Instruct

Short trainings on SmolLM2-135M's sums, first in copy mode, then in splice mode, on the same seeds. From vLLM's
`/metrics` come prompt tokens, tokens found in the prefix cache, and tokens written; from the run's critiques the
outcome of each check. `docs/serving-a-critic.md` says how the server is started on a CPU.
"""

import argparse
import json
import re
import time
import urllib.request
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from stepalign import config
from stepalign.critics import stats
from stepalign.io import read_jsonl
from stepalign.launch import train
from stepalign.records import CriticResult, Critique, CritiqueFailure

_COUNTERS = ("prompt_tokens", "prefix_cache_queries", "prefix_cache_hits", "generation_tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url")
    parser.add_argument("model", help="the name under which the server serves it")
    parser.add_argument("--modes", nargs="+", default=["copy", "splice"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=8, help="a step")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    found = {mode: _run(arguments, mode) for mode in arguments.modes}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def _run(arguments: argparse.Namespace, mode: str) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        settings = config.load(
            Path("recipes/smollm2-sums.toml"),
            [
                f"output_dir={folder}",
                "problems.holdout=0",
                f"training.max_steps={arguments.steps}",
                f"training.rollouts_per_step={arguments.rollouts}",
                "critic.kind=openai",
                f"critic.base_url={arguments.base_url}",
                f"critic.model={arguments.model}",
                f"critic.mode={mode}",
                f"critic.max_tokens={arguments.max_tokens}",
                "critic.on_failure=drop",
                "critic.max_failure_share=1",
            ],
        )
        before = _counters(arguments.base_url)
        start = time.perf_counter()
        train(settings)
        seconds = time.perf_counter() - start
        spent = {name: value - before[name] for name, value in _counters(arguments.base_url).items()}
        steps = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
        answers: list[Critique | CritiqueFailure] = [
            answer
            for path in sorted((settings.folder / "critiques").glob("*.jsonl"))
            for answer in read_jsonl(path, CriticResult)  # type: ignore[arg-type]
        ]
    critic_s = sum(step["seconds"].get("critique", 0.0) for step in steps)
    outcomes = sum((Counter(step["outcomes"]) for step in steps), Counter[str]())
    figures = {
        "seconds": seconds,
        "critic seconds": critic_s,
        "tokens a second": spent["generation_tokens"] / critic_s,
        "prefix cache": spent["prefix_cache_hits"] / max(spent["prefix_cache_queries"], 1),
        "prompt tokens": spent["prompt_tokens"],
        "written tokens": spent["generation_tokens"],
        "trained": outcomes["trained"],
        "dropped": outcomes["dropped"],
    }
    print(f"\n{mode}: {stats.table(stats.summarize(answers))}\n")
    for name, value in figures.items():
        print(f"{name:<18}{value:,.2f}")
    return figures


def _counters(base_url: str) -> dict[str, float]:
    """vLLM's counters, all models and engines together."""
    url = base_url.removesuffix("/v1") + "/metrics"
    with urllib.request.urlopen(url, timeout=30) as response:
        text = response.read().decode()
    return {
        name: sum(float(value) for value in re.findall(rf"^vllm:{name}_total(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))
        for name in _COUNTERS
    }


if __name__ == "__main__":
    main()
