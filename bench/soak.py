"""Kill, damage and fault runs at random for some minutes, and count what happens.

    make soak                    # 5 minutes
    SOAK_MINUTES=60 make soak

Each round trains a lab recipe, disturbs it, resumes it, and compares its last adapter, bit for bit, with that of a run
which nothing disturbed. The kinds take turns. The table is printed, and written as JSON.

Left out: power cuts and full disks, because they need a machine of their own.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stepalign import config
from stepalign.assets import LAB_RECIPES
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_json
from stepalign.records import Rollout

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from damage import bytes_damaged
from serving.fault_server import Reply, serving

KEYS = (
    *("training.max_steps=4", "training.save_steps=1", "training.eval_steps=2", "training.rollouts_per_step=4"),
    *("problems.train.count=100", "problems.evaluation.count=2", "evaluation.num_samples=2", "grader.num_workers=1"),
    *("evaluation.num_bootstrap=50", "sampling.max_new_tokens=48", "evaluation.sampling.max_new_tokens=48"),
)
"""A run of seconds."""
EVENTS = (
    *("manifest.json", "evaluations/step-000000.jsonl", "evaluations/step-00000[24].json", "metrics.jsonl", "figures"),
    *("rollouts/step-00000[1-4].jsonl", "critiques/step-00000[1-4].jsonl", "checkpoints/step-00000[1-4]"),
    *("checkpoints/.step-00000[1-4].tmp", "checkpoints/.step-00000[1-4].tmp/SHA256SUMS"),
)
"""Paths at whose appearance a run is killed."""
DAMAGED = (
    *("checkpoints/step-000004/*", "checkpoints/step-000002/*", "rollouts/*", "critiques/*", "problems/*"),
    *("evaluations/*.json", "recipe.toml", "manifest.json", "metrics.jsonl", "timeline.jsonl", "checksums.jsonl"),
)
FAULTS = (
    Reply(status=500), Reply(status=429, headers={"Retry-After": "0"}), Reply(drop=True), Reply("x", half=True),
    Reply(body="<html>"), Reply(None), Reply("", finish="length"), Reply("Looks good to me!"), Reply(status=503),
)  # fmt: skip


@dataclass
class Table:
    """Counts of what was tried and what happened."""

    seconds: float = 0.0
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unexpected: list[str] = field(default_factory=list)

    def add(self, kind: str, outcome: str, detail: str = "") -> None:
        """Count an outcome of a kind; one that should not be is kept with its detail."""
        self.outcomes[kind][outcome] += 1
        if outcome not in EXPECTED:
            self.unexpected.append(f"{kind}: {outcome}: {detail}")
            print(self.unexpected[-1], file=sys.stderr)

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = ["| what was tried | how often | what happened |", "|---|---|---|"]
        for kind, outcomes in self.outcomes.items():
            happened = "; ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
            lines.append(f"| {kind} | {outcomes.total()} | {happened} |")
        return "\n".join(lines)


SAME = "the same adapter, bit for bit"
NAMED = "an error that names the file or key"
STOPPED = "stopped with the critic's fault"
ENDED = "ended, each failure counted"
EXPECTED = {SAME, NAMED, STOPPED, ENDED}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "5")))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    options = parser.parse_args()
    start = time.monotonic()
    draw, table = random.Random(options.seed), Table()
    with TemporaryDirectory() as folder:
        soak = Soak(Path(folder), draw, table)
        for turn in soak.turns():
            if time.monotonic() - start > 60 * options.minutes:
                break
            turn()
    table.seconds = round(time.monotonic() - start, 1)
    print(table.markdown())
    machine = {"platform": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
    counts = {kind: dict(outcomes) for kind, outcomes in table.outcomes.items()}
    command = f"make soak SOAK_MINUTES={options.minutes:g}"
    report = {"command": command, "seed": options.seed, "seconds": table.seconds, "machine": machine}
    write_json(options.out, {**report, "outcomes": counts, "unexpected": table.unexpected})
    print(f"\n{table.seconds:.0f} s, seed {options.seed}: {options.out}")
    return int(bool(table.unexpected))


class Soak:
    """The runs and what is done to them."""

    def __init__(self, folder: Path, draw: random.Random, table: Table) -> None:
        self.folder, self.draw, self.table = folder, draw, table
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["stepalign.launch"])
        self.rounds = 0
        self.undisturbed = self.settings("undisturbed")
        process = self.start(self.undisturbed)
        begin = time.monotonic()
        process.join()
        self.run_seconds = time.monotonic() - begin
        if process.exitcode:
            raise SystemExit("the undisturbed run failed")
        self.wanted = adapter(self.undisturbed.folder)
        texts = {
            rollout.id: rollout.text
            for path in sorted((self.undisturbed.folder / "rollouts").iterdir())
            for rollout in read_jsonl(path, Rollout)
        }
        self.critiques = {
            texts[json.loads(line)["rollout_id"]].strip(): json.loads(line).get("text", "")
            for path in sorted((self.undisturbed.folder / "critiques").iterdir())
            for line in path.read_text().splitlines()
        }

    def turns(self) -> Iterator[Callable[[], None]]:
        """Yield the kinds in turn, without end."""
        while True:
            yield from (self.kill_at_random, self.kill_at_an_event, self.damage, self.damage, self.fault)

    def settings(self, name: str, *overrides: str) -> config.Recipe:
        """Load the recipe of a run."""
        own = (f"name={name}", f"output_dir={self.folder}", "seed=3")
        return config.load(LAB_RECIPES / "stepalign.toml", [*KEYS, *overrides, *own]).model_copy(update={"probe": None})

    def fresh(self) -> config.Recipe:
        """Load the recipe of a run that was not started."""
        self.rounds += 1
        return self.settings(f"round-{self.rounds}")

    def start(self, settings: config.Recipe) -> Any:
        """Start a run in a process of its own."""
        process = self.processes.Process(target=in_process, args=(settings, self.folder / "said"))
        process.start()
        return process

    def kill_at_random(self) -> None:
        """Kill a run up to three times, and resume it."""
        settings = self.fresh()
        kills = 0
        for _ in range(self.draw.randint(1, 3)):
            begin = time.monotonic()
            process = self.start(settings)
            process.join(self.draw.uniform(0.05, 0.9) * self.run_seconds)
            if process.is_alive():
                kills += 1
            else:  # the machine is faster than it was
                self.run_seconds = min(self.run_seconds, time.monotonic() - begin)
            process.kill()
            process.join()
        name = f"killed at random moments, {kills} times" if kills else "meant to be killed, ended before"
        self.compare(name, settings)

    def kill_at_an_event(self) -> None:
        """Kill a run when a file appears, and resume it."""
        settings, event = self.fresh(), self.draw.choice(EVENTS)
        process = self.start(settings)
        while process.is_alive() and not any(settings.folder.glob(event)):
            time.sleep(0.0005)
        process.kill()
        process.join()
        self.compare("kill when a file appears", settings)

    def compare(self, kind: str, settings: config.Recipe) -> None:
        """Resume a run to its end, and compare its adapter with the undisturbed one."""
        process = self.start(settings)
        process.join()
        said = (self.folder / "said").read_text()
        if process.exitcode:
            self.table.add(kind, "could not be resumed", said)
        elif list(settings.folder.rglob(".*.tmp")):
            self.table.add(kind, "left temporary files")
        else:
            same = adapter(settings.folder) == self.wanted
            self.table.add(kind, SAME if same else "ANOTHER ADAPTER", settings.name)
        shutil.rmtree(settings.folder)

    def damage(self) -> None:
        """Damage one file of a run, and resume it."""
        settings = self.fresh()
        shutil.copytree(self.undisturbed.folder, settings.folder)
        text = (settings.folder / "recipe.toml").read_text()
        (settings.folder / "recipe.toml").write_text(text.replace('"undisturbed"', f'"{settings.name}"'))
        for step in range(self.draw.randint(1, 4) + 1, 5):  # the run is resumed from an earlier step, or is finished
            shutil.rmtree(settings.folder / "checkpoints" / f"step-{step:06d}")
        paths = sorted(path for path in settings.folder.glob(self.draw.choice(DAMAGED)) if path.is_file())
        path = self.draw.choice(paths or [settings.folder / "metrics.jsonl"])
        name, content = self.draw.choice(list(bytes_damaged(path.read_bytes())))
        path.write_bytes(content)
        process = self.start(settings)
        process.join()
        said = (self.folder / "said").read_text()
        where = f"{path.relative_to(settings.folder)}, {name}"
        kind = f"damage: {path.relative_to(settings.folder).parts[0].partition('.')[0]}"
        if process.exitcode == 0:
            same = adapter(settings.folder) == self.wanted
            self.table.add(kind, SAME if same else "ANOTHER ADAPTER", where)
        elif process.exitcode == 2:
            named = path.name in said or (path.name == "recipe.toml" and "a run of another recipe" in said)
            self.table.add(kind, NAMED if named else "an error without the file's name", f"{where}: {said}")
        else:
            self.table.add(kind, "a traceback", f"{where}: {said}")
        shutil.rmtree(settings.folder)

    def fault(self) -> None:
        """Train with a served critic that fails at random."""
        self.rounds += 1
        draw = random.Random(self.rounds)
        share = self.draw.choice([0.2, 0.5, 1.0])

        def critique(prompt: str) -> str:
            """Return the undisturbed run's critique of the same attempt, else one that finds no error."""
            attempt = prompt.partition("Student's Solution Begin ===\n")[2].partition("\n=== Student's")[0]
            verdicts = "".join(f"Step {step}: Correct.\n" for step in range(1, attempt.count("### ") + 1))
            right = f"### Summary\n{verdicts}\n# Your solution is fully correct.\n---\n{attempt}"
            return self.critiques.get(attempt.strip(), right)

        def answer(_: object) -> Reply:
            return draw.choice(FAULTS) if draw.random() < share else Reply(critique)

        with serving(choose=answer) as server:
            critic = (
                f'critic={{ kind = "openai", base_url = "{server.url}", model = "m", max_attempts = 1, '
                "max_retries = 1, total_timeout_s = 5, timeout_s = 2, cooldown_s = 0.05, max_outage_s = 1 }"
            )
            settings = self.settings(f"round-{self.rounds}", "training.max_steps=3", critic)
            process = self.start(settings)
            process.join(120)
            alive = process.is_alive()
            process.kill()
            process.join()
        said = (self.folder / "said").read_text()
        kind = f"critic's server fails, {share:.0%} of requests"
        if alive:
            self.table.add(kind, "hung for two minutes")
        elif process.exitcode == 0:
            lines = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
            counted = all(sum(line["cases"].values()) + sum(line["failures"].values()) == 4 for line in lines)
            self.table.add(kind, ENDED if counted else "ended with failures that are not counted")
        else:
            self.table.add(kind, STOPPED if process.exitcode == 2 else "a traceback", said)
            print(f"{kind}: {said}", file=sys.stderr)
        shutil.rmtree(settings.folder, ignore_errors=True)


def in_process(settings: config.Recipe, said: Path) -> None:
    """Train as the command does: 2 is an error with a message, 1 a traceback."""
    import traceback

    import torch

    from stepalign import launch

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    said.write_text("")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        launch.train(settings)
    except StepalignError as error:
        said.write_text(str(error))
        sys.exit(2)
    except Exception:
        said.write_text(traceback.format_exc())
        sys.exit(1)


def adapter(folder: Path) -> bytes:
    return (folder / "checkpoints" / "step-000004" / "adapter_model.safetensors").read_bytes()


if __name__ == "__main__":
    sys.exit(main())
