"""One GRPO step beside TRL's `GRPOTrainer`: groups of 8, prompts of about 300 tokens, completions of 150.

The reward is the parity of a completion's letters, so that groups differ whatever the model can do. Prompts,
micro-batches, sampling settings and thread count are the same. Each repeat runs in a process of its own, in turns.

    python bench/grpo_step.py --gsm8k train.jsonl        # without it the data set comes from the hub
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from step import peak_rss, silence_trl, take_turns, time_trl

PROBLEMS, GROUP, TOKENS, PROMPT_TOKENS = 2, 8, 150, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's raw train.jsonl")
    parser.add_argument("--micro-batch", type=int, default=8, help="rollouts in one forward and backward pass")
    parser.add_argument("--precision", default="highest", help="ours alone: model.float32_matmul_precision")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("stepalign", "trl"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    take_turns({"trl": run_trl, "stepalign": run_stepalign}, options)


def parity(text: str) -> bool:
    return sum(letter.isalpha() for letter in text) % 2 == 1


def statements(options: argparse.Namespace) -> list[str]:
    """Problems, each made of several so that its prompt has about `PROMPT_TOKENS` tokens."""
    from transformers import AutoTokenizer

    from stepalign import config, data

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = [one.statement for one in data.load(config.Gsm8kConfig(path=options.gsm8k, limit=50)).problems]
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
    silence_trl()
    from trl import GRPOConfig, GRPOTrainer

    tokens: list[int] = []

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: object) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return [float(parity(completion[0]["content"])) for completion in completions]

    rows = [{"prompt": [{"role": "user", "content": text}]} for text in statements(options)]
    own = {"reward": reward, "beta": 0.0, "loss_type": "grpo"}
    measured = time_trl(
        GRPOTrainer, GRPOConfig, rows, options, PROBLEMS * GROUP, num_generations=GROUP, max_tokens=TOKENS, **own
    )
    return {**measured, "completion_tokens": sum(tokens)}


if __name__ == "__main__":
    main()
