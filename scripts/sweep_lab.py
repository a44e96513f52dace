"""Train the lab's conditions at several learning rates, on validation problems that no comparison uses.

python scripts/sweep_lab.py --condition stepalign --condition refsol --rate 5e-4 --rate 2e-3
"""

import argparse
from pathlib import Path

from stepalign.lab import running
from stepalign.launch import train
from stepalign.report.run import read_run

VALIDATION = (
    "problems.evaluation.seed=3",
    "problems.evaluation.count=50",
    "evaluation.num_samples=4",
    "training.max_steps=16",
    "training.eval_steps=8",
    "probe.num_rollouts=1",
)


def main() -> None:
    """Train, and print Avg@4 with its interval at every evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", action="append", required=True)
    parser.add_argument("--rate", action="append", type=float, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/lab-sweep"))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    for condition in arguments.condition:
        for rate in arguments.rate:
            own = [*VALIDATION, *arguments.overrides, f"optimizer.lr={rate}"]
            settings = running.settings_of(condition, 0, arguments.out / f"lr-{rate:g}", own)
            train(settings)
            evaluations = read_run(settings.folder).evaluations
            accuracies = ", ".join(f"{evaluation.measures['avg']:.1%}" for evaluation in evaluations)
            print(f"{condition:<20} lr {rate:<8g} {accuracies}", flush=True)


if __name__ == "__main__":
    main()
