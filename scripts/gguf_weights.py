"""Widen a GGUF file of 4-bit weights to float32, and save it as safetensors.

For a machine without the hub. The file may come in parts, as `split -b 60m model.gguf part-` makes them.

    python scripts/gguf_weights.py models/qwen-0.5b part-*
    python scripts/gguf_weights.py models/qwen-0.5b model.gguf --tie    # one matrix for both embeddings, as published
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from stepalign import extras


def main() -> None:
    """Read the arguments, and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="the model's new folder")
    parser.add_argument("parts", type=Path, nargs="+", help="the file, or its parts in order")
    parser.add_argument("--tie", action="store_true", help="one matrix for input and output embeddings")
    options = parser.parse_args()
    extras.require("smollm2", "the weights' file")
    with tempfile.TemporaryDirectory() as folder:
        widen(join(options.parts, Path(folder)), options.target, tie=options.tie)
    print(options.target)


def join(parts: Sequence[Path], folder: Path) -> Path:
    """Write the parts one after another to `model.gguf`."""
    gguf = folder / "model.gguf"
    with gguf.open("wb") as whole:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, whole)
    return gguf


def widen(gguf: Path, target: Path, *, tie: bool = False) -> None:
    """Write model and tokenizer to `target`, whole or not at all."""
    logging.disable_progress_bar()
    widened = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A model loaded from GGUF refuses to be saved: its weights move into a plain one.
    config, weights = widened.config, widened.state_dict()
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if tie:  # the file's two copies differ by their quantization alone
        config.tie_word_embeddings = True
        weights["model.embed_tokens.weight"] = weights["lm_head.weight"]
    model = type(widened)(config).float()
    model.load_state_dict(weights)
    model.tie_weights()
    with tempfile.TemporaryDirectory() as folder:
        finished = Path(folder) / "finished"
        model.save_pretrained(finished)
        tokenizer.save_pretrained(finished)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(finished, target)


if __name__ == "__main__":
    main()
