"""Measure the lab's stages: tokens a second of each, a step's seconds, and the run's peak memory.

python bench/lab.py
"""

import argparse
import resource
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from stepalign.lab import running
from stepalign.report.run import read_run
from stepalign.report.summary import Summary
from stepalign.trainer.build import build_trainer
from stepalign.trainer.run_folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", default="stepalign")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        own = [*options.overrides, f"training.max_steps={options.steps}", "training.eval_steps=0"]
        settings = running.settings_of(options.condition, 0, Path(folder), own)
        run = RunFolder(settings)
        stack.callback(run.close)
        build_trainer(settings, run, stack).train()
        summary = Summary(read_run(settings.folder))
    for stage in summary.stages:
        speed = f"{stage.tokens_per_second:,.0f} tokens/s" if stage.tokens_per_second else ""
        print(f"{stage.name:<12} {stage.seconds / options.steps:7.3f} s a step   {speed}")
    print(f"{'step':<12} {summary.seconds / options.steps:7.3f} s")
    # The grader is a process of its own: its peak comes on top.
    peaks = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"{'peak memory':<12} {peaks[0]:7.2f} GiB, and {peaks[1]:.2f} GiB of the largest child")


if __name__ == "__main__":
    main()
