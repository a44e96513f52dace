"""10,000 rollouts against a model critic that answers after 50 ms, 64 requests in flight; then killed and resumed.

The server is an asyncio process of its own that answers every sum with its true critique, so that parsing, checks
and the cache cost what they cost in a run. Ideal is 10,000 / 64 × 50 ms = 7.8 s. Then the same in a process
that is killed (SIGKILL) half-way and run again on its cache: the server counts every prompt it was asked for.

    python bench/critic_throughput.py
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from stepalign import config, data
from stepalign.critics.arithmetic.critic import ProgramCritic
from stepalign.critics.openai import OpenAICritic
from stepalign.records import Critique, Grade, Problem, Rollout
from stepalign.rewards.math import MathGrader

DELAY_S, IN_FLIGHT = 0.05, 64


def attempts(count: int) -> Iterator[tuple[Problem, Rollout]]:
    """Sums of four numbers, two of three with a slip at the second step."""
    for number, problem in enumerate(data.load(config.SumsConfig(count=count, terms=4, digits=3)).problems):
        total, steps = 0, []
        for at, term in enumerate(map(int, problem.meta["terms"])):  # type: ignore[arg-type]
            if at:
                after = total + term + (at == 2 and number % 3 > 0)
                steps.append(f"### Step {at}: Add {term}\n{total} + {term} = {after}")
                total = after
            else:
                total = term
        text = "\n\n---\n\n".join([*steps, f"### Final Answer:\n\\boxed{{{total}}}"])
        right = str(total) == problem.answer
        grade = Grade(correct=right, outcome="correct" if right else "wrong")
        yield (
            problem,
            Rollout(
                id=f"r{number}",
                problem_id=problem.id,
                completion_ids=(),
                token_starts=(),
                text=text,
                finish="stop",
                grade=grade,
            ),
        )


# ── the server ──────────────────────────────────────────────────────────────────────────────────────────────


def serve(answers: dict[str, str], port: "multiprocessing.Queue[int]") -> None:
    """Answer each prompt by its problem after 50 ms; GET tells how often each was asked."""
    bodies = {statement: completion(text) for statement, text in answers.items()}
    asked: Counter[bytes] = Counter()

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.buffer = transport, b""

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            while (head := self.buffer.find(b"\r\n\r\n")) >= 0:
                length = re.search(rb"(?i)content-length: *(\d+)", self.buffer[:head])
                end = head + 4 + (int(length[1]) if length else 0)
                if len(self.buffer) < end:
                    return
                request, self.buffer = self.buffer[head + 4 : end], self.buffer[end:]
                if not request:
                    self.transport.write(
                        framed(json.dumps([len(asked), asked.total(), max(asked.values(), default=0)]))
                    )
                    continue
                message = json.loads(request)["messages"][0]["content"]
                statement = message.partition("=== Problem Begin ===\n")[2].partition("\n=== Problem End")[0]
                asked[hashlib.sha1(request).digest()] += 1
                asyncio.get_running_loop().call_later(DELAY_S, self.transport.write, bodies[statement])

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=256)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def completion(text: str) -> bytes:
    return framed(
        json.dumps(
            {
                "object": "chat.completion",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1000, "completion_tokens": 300},
            }
        )
    )


def framed(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


# ── the client ──────────────────────────────────────────────────────────────────────────────────────────────


def run(port: int, given: list[tuple[Problem, Rollout]], folder: Path, kill_after: int | None = None) -> None:
    """Have every attempt critiqued; print what it took."""
    settings = config.OpenAICriticConfig(
        base_url=(f"http://127.0.0.1:{port}/v1",), model="critic", max_concurrency=IN_FLIGHT
    )
    with MathGrader() as grader:
        critic = OpenAICritic(settings, grader, folder)
        start, cpu, taught, middle = time.perf_counter(), time.process_time(), 0, 0
        for number, answer in enumerate(critic.critique(iter(given)), start=1):
            taught += isinstance(answer, Critique) and all(check.passed for check in answer.checks)
            if number == len(given) // 2:
                middle = peak_mib()
            if number == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
        seconds, used = time.perf_counter() - start, time.process_time() - cpu
    ideal = len(given) / IN_FLIGHT * DELAY_S
    print(
        f"  {len(given):,} rollouts in {seconds:.2f} s, {seconds / ideal:.2f} × the ideal {ideal:.2f} s; "
        f"{1000 * used / len(given):.2f} ms of one core each; {taught:,} passed every check"
    )
    print(f"  peak memory {middle:.0f} MiB half-way, {peak_mib():.0f} MiB at the end", flush=True)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    given = list(attempts(arguments.count))
    answers = {answer.rollout_id: answer for answer in ProgramCritic().critique(given)}
    texts = {problem.statement: answers[rollout.id].text for problem, rollout in given}  # type: ignore[union-attr]
    assert len(texts) == len(given), "two sums are equal"
    context = multiprocessing.get_context("fork")
    for repeat in range(arguments.repeats + 1):
        last = repeat == arguments.repeats
        with tempfile.TemporaryDirectory() as folder:
            queue: multiprocessing.Queue[int] = context.Queue()
            server = context.Process(target=serve, args=(texts, queue), daemon=True)
            server.start()
            port = queue.get()
            print("killed half-way, and resumed" if last else f"run {repeat + 1} of {arguments.repeats}", flush=True)
            for kill_after in (len(given) // 2, None) if last else (None,):
                client = context.Process(target=run, args=(port, given, Path(folder), kill_after))
                client.start()
                client.join()
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as response:
                    prompts, requests, most = json.load(response)
                print(
                    f"  exit {client.exitcode}; the server counts {prompts:,} prompts in {requests:,} requests, "
                    f"each at most {most} times"
                )
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
