"""The divergence beside TRL's, beside materialized logits, and above its floor of three bare matrix products.

Time: forward and backward, the contenders taking turns in one process; ratios are taken round by round. Peak
extra memory: each contender alone in a fresh process, the most it held beyond its inputs (resident memory on
the CPU, read from Linux's /proc; allocated memory on a GPU).

    python bench/objective.py
    python bench/objective.py --device cuda --tokens 8192 --hidden 2048 --vocab 151936 --dtype bfloat16
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from stepalign.losses.divergence import divergence

CONTENDERS = ("stepalign", "trl", "materialized", "floor")
FLOOR_CHUNKS = (256, 512, 1024, 2048)
CAPTION = "Median (least–most). A ratio is stepalign's time or memory over that row's."


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a contender compares, of one seed."""

    student: torch.Tensor
    teacher: torch.Tensor
    head: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def make(cls, tokens: int, hidden: int, vocab: int, *, device: str, dtype: str) -> "Inputs":
        """Random states, and a head that spreads logits by 2."""
        torch.manual_seed(0)
        options = {"device": device, "dtype": getattr(torch, dtype)}
        return cls(
            student=torch.randn(tokens, hidden, **options).requires_grad_(),
            teacher=torch.randn(tokens, hidden, **options),
            head=torch.randn(vocab, hidden, **options).mul_(2 / hidden**0.5),
            weights=torch.full((tokens,), 1 / tokens, device=device),
        )


def stepalign(inputs: Inputs) -> None:
    loss, _ = divergence(inputs.student, inputs.teacher, inputs.head, inputs.weights)
    loss.backward()


def trl(inputs: Inputs) -> None:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    per_token, _ = ChunkedDivergenceFunction.apply(
        inputs.student, inputs.head, None, inputs.teacher, inputs.head, None, 0.0, 1.0
    )
    (per_token * inputs.weights).sum().backward()


def materialized(inputs: Inputs) -> None:
    student = (inputs.student @ inputs.head.T).float().log_softmax(-1)
    with torch.no_grad():
        teacher = (inputs.teacher @ inputs.head.T).float().log_softmax(-1)
    per_token = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    (per_token * inputs.weights).sum().backward()


@torch.no_grad()
def floor(inputs: Inputs, chunk: int) -> None:
    """Both projections and the product that takes logits' gradients back, nothing between them."""
    logits = torch.empty((chunk, len(inputs.head)), dtype=inputs.head.dtype, device=inputs.head.device)
    gradient = torch.empty_like(inputs.student)
    for start in range(0, len(inputs.student), chunk):
        part = slice(start, start + chunk)
        rows = logits[: len(inputs.student[part])]
        torch.mm(inputs.student[part], inputs.head.T, out=rows)
        torch.mm(inputs.teacher[part], inputs.head.T, out=rows)
        torch.mm(rows, inputs.head, out=gradient[part])


def seconds(run: Callable[[], None], inputs: Inputs) -> float:
    inputs.student.grad = None
    synchronize = torch.cuda.synchronize if inputs.head.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def contender(name: str, inputs: Inputs, floor_chunk: int) -> Callable[[], None]:
    if name == "floor":
        return lambda: floor(inputs, floor_chunk)
    function = {"stepalign": stepalign, "trl": trl, "materialized": materialized}[name]
    return lambda: function(inputs)


def fastest_floor_chunk(inputs: Inputs) -> int:
    chunks = sorted({min(chunk, len(inputs.student)) for chunk in FLOOR_CHUNKS})
    best = {chunk: min(seconds(lambda c=chunk: floor(inputs, c), inputs) for _ in range(3)) for chunk in chunks}
    return min(best, key=best.__getitem__)


def times(names: list[str], inputs: Inputs, repeats: int) -> tuple[dict[str, list[float]], int]:
    chunk = fastest_floor_chunk(inputs)
    runs = {name: contender(name, inputs, chunk) for name in names}
    for run in runs.values():
        seconds(run, inputs)
    measured: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, run in runs.items():
            measured[name].append(seconds(run, inputs))
    return measured, chunk


def peak_extra_bytes(name: str, sizes: dict[str, int], device: str, dtype: str, floor_chunk: int) -> int:
    """Run one contender once in this process. Code and thread pools are loaded by a tiny run before."""
    contender(name, Inputs.make(4, 8, 16, device=device, dtype=dtype), floor_chunk=4)()
    inputs = Inputs.make(**sizes, device=device, dtype=dtype)
    run = contender(name, inputs, floor_chunk)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Not getrusage: a child's ru_maxrss begins at what its parent held.
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    before = high_water_bytes()
    run()
    return high_water_bytes() - before


def high_water_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def peak_in_a_fresh_process(name: str, arguments: argparse.Namespace, floor_chunk: int) -> int:
    options = [f"--{key}={getattr(arguments, key)}" for key in ("device", "dtype", "tokens", "hidden", "vocab")]
    command = [sys.executable, __file__, *options, f"--peak={name}", f"--floor-chunk={floor_chunk}"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def machine(device: str) -> dict[str, object]:
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    found: dict[str, object] = {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    found["python"] = platform.python_version()
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    for package in ("torch", "trl"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def interval(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def summarize(measured: dict[str, list[float]], peaks: dict[str, int]) -> dict[str, dict[str, object]]:
    """For each contender its seconds and peak, and how many times as much the divergence takes of both."""
    ours = "stepalign"
    return {
        name: {
            "seconds": interval(values),
            "time_ratio": interval([a / b for a, b in zip(measured[ours], values, strict=True)]),
            "peak_extra_mb": peaks[name] / 1e6,
            "memory_ratio": peaks[ours] / peaks[name],
        }
        for name, values in measured.items()
    }


def show(console: Console, summary: dict[str, dict[str, object]], title: str) -> None:
    table = Table(title=title, title_justify="left", caption=CAPTION, caption_justify="left")
    for column in ("contender", "seconds", "time ratio", "peak extra MB", "memory ratio"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, row in summary.items():
        spans = [
            f"{span['median']:.2f} ({span['least']:.2f}–{span['most']:.2f})"
            for span in (row["seconds"], row["time_ratio"])
        ]
        table.add_row(name, *spans, f"{row['peak_extra_mb']:,.0f}", f"{row['memory_ratio']:.3f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--skip", choices=CONTENDERS[1:], action="append", default=[])
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--peak", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--floor-chunk", type=int, default=1024, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    sizes = {"tokens": arguments.tokens, "hidden": arguments.hidden, "vocab": arguments.vocab}
    if arguments.peak:
        print(peak_extra_bytes(arguments.peak, sizes, arguments.device, arguments.dtype, arguments.floor_chunk))
        return

    names = [name for name in CONTENDERS if name not in arguments.skip]
    inputs = Inputs.make(**sizes, device=arguments.device, dtype=arguments.dtype)
    measured, floor_chunk = times(names, inputs, arguments.repeats)
    del inputs
    peaks = {name: peak_in_a_fresh_process(name, arguments, floor_chunk) for name in names}
    summary = summarize(measured, peaks)

    where = machine(arguments.device)
    console = Console()
    title = (
        f"Divergence, forward and backward: {arguments.tokens:,} tokens × hidden {arguments.hidden:,} × "
        f"vocabulary {arguments.vocab:,}, {arguments.dtype} on {arguments.device}, {arguments.repeats} "
        f"repeats, floor in chunks of {floor_chunk}"
    )
    show(console, summary, title)
    console.print(", ".join(f"{key} {value}" for key, value in where.items()), style="dim")
    if arguments.json:
        everything = {
            "machine": where, "sizes": sizes, "device": arguments.device, "dtype": arguments.dtype,
            "repeats": arguments.repeats, "floor_chunk": floor_chunk, "seconds": measured, "summary": summary,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    main()
