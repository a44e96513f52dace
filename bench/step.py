"""One whole training step beside TRL's: SmolLM2-135M on GSM8K, refsol, LoRA r 16, 16 rollouts of 96 tokens.

Ours is `stepalign.trainer.loop`, TRL's is `SDFTTrainer` with full-vocabulary forward KL and the base as teacher, both
with the same prompts, micro-batches, sampling settings and thread count. Ours divides a micro-batch further
by tokens (`training.max_tokens_per_micro_batch`), a bound that TRL does not have. Each repeat runs in a process of its
own, so that peak memory is the process's. Ours and TRL's take turns, because the machine is noisy.

    python bench/step.py --gsm8k train.jsonl        # without it the data set comes from the hub
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROLLOUTS, TOKENS = 16, 96

Side = Callable[[argparse.Namespace], dict[str, Any]]
"""Measures one contender's step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's raw train.jsonl")
    parser.add_argument("--micro-batch", type=int, default=4, help="rollouts in one forward and backward pass")
    parser.add_argument("--micro-batch-tokens", type=int, default=256,
                        help="ours alone: the student's tokens in one pass, at most; 0 is no bound")  # fmt: skip
    parser.add_argument("--precision", default="highest", help="ours alone: model.float32_matmul_precision")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("stepalign", "trl"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    take_turns({"trl": run_trl, "stepalign": run_stepalign}, options)


def take_turns(sides: dict[str, Side], options: argparse.Namespace) -> None:
    """Run each side in a process of its own, in turns, and show the medians. With `--side` run that side here."""
    if options.side:
        print(json.dumps(sides[options.side](options)))
        return
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side, measured in results.items():
            answer = subprocess.run(
                [sys.executable, *sys.argv, "--side", side], capture_output=True, text=True, check=False
            )
            if answer.returncode:
                sys.exit(answer.stderr)
            measured.append(json.loads(answer.stdout.splitlines()[-1]))
            print(side, measured[-1], flush=True)
    show(results, options)


def show(results: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    middle = {
        side: {key: median(run[key] for run in runs) for key in ("seconds", "rss_gb")} for side, runs in results.items()
    }
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.repeats} repeats a side")
    for side, values in middle.items():
        seconds = sorted(run["seconds"] for run in results[side])
        print(f"{side:<10} {values['seconds']:6.1f} s a step [{seconds[0]:.1f}, {seconds[-1]:.1f}]"
              f"   peak RSS {values['rss_gb']:.2f} GB")  # fmt: skip
    ratios = {key: middle["stepalign"][key] / middle["trl"][key] for key in ("seconds", "rss_gb")}
    print(f"ratio      {ratios['seconds']:6.2f} of TRL's time        {ratios['rss_gb']:.2f} of its memory")
    stages = results["stepalign"][-1]["stages"]
    for name, stage in stages.items():
        speed = f"{stage['tokens'] / stage['seconds']:,.0f} tokens/s" if stage["tokens"] else ""
        print(f"  {name:<10} {stage['seconds']:6.1f} s  {speed}")
    if options.json:
        options.json.write_text(json.dumps({"runs": results, "median": middle, "ratio": ratios}, indent=2))


def run_stepalign(options: argparse.Namespace) -> dict[str, Any]:
    from contextlib import ExitStack

    from stepalign import config
    from stepalign.trainer.build import build_trainer
    from stepalign.trainer.run_folder import RunFolder

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = config.Recipe(
            name="bench",
            output_dir=Path(folder),
            model=config.ModelConfig(name_or_path=options.model, float32_matmul_precision=options.precision),
            problems=config.ProblemsConfig(train=config.Gsm8kConfig(path=options.gsm8k, limit=ROLLOUTS)),
            sampling=config.SamplingConfig(temperature=1.0, max_new_tokens=TOKENS),
            lora=config.LoraConfig(r=16, lora_alpha=32),
            training=config.TrainingConfig(
                max_steps=1,
                rollouts_per_step=ROLLOUTS,
                micro_batch_size=options.micro_batch,
                max_tokens_per_micro_batch=options.micro_batch_tokens or None,
            ),
        )
        run = RunFolder(settings)
        stack.callback(run.close)
        trainer = build_trainer(settings, run, stack)
        start = time.perf_counter()
        trainer.train_step(trainer.train_problems)
        seconds = time.perf_counter() - start
        metrics = json.loads((settings.folder / "metrics.jsonl").read_text())
        lengths = {
            "sample": metrics["completion_tokens"],
            "teacher": metrics["teacher_tokens"],
            "student": metrics["student_tokens"],
        }
        stages = {
            name: {"seconds": spent, "tokens": lengths.get(name, 0)} for name, spent in metrics["seconds"].items()
        }
    return {
        "seconds": seconds,
        "rss_gb": peak_rss(),
        "completion_tokens": lengths["sample"],
        "stages": stages,
    }


def run_trl(options: argparse.Namespace) -> dict[str, Any]:
    silence_trl()
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    from stepalign import config, data, prompts

    loaded = data.load(config.Gsm8kConfig(path=options.gsm8k, limit=ROLLOUTS)).problems
    solver, _ = prompts.load("solver", frozenset({"problem"}))
    rows = [
        {
            "prompt": [{"role": "user", "content": solver.render(problem=problem.statement).strip()}],
            "privileged_context": "Here is a reference solution to this problem:\n=== Reference Solution Begin ===\n"
            f"{problem.solution}\n=== Reference Solution End ===\n\n"
            "After understanding the reference solution, solve the problem yourself, in your own words.",
        }
        for problem in loaded
    ]
    own = {"distillation_mode": "full_logits", "distillation_alpha": 0.0, "teacher_model_kind": "base"}
    return time_trl(SDFTTrainer, SDFTConfig, rows, options, ROLLOUTS, num_generations=1, max_tokens=TOKENS, **own)


def silence_trl() -> None:
    """Keep TRL's warnings out of the results. Call before TRL is imported."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.simplefilter("ignore")


def time_trl(
    trainer_class: Any,
    config_class: Any,
    rows: list[dict[str, Any]],
    options: argparse.Namespace,
    rollouts: int,
    *,
    num_generations: int,
    max_tokens: int,
    reward: Callable[..., list[float]] | None = None,
    **own: Any,
) -> dict[str, Any]:
    """Time one step of a TRL trainer with the settings of ours. `own` are settings of the trainer's kind."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    from stepalign import config

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=options.model,
            **({"reward_funcs": reward} if reward else {}),
            args=config_class(
                output_dir=folder,
                per_device_train_batch_size=options.micro_batch,
                gradient_accumulation_steps=rollouts // options.micro_batch,
                num_generations=num_generations,
                max_steps=1,
                max_completion_length=max_tokens,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                learning_rate=5e-6,
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                model_init_kwargs={"dtype": "float32"},
                **own,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(options.model, padding_side="left"),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=list(config.LoraConfig().target_modules)),
            callbacks=[Clock()],
        )
        trainer.train()
    return {"seconds": times[1] - times[0], "rss_gb": peak_rss()}


def peak_rss() -> float:
    """The process's peak resident memory in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
