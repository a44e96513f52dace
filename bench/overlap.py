"""Measure a step with a critic that takes as long as sampling, with and without overlap.

The critic is a server process with the program critic's critiques. It answers a few requests at a time, each after a
pause, so that all of a step's critiques take as long as its rollouts (measured in a run before). In turn:
`training.overlap = true` and `false`. The goal is 1.15 × the longer of sampling and critic, and the update.

    OMP_NUM_THREADS=1 python bench/overlap.py --repeats 3
"""

import argparse
import asyncio
import json
import multiprocessing
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from stepalign import config
from stepalign.assets import LAB_RECIPES
from stepalign.critics.arithmetic.critic import ProgramCritic
from stepalign.launch import train
from stepalign.planning.pipeline import simulate_step
from stepalign.records import Critique, Grade, Problem, Rollout

IN_FLIGHT = 8
"""Requests that the server works on at a time."""
ROLLOUTS = 64
STEP = (
    *("problems.train.count=400", "problems.evaluation.count=1", "evaluation.num_samples=1", "training.eval_steps=0"),
    *("training.micro_batch_size=8", "sampler.max_num_seqs=8", "probe.num_rollouts=1"),
)
"""Rollouts end one by one; eight are sampled at a time."""


# ── the critic ──────────────────────────────────────────────────────────────────────────────────────────────


def serve(rest: float, in_flight: int, port: "multiprocessing.Queue[int]") -> None:
    """Answer each request after `rest` seconds, `in_flight` of them at a time."""
    critic = ProgramCritic()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            body = json.loads(await reader.readexactly(int(length[1]) if length else 0))
            async with room:
                await asyncio.sleep(rest)
            said = words(critic, body["messages"][0]["content"])
            writer.write(framed(said))

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    room = asyncio.Semaphore(in_flight)
    asyncio.run(run())


def words(critic: ProgramCritic, message: str) -> str:
    """What the program critic says of the attempt in a critic's prompt."""

    def between(begin: str, end: str) -> str:
        return message.partition(f"=== {begin} ===\n")[2].partition(f"\n=== {end}")[0]

    if "=== Student's Solution Begin ===" not in message:
        return "Yes."  # the run finds out if the server works
    reference = between("Reference Solution Begin", "Reference Solution End")
    answer = re.findall(r"The reference's final answer: (\d+)", message)[-1]
    text = between("Student's Solution Begin", "Student's Solution End")
    right = re.findall(r"\\boxed\{(\d+)\}", text)[-1:] == [answer]
    statement = between("Problem Begin", "Problem End")
    problem = Problem(
        id="p",
        statement=statement,
        answer=answer,
        solution=reference,
        meta={"terms": [int(n) for n in re.findall(r"\d+", statement)]},
    )
    grade = Grade(correct=right, outcome="correct" if right else "wrong")
    rollout = Rollout(id="r", problem_id="p", completion_ids=(), token_starts=(), text=text, finish="stop", grade=grade)
    (found,) = critic.critique([(problem, rollout)])
    return found.text if isinstance(found, Critique) else "I cannot say."


def framed(said: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


# ── the runs ────────────────────────────────────────────────────────────────────────────────────────────────


def steps_of(
    folder: Path, rest: float, *, overlap: bool, steps: int, rollouts: int = ROLLOUTS, in_flight: int = IN_FLIGHT
) -> list[dict[str, Any]]:
    """Every step's timeline but the first one's, of a run against a critic that rests so long."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[int] = context.Queue()
    server = context.Process(target=serve, args=(rest, in_flight, queue), daemon=True)
    server.start()
    settings = config.load(
        LAB_RECIPES / "stepalign.toml",
        [
            *STEP,
            f"training.max_steps={steps + 1}",
            f"training.rollouts_per_step={rollouts}",
            f"training.overlap={str(overlap).lower()}",
            f"output_dir={folder}",
            f'critic={{ kind = "openai", base_url = ["http://127.0.0.1:{queue.get()}/v1"], model = "program" }}',
        ],
    )
    train(settings)
    server.terminate()
    return [json.loads(line) for line in (settings.folder / "timeline.jsonl").read_text().splitlines()][1:]


def spent(step: dict[str, Any], *stages: str) -> float:
    """Seconds that a step spent in stages."""
    return sum(end - start for stage in stages for start, end in step.get(stage, []))


def wall(step: dict[str, Any]) -> float:
    """Seconds from a step's begin to its end."""
    return max(end for name, spans in step.items() if name != "step" for _, end in spans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="keep the last overlapped run here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = steps_of(Path(folder) / "first", 0.0, overlap=False, steps=arguments.steps)
        sampling = statistics.median(spent(step, "sample") for step in first)
        rest = sampling * IN_FLIGHT / ROLLOUTS
        print(f"sampling takes {sampling:.2f} s; each critique {rest:.3f} s, {IN_FLIGHT} at a time", flush=True)
        ratios, against, predicted = [], [], []
        for repeat in range(arguments.repeats):
            took: dict[bool, float] = {}
            for overlap in (False, True):
                kept = arguments.keep if overlap and repeat == arguments.repeats - 1 else None
                out = kept or Path(folder) / f"{repeat}-{overlap}"
                steps = steps_of(out, rest, overlap=overlap, steps=arguments.steps)
                took[overlap] = statistics.median(map(wall, steps))
                sample, learn, wait = (
                    statistics.median(spent(step, *stages) for step in steps)
                    for stages in (("sample",), ("teacher", "student", "optimizer"), ("critique",))
                )
                if not overlap:
                    bound = max(sample, wait) + learn
                simulated = statistics.median(
                    simulate_step(
                        [start for start, _ in step["answered"]] or [spent(step, "sample")] * ROLLOUTS,
                        [rest] * ROLLOUTS,
                        max_concurrency=IN_FLIGHT,
                        micro_batch_size=8,
                        learning=spent(step, "teacher", "student", "optimizer"),
                        overlap=overlap,
                    ).seconds
                    for step in steps
                )
                predicted.append(simulated / took[overlap])
                print(
                    f"  overlap {overlap!s:<5}: step {took[overlap]:.2f} s; sampling {sample:.2f}, "
                    f"waiting for the critic {wait:.2f}, learning {learn:.2f}; simulated {simulated:.2f}",
                    flush=True,
                )
            ratios.append(took[True] / bound)
            against.append(took[True] / took[False])
        print(
            f"step / (the longer of sampling and critic, and learning): {statistics.mean(ratios):.2f} "
            f"[{min(ratios):.2f}, {max(ratios):.2f}]; of a step without overlap: {statistics.mean(against):.2f} "
            f"[{min(against):.2f}, {max(against):.2f}] ({arguments.repeats} rounds, lowest and highest)\n"
            f"simulated / measured: {statistics.mean(predicted):.2f} [{min(predicted):.2f}, {max(predicted):.2f}]"
        )


if __name__ == "__main__":
    main()
