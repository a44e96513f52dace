"""The first minutes on a GPU: does every CUDA path agree with the CPU, and how near is it to the card's limits?

Nothing is downloaded. Each part runs in a process of its own and within its time; a part that fails does not stop the
others. The results go to a JSON file beside the plan for the same card.

    make gpu-check                                  # one card, at most 8 minutes
    python bench/gpu_check.py --device cpu          # small sizes on a CPU: does the script run?
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config

from paper_step import SHAPES
from stepalign.assets import SOLVER

BENCH = Path(__file__).parent
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
"""Dense bfloat16 TFLOP/s by the maker's data sheets."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"))
    options = parser.parse_args()
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        sys.exit("no CUDA device: --device cpu runs the script at small sizes")
    name = torch.cuda.get_device_name() if cuda else "cpu"
    peak = next((value for part, value in PEAK_TFLOPS.items() if part in name), None)
    found: dict[str, Any] = {
        "device": name, "torch": torch.__version__, "triton": find_spec("triton") is not None,
        "date": time.strftime("%Y-%m-%d"), "peak_tflops": peak, "parts": {}
    }  # fmt: skip
    if cuda and not found["triton"]:
        print("triton is not installed: its kernels are not checked, and the losses take torch's slower form")
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        for part, command in parts(Path(folder), cuda, peak).items():
            found["parts"][part] = run(part, command, Path(folder) / f"{part}.json", deadline - time.monotonic())
            options.json.write_text(json.dumps(found, indent=2))
    failed = [part for part, result in found["parts"].items() if result["status"]]
    print(f"{options.json}: {len(found['parts']) - len(failed)} parts done" + (f", failed: {failed}" if failed else ""))
    return len(failed)


def parts(folder: Path, cuda: bool, peak: float | None) -> dict[str, list[str]]:
    """Commands by name. A `{}.json` beside the folder's name receives the figures."""
    python = sys.executable
    sizes = ["--tokens", "8192", "--hidden", "2048", "--vocab", "151936", "--dtype", "bfloat16", "--device", "cuda"]
    if not cuda:
        sizes = ["--tokens", "256", "--hidden", "64", "--vocab", "4096"]
    step = ["--shape", "qwen3-1.7b" if cuda else "tiny", "--rollouts", "8" if cuda else "4", "--repeats", "2"]
    utilization = ["--peak-tflops", str(peak)] if peak else []
    tests = ["tests/test_gpu.py", "tests/test_triton_kernels.py", "tests/losses", "-m", "gpu or not slow"]
    plan = ["recipes/paper/stepalign.toml", "--trust", f"model.name_or_path={folder}", "--completion-tokens", "2048"]
    plan += ["training.rollouts_per_step=8"]
    plan += [f"problems.{part}={{ source = 'sums', seed = {n} }}" for n, part in enumerate(("train", "evaluation"))]
    plan += ["--hardware", "h200" if cuda and "H200" in torch.cuda.get_device_name() else "h100"]
    for tokenizer in (*SOLVER.glob("tokenizer*"), SOLVER / "chat_template.jinja"):  # any one: a plan needs prompts
        shutil.copy(tokenizer, folder)
    Qwen3Config(**SHAPES["qwen3-1.7b"], tie_word_embeddings=True).save_pretrained(folder)
    return {
        "correctness": [python, "-m", "pytest", "-q", *(tests if cuda else tests[2:3])],
        "objective": [
            python, str(BENCH / "objective.py"), *sizes, "--repeats", "5", "--json", str(folder / "objective.json"),
        ],
        "step": [python, str(BENCH / "paper_step.py"), *step, *utilization, "--json", str(folder / "step.json")],
        "step without recomputing": [
            python, str(BENCH / "paper_step.py"), *step, *utilization, "--no-checkpointing",
            "--json", str(folder / "step without recomputing.json"),
        ],
        "plan": [python, "-m", "stepalign.cli", "plan", *plan],
    }  # fmt: skip


def run(part: str, command: list[str], output: Path, seconds: float) -> dict[str, Any]:
    """Run one part; return its status, time, figures and last lines."""
    start = time.monotonic()
    print(f"{part}: {' '.join(command[1:])}", flush=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(seconds, 1), check=False, env=environment
        )
        status, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        status, text = 124, str(error)
    lines = text.splitlines()[-40:]
    print("\n".join(lines), flush=True)
    figures = json.loads(output.read_text()) if output.exists() else None
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "figures": figures, "output": lines}


if __name__ == "__main__":
    sys.exit(main())
