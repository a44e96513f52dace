"""Train SmolLM2-135M for some steps with rollouts from vLLM, and try to break the sync of its adapters.

    python bench/weight_sync.py --serve PYTHON     over HTTP; PYTHON is that of an environment with vLLM
    python bench/weight_sync.py                    in process; this environment has vLLM

First a whole run. After each sync its difference is recorded, and the base scores the same texts, so that one changed
bit of it would show. The server is killed amid the second step's rollouts and started again a little later; the run
must wait, load the adapter again, and go on. Then a run whose second new adapter never arrives: the sampler loads the
one before under the new name, and the check must stop the run. Half an hour on one core of a CPU.
"""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.rollouts import AdapterVersion, Completion, RemoteSampler, Request
from stepalign.trainer.weight_sync import WeightSync

ROLLOUTS, TOKENS, CONTEXT, RANK = 16, 64, 512, 16
RESTART_AT, DOWN_S = 2, 5.0
STALE_AT = 2


class Server:
    """A vLLM server in a process group of its own."""

    def __init__(self, python: Path, model: str, port: int, log: Path) -> None:
        self.url, self._log, self._process = f"http://127.0.0.1:{port}", log, None
        self._command = [
            *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)),
            *("--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", str(CONTEXT), "--enforce-eager"),
            *("--enable-lora", "--max-lora-rank", str(RANK), "--no-enable-chunked-prefill"),
        ]

    def start(self) -> None:
        """Start it, without waiting for it."""
        environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "HF_HUB_OFFLINE": "1", **on_the_cpu(), **os.environ}
        environment.pop("PYTHONPATH", None)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        while True:
            if self._process.poll() is not None:
                sys.exit(f"the server ended with {self._process.returncode}; see {self._log}")
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
            except OSError:
                time.sleep(0.5)
            else:
                return

    def kill(self) -> None:
        """Kill it, as a crash would."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Observer:
    """Patches between trainer and sampler: records the sampler's scores, and injects faults."""

    def __init__(self, kind: type[RemoteSampler], server: Server | None) -> None:
        self.kind, self.server = kind, server
        self.bases: list[Mapping[str, list[list[float]]]] = []
        self.versions: list[AdapterVersion] = []
        self.seconds: list[float] = []
        self.restarted_s: float | None = None
        self.stale_at = 0
        self._originals = WeightSync.sync, kind.load_adapter, kind.sample

    def __enter__(self) -> "Observer":
        observer = self
        original_sync, original_load, original_sample = self._originals

        def sync(weight_sync: WeightSync, step: int) -> None:
            before, start = len(observer.versions), time.monotonic()
            original_sync(weight_sync, step)
            if len(observer.versions) > before:
                observer.seconds.append(time.monotonic() - start)
                observer.bases.append(weight_sync._sampler.prompt_logprobs(weight_sync._texts, adapter=None))

        def load_adapter(sampler: RemoteSampler, version: AdapterVersion) -> None:
            observer.versions.append(version)
            if observer.stale_at and len(observer.versions) > observer.stale_at:
                stale = observer.versions[observer.stale_at - 1]
                version = dataclasses.replace(version, folder=stale.folder)
            original_load(sampler, version)

        def sample(
            sampler: RemoteSampler, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
        ) -> Iterator[Completion]:
            for completion in original_sample(sampler, requests, sampling, adapter=adapter):
                if observer.server and observer.restarted_s is None and len(observer.versions) == RESTART_AT:
                    observer.restart()
                yield completion

        WeightSync.sync, self.kind.load_adapter, self.kind.sample = sync, load_adapter, sample
        return self

    def __exit__(self, *_: object) -> None:
        WeightSync.sync, self.kind.load_adapter, self.kind.sample = self._originals

    def restart(self) -> None:
        """Kill the server with requests under way, and start it again a little later."""
        self.server.kill()
        start = time.monotonic()
        self.restarted_s = 0.0

        def again() -> None:
            time.sleep(DOWN_S)
            self.server.start()
            self.server.wait()
            self.restarted_s = time.monotonic() - start

        threading.Thread(target=again).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=Path, metavar="PYTHON", help="of an environment with vLLM")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--port", type=int, default=8130)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    for name, held in figures["held"].items():
        print(f"{'yes' if held else 'NO':<5}{name}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(0 if all(figures["held"].values()) else 1)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Do both runs and return the figures."""
    model = str(Path(arguments.model).absolute())
    if not arguments.serve:
        from stepalign.rollouts.vllm import VllmSampler

        for name, value in on_the_cpu().items():
            os.environ.setdefault(name, value)
        sampler = f'{{ kind = "vllm", enforce_eager = true, max_model_len = {CONTEXT} }}'
        return both_runs(arguments, folder, sampler, Observer(VllmSampler, None))
    from stepalign.rollouts.vllm_server import ServerSampler

    server = Server(arguments.serve, model, arguments.port, Path(tempfile.gettempdir()) / "stepalign-weight-sync.log")
    sampler = f'{{ kind = "vllm-server", base_url = "{server.url}/v1", model = "{model}" }}'
    server.start()
    try:
        server.wait()
        return both_runs(arguments, folder, sampler, Observer(ServerSampler, server))
    finally:
        server.kill()


def both_runs(arguments: argparse.Namespace, folder: Path, sampler: str, observer: Observer) -> dict[str, Any]:
    """Do a whole run, and one that loads a stale adapter."""

    def run(name: str, rollouts: int = ROLLOUTS) -> Path:
        overrides = [
            f"name={name}",
            f"output_dir={folder}",
            f"sampler={sampler}",
            f"model.name_or_path={arguments.model}",
        ]
        overrides += [f"lora.r={RANK}", f"sampling.max_new_tokens={TOKENS}", "problems.holdout=0"]
        overrides += [f"training.max_steps={arguments.steps}", f"training.rollouts_per_step={rollouts}"]
        return train(config.load(Path("recipes/smollm2-sums.toml"), overrides)).parent

    with observer:
        lines = (run("whole") / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        for step, taken in zip(steps, observer.seconds, strict=False):
            print(f"step {step['step']}: synced and checked in {taken:.1f} s, difference "
                  f"{step['weight_sync_difference']:.2g} nats; {step['rollouts']} rollouts, "
                  f"{step['completion_tokens']} tokens in {step['seconds']['sample']:.1f} s", flush=True)  # fmt: skip
        (first, *others) = [list(chain.from_iterable(next(iter(base.values())))) for base in observer.bases]
        moved = max(abs(a - b) for other in others for a, b in zip(first, other, strict=True))
        held = {
            "every step was made": len(steps) == arguments.steps,
            "the base answers as before, to the last bit": others != [] and all(other == first for other in others),
        }
        print(f"the base's scores of {len(first)} tokens, {len(observer.bases)} times: moved by {moved:.2g} nats")
        if observer.server:
            held["the run waited for the server and went on"] = bool(observer.restarted_s)
            print(f"the server was away for {observer.restarted_s or 0:.0f} s")
        observer.versions, observer.stale_at, message = [], STALE_AT, "none"
        try:
            run("stale", rollouts=4)
        except StepalignError as error:
            message = str(error)
        print(f"a stale adapter: {message}")
        held["a stale adapter stops the run"] = f"it answers like the policy of step {STALE_AT - 1}" in message
    return {
        "sync_s": observer.seconds,
        "differences": [step["weight_sync_difference"] for step in steps],
        "seconds": [step["seconds"]["sample"] for step in steps],
        "tokens": [step["completion_tokens"] for step in steps],
        "base_moved": moved,
        "server_away_s": observer.restarted_s,
        "stale": message,
        "held": held,
    }


def on_the_cpu() -> dict[str, str]:
    """Return the environment that vLLM needs without a GPU."""
    return {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
