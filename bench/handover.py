"""Train SmolLM2-135M for some steps with rollouts from vLLM, and try to break the hand-over of its adapters.

    python bench/version.py --serve PYTHON     over HTTP; PYTHON is that of an environment with vLLM
    python bench/version.py                    in process; this environment has vLLM

First a whole run: after each hand-over the guard's difference is kept, and the base is asked behind the same prompts
with the same seeds, so that one changed bit of it would show. The server is killed amid the second step's rollouts and
started anew a little later; the run must wait, give it the adapter again, and go on. Then a run whose second new
adapter never arrives: the engine is given the one before under the new name, and the guard must stop the run. Half an
hour on one core of a CPU.
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
from pathlib import Path
from typing import Any

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.rollouts import AdapterVersion, Completion, Engine, Request
from stepalign.trainer.weight_sync import WeightSync

Drawn = Mapping[str, list[tuple[int, float]]]
ROLLOUTS, TOKENS, CONTEXT, RANK = 16, 64, 512, 16
BASE = 8
"""Prompts behind which the base is asked."""
RESTART_AT, REST_S = 2, 5.0
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
        """Start it; `wait` says when it answers."""
        environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "HF_HUB_OFFLINE": "1", **on_the_cpu(), **os.environ}
        environment.pop("PYTHONPATH", None)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Return once it answers."""
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
        """End it as a crash would."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class ProbeCallback:
    """Puts itself between trainer and engine: looks at what the engine answers, and injects faults."""

    def __init__(self, kind: type[Engine], server: Server | None) -> None:
        self.kind, self.server = kind, server
        self.bases: list[Drawn] = []
        self.weight_sync: list[AdapterVersion] = []
        self.seconds: list[float] = []
        self.restarted_s: float | None = None
        self.stale_at = 0
        self._bring, self._adopt, self._sample = WeightSync.bring, kind.adopt, kind.sample

    def __enter__(self) -> "ProbeCallback":
        watch = self

        def bring(weight_sync: WeightSync, step: int) -> None:
            seen, begun = len(watch.weight_sync), time.monotonic()
            watch._bring(weight_sync, step)
            if len(watch.weight_sync) > seen:
                watch.seconds.append(time.monotonic() - begun)
                watch.bases.append(weight_sync._engine.sample_logprobs(weight_sync._prompts[:BASE], adapter=None))

        def load_adapter(engine: Engine, version: AdapterVersion) -> None:
            watch.weight_sync.append(version)
            if watch.stale_at and len(watch.weight_sync) > watch.stale_at:
                before = watch.weight_sync[watch.stale_at - 1]
                version = dataclasses.replace(version, folder=before.folder)
            watch._adopt(engine, version)

        def sample(
            engine: Engine, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
        ) -> Iterator[Completion]:
            for completion in watch._sample(engine, requests, sampling, adapter=adapter):
                if watch.server and watch.restarted_s is None and len(watch.weight_sync) == RESTART_AT:
                    watch.restart()
                yield completion

        WeightSync.bring, self.kind.adopt, self.kind.sample = bring, adopt, sample
        return self

    def __exit__(self, *_: object) -> None:
        WeightSync.bring, self.kind.adopt, self.kind.sample = self._bring, self._adopt, self._sample

    def restart(self) -> None:
        """Kill the server with requests under way, and start it anew a little later."""
        self.server.kill()
        begun = time.monotonic()
        self.restarted_s = 0.0

        def again() -> None:
            time.sleep(REST_S)
            self.server.start()
            self.server.wait()
            self.restarted_s = time.monotonic() - begun

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
    """Both runs, and what they showed."""
    model = str(Path(arguments.model).absolute())
    if not arguments.serve:
        from stepalign.rollouts.vllm import VllmSampler

        for name, value in on_the_cpu().items():
            os.environ.setdefault(name, value)
        sampler = f'{{ kind = "vllm", eager = true, max_tokens = {CONTEXT} }}'
        return both_runs(arguments, folder, sampler, ProbeCallback(VllmSampler, None))
    from stepalign.rollouts.vllm_server import ServerSampler

    server = Server(arguments.serve, model, arguments.port, Path(tempfile.gettempdir()) / "stepalign-version.log")
    sampler = f'{{ kind = "vllm-server", base_url = "{server.url}/v1", model = "{model}" }}'
    server.start()
    try:
        server.wait()
        return both_runs(arguments, folder, sampler, ProbeCallback(ServerSampler, server))
    finally:
        server.kill()


def both_runs(arguments: argparse.Namespace, folder: Path, sampler: str, watch: ProbeCallback) -> dict[str, Any]:
    """A whole run, and one that is handed a stale adapter."""

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

    with watch:
        lines = (run("whole") / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        for step, taken in zip(steps, watch.seconds, strict=False):
            print(f"step {step['step']}: handed over and checked in {taken:.1f} s, difference "
                  f"{step['handover_difference']:.2g} nats; {step['rollouts']} rollouts, {step['completion_tokens']} "
                  f"tokens in {step['seconds']['sample']:.1f} s", flush=True)  # fmt: skip
        (first, *others) = [next(iter(base.values())) for base in watch.bases]
        moved = max(abs(a[1] - b[1]) for other in others for a, b in zip(first, other, strict=True))
        held = {
            "every step was made": len(steps) == arguments.steps,
            "the base answers as before, to the last bit": others != [] and all(other == first for other in others),
        }
        print(
            f"the base's log-probabilities of {len(first)} tokens, {len(watch.bases)} times: moved by {moved:.2g} nats"
        )
        if watch.server:
            held["the run waited for the server and went on"] = bool(watch.restarted_s)
            print(f"the server was away for {watch.restarted_s or 0:.0f} s")
        watch.weight_sync, watch.stale_at, said = [], STALE_AT, "nothing"
        try:
            run("stale", rollouts=4)
        except StepalignError as error:
            said = str(error)
        print(f"a stale adapter: {said}")
        held["a stale adapter stops the run"] = f"it answers like the policy of step {STALE_AT - 1}" in said
    return {
        "handover_s": watch.seconds,
        "differences": [step["handover_difference"] for step in steps],
        "seconds": [step["seconds"]["sample"] for step in steps],
        "tokens": [step["completion_tokens"] for step in steps],
        "base_moved": moved,
        "server_away_s": watch.restarted_s,
        "stale": said,
        "held": held,
    }


def on_the_cpu() -> dict[str, str]:
    """What vLLM needs to be told where there is no GPU."""
    return {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
