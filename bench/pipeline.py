"""Hold simulated steps (`planning.pipeline`) against measured ones, and show how a step grows at the paper's size.

A run whose critic answers at once shows when each rollout ends and how long learning takes. From that alone steps are
simulated with slower critics, more or fewer replicas of them, without overlap, and with other numbers of rollouts. Then
such steps are run. A replica answers one request at a time.

    OMP_NUM_THREADS=1 python bench/pipeline.py            # about three minutes on one core
    python bench/pipeline.py --paper                      # assumed rates, nothing is run
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import Qwen3Config

from overlap import IN_FLIGHT, ROLLOUTS, spent, steps_of, wall
from paper_step import SHAPES
from stepalign import config
from stepalign.planning import estimate
from stepalign.planning.pipeline import enough_concurrency, simulate_step
from stepalign.planning.sizes import Lengths, model_size

LEARNING = ("teacher", "student", "optimizer")
MICRO_BATCH = 8
LENGTHS = Lengths(
    prompt=256,
    completion=1024,
    max_completion=2048,
    teacher_prompt=2200,
    critic_prompt=3200,
    critique=1500,
    evaluation=0,
)
"""Tokens of a rollout's texts, assumed; a critique copies the rollout, so it is longer than that."""


def compare(steps: int) -> None:
    """Print simulated and measured seconds of each case."""
    with tempfile.TemporaryDirectory() as folder:
        plain = steps_of(Path(folder) / "plain", 0.0, overlap=True, steps=steps)
        # The mean time at which the first, the second … rollout of a step ends, and that of learning.
        ends = np.mean([sorted(start for start, _ in step["answered"]) for step in plain], axis=0)
        learning = statistics.median(spent(step, *LEARNING) for step in plain)
        latency = float(ends[-1]) * IN_FLIGHT / ROLLOUTS
        enough = enough_concurrency(
            ends.tolist(), [latency] * ROLLOUTS, micro_batch_size=MICRO_BATCH, learning=learning
        )
        print(f"sampling ends after {ends[-1]:.2f} s, learning takes {learning:.2f} s; a critique {latency:.2f} s;")
        print(f"{enough} replicas are enough, says the simulation\n")
        print("rollouts  replicas  overlap   simulated  measured   ratio   waiting: simulated  measured")
        ratios = []
        for number, (rollouts, replicas, overlap) in enumerate(
            [
                *((ROLLOUTS, replicas, True) for replicas in (2, 4, IN_FLIGHT, enough, 2 * enough)),
                *((ROLLOUTS, IN_FLIGHT, False), (ROLLOUTS // 2, IN_FLIGHT, True), (2 * ROLLOUTS, IN_FLIGHT, True)),
            ]
        ):
            found = simulate_step(
                scaled(ends.tolist(), rollouts),
                [latency] * rollouts,
                max_concurrency=replicas,
                micro_batch_size=MICRO_BATCH,
                learning=learning * rollouts / ROLLOUTS,
                overlap=overlap,
            )
            run = steps_of(
                Path(folder) / str(number), latency, overlap=overlap, steps=steps, rollouts=rollouts, in_flight=replicas
            )
            seconds, waiting = statistics.median(map(wall, run)), statistics.median(spent(s, "critique") for s in run)
            ratios.append(found.seconds / seconds)
            print(
                f"{rollouts:8}  {replicas:8}  {overlap!s:<8} {found.seconds:8.2f} s {seconds:7.2f} s {ratios[-1]:7.2f} "
                f"{found.waiting:19.2f} s {waiting:7.2f} s",
                flush=True,
            )
    print(f"\nsimulated / measured: median {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


def scaled(ends: Sequence[float], rollouts: int) -> list[float]:
    """Stretch the times at which rollouts end to another number of rollouts, behind the first one's."""
    places = np.linspace(0, len(ends) - 1, rollouts)
    return (ends[0] + (np.interp(places, np.arange(len(ends)), ends) - ends[0]) * rollouts / len(ends)).tolist()


def paper() -> None:
    """Print a step of the paper's recipe by rollouts, GPUs and replicas of the critic."""
    settings = config.load("paper/stepalign")
    with tempfile.TemporaryDirectory() as folder:
        Qwen3Config(**SHAPES["qwen3-1.7b"], tie_word_embeddings=True).save_pretrained(folder)
        size = model_size(settings.model.model_copy(update={"name_or_path": folder}), settings.lora, gpu=True)
    print("rollouts  GPUs  servers  seconds a step  waiting  requests that are enough")
    for rollouts, gpus, servers in itertools.product((32, 128, 512), (1, 4, 8), (1, 4)):
        at_once = settings.critic.max_concurrency * servers
        training = settings.training.model_copy(update={"rollouts_per_step": rollouts})
        critic = settings.critic.model_copy(update={"max_concurrency": at_once})
        changed = settings.model_copy(update={"training": training, "critic": critic})
        found = estimate(changed, size, LENGTHS, hardware="h100", devices=gpus)
        print(
            f"{rollouts:8}  {gpus:4}  {servers:7}  {found.step_seconds:12.0f} s  {found.waiting:5.0f} s  "
            f"{found.critic_concurrency:6}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--paper", action="store_true", help="the growth of the paper's step, from assumed rates")
    options = parser.parse_args()
    paper() if options.paper else compare(options.steps)


if __name__ == "__main__":
    main()
