"""A probe of four contexts, with shared prefixes and bfloat16 products, beside one without either.

Without them each view is a row of its own in float32, as the probe read them until November 2026. Sides take turns,
each in a process of its own.

    stepalign plant model_solutions.jsonl --model models/SmolLM2-135M-Instruct --limit 24 --out planted
    python bench/probe_contexts.py planted --problems train.jsonl
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import stepalign
from objective import interval, machine
from stepalign.policy import Policy

SIDES = ("alone", "shared")
CONTEXTS = ["refsol", "stepalign", "quoted", "verdicts"]


def run(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Probe in this process, and return the cost of the credit."""
    if side == "alone":
        Policy.shares_prefixes = False  # type: ignore[assignment]
    precision = "auto" if side == "shared" else "highest"
    overrides = [f"model.name_or_path={options.model}", f"model.float32_matmul_precision={precision}"]
    overrides += [f"problems.train.path={options.problems}"] if options.problems else []
    settings = stepalign.load_recipe(options.recipe, overrides)
    with tempfile.TemporaryDirectory() as folder:
        probe = stepalign.probe(
            settings, Path(folder), rollouts=options.rollouts, contexts=CONTEXTS, limit=options.limit
        )
    return dict(probe.manifest["cost"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", type=Path)
    parser.add_argument("--recipe", default="recipes/probe/gsm8k.toml")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--problems", type=Path, help="GSM8K's raw file, where the hub is out of reach")
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run(options.side, options)))
        return
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side in SIDES:
            command = [sys.executable, *sys.argv, "--side", side]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            cost = json.loads(answer.splitlines()[-1])
            seconds[side].append(cost["seconds"])
            print(side, cost, flush=True)
    print(", ".join(f"{key} {value}" for key, value in machine("cpu").items()))
    for side, values in seconds.items():
        print(side, interval(values))
    print("ratio", interval([a / b for a, b in zip(seconds["shared"], seconds["alone"], strict=True)]))


if __name__ == "__main__":
    main()
