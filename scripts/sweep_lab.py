"""Learning rates for the lab's conditions, tried on validation problems that no comparison uses.

python scripts/sweep_lab.py --condition stepalign --condition refsol --rate 5e-4 --rate 2e-3
"""

import argparse
from pathlib import Path

from stepalign.lab import running
from stepalign.report.run import read_run
from stepalign.trainer.loop import train

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
            shown = [evaluation.measures["avg"] for evaluation in read_run(settings.folder).evaluations]
            reached = ", ".join(f"{one.value:.1%} [{one.low:.1%}, {one.high:.1%}]" for one in shown)
            print(f"{condition:<20} lr {rate:<8g} {reached}", flush=True)


if __name__ == "__main__":
    main()
