"""One GRPO step beside TRL's `GRPOTrainer`: groups of 8, prompts of about 300 tokens, completions of 150.

The reward is the parity of a completion's letters, so that groups differ whatever the model can do. Prompts,
micro-batches, sampling settings and thread count are the same. Each repeat runs in a process of its own, in turns.

    python bench/grpo_step.py --gsm8k train.jsonl
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from step import peak_rss, show

PROBLEMS, GROUP, TOKENS, PROMPT_TOKENS = 2, 8, 150, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's raw train.jsonl")
    parser.add_argument("--micro-batch", type=int, default=8, help="rollouts in one forward and backward pass")
    parser.add_argument("--precision", default="highest", help="ours alone: model.float32_matmul_precision")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("stepalign", "trl"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps({"stepalign": run_stepalign, "trl": run_trl}[options.side](options)))
        return
    results: dict[str, list[dict[str, Any]]] = {"trl": [], "stepalign": []}
    for _ in range(options.repeats):
        for side, measured in results.items():
            command = [sys.executable, __file__, "--side", side, "--model", options.model]
            command += ["--micro-batch", str(options.micro_batch), "--precision", options.precision]
            command += ["--gsm8k", str(options.gsm8k)]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode:
                sys.exit(answer.stderr)
            measured.append(json.loads(answer.stdout.splitlines()[-1]))
            print(side, measured[-1], flush=True)
    show(results, options)


def parity(text: str) -> bool:
    return sum(letter.isalpha() for letter in text) % 2 == 1


def statements(options: argparse.Namespace) -> list[str]:
    """Problems, each made of several so that its prompt has about `PROMPT_TOKENS` tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = [json.loads(line)["question"] for line in options.gsm8k.open()]
    made: list[str] = []
    while len(made) < PROBLEMS:
        text = rows.pop(0)
        while len(tokenizer(text)["input_ids"]) < PROMPT_TOKENS:
            text += "\n\n" + rows.pop(0)
        made.append(tokenizer.decode(tokenizer(text)["input_ids"][:PROMPT_TOKENS]))
    return made


def run_stepalign(options: argparse.Namespace) -> dict[str, Any]:
    from contextlib import ExitStack

    from stepalign import config
    from stepalign.io import write_jsonl
    from stepalign.records import Problem
    from stepalign.rewards import FunctionGrader
    from stepalign.trainer.build import build_trainer
    from stepalign.trainer.run_folder import RunFolder

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path, template = Path(folder, "problems.jsonl"), Path(folder, "solver.txt")
        write_jsonl(
            path, [Problem(id=str(n), statement=text, answer="0") for n, text in enumerate(statements(options))]
        )
        template.write_text("{{ problem }}")
        settings = config.Recipe(
            name="bench",
            output_dir=Path(folder),
            model=config.ModelConfig(name_or_path=options.model, float32_matmul_precision=options.precision),
            problems=config.ProblemsConfig(train=config.FileConfig(path=path)),
            prompts=config.PromptsConfig(solver=str(template)),
            sampling=config.SamplingConfig(temperature=1.0, max_new_tokens=TOKENS),
            lora=config.LoraConfig(r=16, lora_alpha=32),
            algorithm=config.GRPOConfig(),
            training=config.TrainingConfig(
                max_steps=1,
                rollouts_per_step=PROBLEMS * GROUP,
                num_generations=GROUP,
                micro_batch_size=options.micro_batch,
                save_steps=10,
            ),
        )
        run = RunFolder(settings)
        stack.callback(run.close)
        trainer = build_trainer(settings, run, stack)
        trainer.solver.grader = FunctionGrader(lambda _, rollout: parity(rollout.text))
        start = time.perf_counter()
        trainer.train_step(trainer.train_problems)
        seconds = time.perf_counter() - start
        metrics = json.loads((settings.folder / "metrics.jsonl").read_text())
        lengths = {"sample": metrics["completion_tokens"], "student": metrics["student_tokens"]}
        stages = {
            name: {"seconds": spent, "tokens": lengths.get(name, 0)} for name, spent in metrics["seconds"].items()
        }
    return {
        "seconds": seconds,
        "rss_gb": peak_rss(),
        "completion_tokens": lengths["sample"],
        "outcomes": metrics["outcomes"],
        "stages": stages,
    }


def run_trl(options: argparse.Namespace) -> dict[str, Any]:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.simplefilter("ignore")
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    times: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            times.append(time.perf_counter())

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: object) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return [float(parity(completion[0]["content"])) for completion in completions]

    rows = [{"prompt": [{"role": "user", "content": text}]} for text in statements(options)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=options.model,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=options.micro_batch,
                gradient_accumulation_steps=PROBLEMS * GROUP // options.micro_batch,
                num_generations=GROUP,
                max_steps=1,
                max_completion_length=TOKENS,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                beta=0.0,
                loss_type="grpo",
                learning_rate=5e-6,
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                model_init_kwargs={"dtype": "float32"},
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(options.model, padding_side="left"),
            peft_config=LoraConfig(
                r=16,
                lora_alpha=32,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            ),
            callbacks=[Clock()],
        )
        trainer.train()
    return {"seconds": times[1] - times[0], "rss_gb": peak_rss(), "completion_tokens": sum(tokens)}


if __name__ == "__main__":
    main()
