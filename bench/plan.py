"""What `stepalign plan --hardware this` says of a run, beside what that very run then takes.

For each case a short run in a process of its own, so that its peak memory is its own; then, in another, the plan with
the lengths of that run (`--like`). A step's figures are the median over the run's steps, the first one, which warms up,
left out. Repeats go round all the cases, so that the machine's mood falls on all alike.

    python bench/plan.py                       # all cases, three rounds
    OMP_NUM_THREADS=1 python bench/plan.py --processor-time --case lab lab-grpo

With `--processor-time` both sides count the seconds of their own thread instead of the clock's, for a machine that is
shared with other work. What other processes do for a run (grading) is then left out of both.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

SMOL = ["recipes/smollm2-sums.toml", "training.max_steps=3", "training.rollouts_per_step=16", "problems.holdout=4"]
LAB = ["src/stepalign/lab/recipes/stepalign.toml", "training.max_steps=6"]
GRPO = ['objective={ kind = "grpo" }', "training.num_generations=4"]
CHECKPOINTING = "training.gradient_checkpointing=true"
CASES = {
    "smollm2": SMOL,
    "smollm2-checkpointing": [*SMOL, CHECKPOINTING],
    "smollm2-grpo": [*SMOL, *GRPO],
    "lab": LAB,
    "lab-checkpointing": [*LAB, CHECKPOINTING],
    "lab-grpo": ["src/stepalign/lab/recipes/grpo.toml", "training.max_steps=6"],
}
"""Recipes with overrides."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.case[0], options.out)))
        return
    found: dict[str, list[dict[str, dict[str, float]]]] = {case: [] for case in options.case}
    for _ in range(options.repeats):
        for case, rounds in found.items():
            with TemporaryDirectory() as out:
                rounds.append({side: apart(side, case, out, options.processor_time) for side in SIDES})
            show(case, rounds)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


def apart(side: str, case: str, out: str, processor_time: bool) -> dict[str, float]:
    environment = dict(os.environ)
    if processor_time:  # read by every Python that is started from here
        Path(out, "sitecustomize.py").write_text("import time\ntime.perf_counter = time.process_time\n")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (out, environment.get("PYTHONPATH"))))
    command = [sys.executable, __file__, "--side", side, "--case", case, "--out", out]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if answer.returncode:
        sys.exit(answer.stderr)
    figures: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return figures


def show(case: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    print(f"\n{case}, {os.cpu_count()} cores, {len(rounds)} rounds: medians, and the ratio's least and most")
    for name in rounds[0]["measured"]:
        pairs = [(each["planned"].get(name, 0.0), each["measured"][name]) for each in rounds]
        ratios = [estimate / truth for estimate, truth in pairs]
        estimate, truth = (median(column) for column in zip(*pairs, strict=True))
        print(
            f"{name:<12} {estimate:12.4g} {truth:12.4g}   {median(ratios):5.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        )
    print(f"the plan took {median(each['planned']['took'] for each in rounds):.0f} s", flush=True)


def measured(case: str, out: Path) -> dict[str, float]:
    """The run itself."""
    from contextlib import ExitStack

    from stepalign import config
    from stepalign.evaluation.metrics import Evaluation
    from stepalign.trainer.loop import Trainer
    from stepalign.trainer.run_folder import Run

    evaluations = []

    class Timed(Trainer):
        def evaluate(self) -> Evaluation | None:
            start = time.perf_counter()
            found = super().evaluate()
            evaluations.append(time.perf_counter() - start)
            return found

    settings = config.load(Path(CASES[case][0]), [*CASES[case][1:], f"output_dir={out}", "name=run"])
    with ExitStack() as stack:
        run = Run(settings)
        stack.callback(run.close)
        Timed(settings, run, stack).run_all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    steps = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    warm = [step for step in steps if step["step"] > 1 and "student" in step["seconds"]]
    taken = {name: median(step["seconds"][name] for step in warm) for name in warm[0]["seconds"] if name != "critique"}
    counted = {"sample": "completion_tokens", "teacher": "teacher_tokens", "student": "student_tokens"}
    return {
        **{f"{name}, s": seconds for name, seconds in taken.items()},
        "step, s": median(sum(step["seconds"].values()) for step in warm),
        **{f"{name}, tokens": median(step[key] for step in warm) for name, key in counted.items() if key in warm[0]},
        "evaluation, s": evaluations[-1],
        "TFLOP": median(step["cost"]["flops"] for step in warm) / 1e12,
        "peak, GB": peak,
    }


def planned(case: str, out: Path) -> dict[str, float]:
    """What the plan says of it."""
    from stepalign import config
    from stepalign.planning import estimate, lengths
    from stepalign.planning.rehearsal import rehearse
    from stepalign.planning.shape import shape

    settings = config.load(Path(CASES[case][0]), [*CASES[case][1:], f"output_dir={out}", "name=run"])
    start = time.monotonic()
    sizes = shape(settings.model, settings.lora, gpu=False)
    assumed, problems = lengths.lengths(settings, like=settings.folder)
    device = rehearse(settings, sizes, assumed, problems * settings.evaluation.num_samples)
    found = estimate.plan(settings, sizes, assumed, device, evaluation_problems=problems)
    return {
        **{f"{name}, s": stage.seconds for name, stage in found.stages.items()},
        "step, s": found.step_seconds,
        **{f"{name}, tokens": stage.tokens for name, stage in found.stages.items()},
        "evaluation, s": found.evaluation.seconds,
        "TFLOP": sum(stage.flops for stage in found.stages.values()) / 1e12,
        "peak, GB": max(sum(found.memory.values()), sum(found.sampling_memory.values())) / 1e9,
        "took": time.monotonic() - start,
    }


SIDES = {"measured": measured, "planned": planned}

if __name__ == "__main__":
    main()
