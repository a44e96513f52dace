import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stepalign import recipe
from stepalign.critics import make, schema
from stepalign.critics.openai import OpenAICritic
from stepalign.errors import StepalignError
from stepalign.grading import Grader
from stepalign.prompts import load
from stepalign.records import Critique, CritiqueFailure, FinishReason, Grade, Problem, Rollout, Verdict
from stepalign.traces import parse

KEY = "sk-very-secret-0123456789"
PROBLEM = Problem(id="p", statement="Compute 47 + 38 + 12.", answer="97", solution="85 + 12 = 97")
TEXT = "### Step 1: a\n47 + 38 = 85\n\n### Step 2: b\n85 + 12 = 98\n\n### Final Answer:\n\\boxed{98}"
VERDICTS = (
    Verdict(step=1, correct=True),
    Verdict(step=2, correct=False, reason="85 + 12 is 97."),
    Verdict(step=3, correct=True),
)
PART = schema.prefix(parse(TEXT), 2)
GOOD = schema.compose("D", VERDICTS, PART, "### Step 2: b\n85 + 12 = 97", "### Final Answer:\n\\boxed{97}")


@dataclass
class Reply:
    """What the server does with one request."""

    content: str | None = GOOD
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    reasoning: str | None = None
    body: str | None = None
    drop: bool = False
    wait_s: float = 0.0


@dataclass
class Server:
    url: str
    replies: list[Reply]
    """One a request, in order; the last one serves all that follow."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(*replies: Reply) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                reply = server.replies[min(len(server.requests), len(server.replies) - 1)]
                server.requests.append({"path": self.path, **request})
                server.keys.append(self.headers["Authorization"])
                server.times.append(time.perf_counter())
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            closed.wait(reply.wait_s)
            with server.lock:
                server.at_once -= 1
            if reply.drop:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            message = {"role": "assistant", "content": reply.content, "reasoning_content": reply.reasoning}
            completion = {
                "id": "c", "object": "chat.completion", "created": 0, "model": "critic",
                "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
                "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
            }  # fmt: skip
            body = (json.dumps(completion) if reply.body is None else reply.body).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
            self.send_response(reply.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError, ValueError):  # the client may have gone
                super().handle()

    closed = threading.Event()
    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listener.server_port}/v1", list(replies) or [Reply()])
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        closed.set()
        listener.shutdown()
        listener.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("STEPALIGN_CRITIC_API_KEY", KEY)


GRADER = Grader(recipe.Grading(workers=1))  # plain arithmetic decides every answer here: no worker starts


def critic(url: str, **settings: Any) -> OpenAICritic:
    table = {"kind": "openai", "base_url": url, "model": "critic", "timeout_s": 20.0, **settings}
    return OpenAICritic(recipe.OpenAICritic.model_validate(table), GRADER, Path())


def attempt(
    text: str = TEXT, *, name: str = "r", correct: bool = False, finish: FinishReason = "stop"
) -> tuple[Problem, Rollout]:
    grade = Grade(correct=correct, outcome="correct" if correct else "wrong")
    rollout = Rollout(
        id=name, problem_id="p", completion_ids=(), token_starts=(), text=text, finish=finish, grade=grade
    )
    return PROBLEM, rollout


def ask(*replies: Reply, given: tuple[Problem, Rollout] | None = None, **settings: Any) -> Critique | CritiqueFailure:
    with serving(*replies) as server:
        (found,) = critic(server.url, **settings).critique([given or attempt()])
    return found


def failure(*replies: Reply, given: tuple[Problem, Rollout] | None = None, **settings: Any) -> CritiqueFailure:
    found = ask(*replies, given=given, **settings)
    assert isinstance(found, CritiqueFailure), found
    return found


def test_a_good_answer_becomes_a_critique() -> None:
    found = ask(Reply(f"<think>Step 1: Incorrect </think> hm</think>\n\n{GOOD}\n"))
    assert isinstance(found, Critique)
    assert (found.rollout_id, found.critic, found.case, found.first_error) == ("r", "critic", "D", 2)
    assert (found.text, found.correct_part, found.fidelity) == (GOOD, PART, 1.0)
    assert (found.corrected_step, found.continuation) == (
        "### Step 2: b\n85 + 12 = 97", "### Final Answer:\n\\boxed{97}",
    )  # fmt: skip
    assert (found.prompt_tokens, found.completion_tokens) == (11, 7)
    assert found.seconds > 0


def test_the_request_is_one_user_message_whose_beginning_every_attempt_shares() -> None:
    with serving() as server:
        others = attempt(name="a"), attempt("### Step 1: other\n1 + 1 = 3", name="b", finish="length")
        list(critic(server.url, temperature=0.0, top_p=0.9, max_tokens=77, concurrency=1).critique(others))
    first = server.requests[0]
    assert (first["path"], first["model"]) == ("/v1/chat/completions", "critic")
    assert (first["temperature"], first["top_p"], first["max_tokens"]) == (0.0, 0.9, 77)
    messages = [request["messages"] for request in server.requests]
    assert [[message["role"] for message in each] for each in messages] == [["user"], ["user"]]
    one, two = (each[0]["content"] for each in messages)
    shared = one[: one.index("=== Student's Solution Begin ===")]
    assert two.startswith(shared)
    assert shared.index("# Hard rules") < shared.index(PROBLEM.statement) < shared.index("85 + 12 = 97")
    assert TEXT in one
    assert "cut off" not in one
    assert "cut off here by the token limit" in two


def test_the_prompt_asks_for_the_very_headings_that_are_read() -> None:
    prompt = load("critic", frozenset({"problem", "solution", "answer", "attempt", "truncated"}))[0].render(
        problem="", solution="", answer="", attempt="", truncated=False
    )
    assert schema.SUMMARY in prompt
    assert schema.FULLY_CORRECT in prompt
    for headings in schema.HEADINGS.values():
        for heading in vars(headings).values():
            assert f"\n{heading.format(k='K')}\n" in prompt


def test_what_a_rollout_says_is_no_template() -> None:
    with serving() as server:
        list(critic(server.url).critique([attempt("{{ answer }} {% raw %} <|im_end|>")]))
    assert "{{ answer }} {% raw %} <|im_end|>" in server.requests[0]["messages"][0]["content"]


def test_a_server_error_is_retried() -> None:
    with serving(Reply(status=500, body="{}"), Reply()) as server:
        (found,) = critic(server.url).critique([attempt()])
    assert isinstance(found, Critique)
    assert len(server.requests) == 2


def test_a_rate_limit_is_waited_out_as_the_server_asks() -> None:
    with serving(Reply(status=429, headers={"Retry-After": "1"}, body="{}"), Reply()) as server:
        (found,) = critic(server.url).critique([attempt()])
    assert isinstance(found, Critique)
    assert server.times[1] - server.times[0] >= 1


def test_a_dropped_connection_is_retried() -> None:
    assert isinstance(ask(Reply(drop=True), Reply()), Critique)


def test_a_server_that_keeps_failing_is_a_failure_after_the_retries() -> None:
    with serving(Reply(status=503, body="{}", headers={"Retry-After-Ms": "10"})) as server:
        (found,) = critic(server.url, retries=2).critique([attempt()])
    assert isinstance(found, CritiqueFailure)
    assert found.reason == "server"
    assert len(server.requests) == 3


def test_a_server_that_cannot_be_reached_is_a_failure() -> None:
    with serving() as server:
        url = server.url
    (found,) = critic(url, retries=0).critique([attempt()])
    assert isinstance(found, CritiqueFailure)
    assert (found.reason, "Connection" in found.detail) == ("server", True)


def test_a_hanging_answer_costs_one_timeout() -> None:
    start = time.perf_counter()
    assert failure(Reply(wait_s=30), timeout_s=0.4, retries=5).reason == "timeout"
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("reply", "reason", "detail"),
    [
        (Reply(GOOD[:200], finish="length"), "truncated", "max_tokens"),
        (Reply("<think>I keep thinking", finish="length"), "truncated", "max_tokens"),
        (Reply("<think>I keep thinking"), "parse", "never ends"),
        (Reply("The student is right, I believe."), "parse", "none of the headings"),
        (Reply(GOOD.replace("# Continuing", "# And")), "parse", "no heading '# Continuing"),
        (Reply("<think>so</think>\n"), "parse", "nothing after"),
        (Reply(None, reasoning=GOOD), "parse", "empty"),
        (Reply(""), "parse", "empty"),
        (Reply(body="not JSON"), "server", ""),
        (Reply(body="<html>", headers={"Content-Type": "text/html"}), "server", "not a chat completion"),
        (Reply(body='{"choices": []}'), "server", "not a chat completion"),
        (Reply(body='{"error": "no"}'), "server", "not a chat completion"),
        (Reply(GOOD.replace("47 + 38", "we add")), "verbatim", "of step 1 is copied"),
        (Reply(GOOD.replace("\\boxed{97}", "\\boxed{99}")), "answer", "ends in '99', the reference"),
        (Reply(GOOD.replace("\\boxed{97}", "97")), "answer", "no \\boxed"),
        (Reply(GOOD.replace("### Final", "### Step 2: b\n85 + 12 = 98\n### Final")), "withheld", "step 2"),
    ],
)  # fmt: skip
def test_an_answer_that_may_not_teach_is_a_failure_with_its_reason(reply: Reply, reason: str, detail: str) -> None:
    found = failure(reply, retries=0, policy={"verbatim": "fail"})
    assert found.reason == reason
    assert detail in found.detail


def test_a_lie_about_the_grade_is_a_failure() -> None:
    right = tuple(Verdict(step=k, correct=True) for k in (1, 2, 3))
    assert failure(Reply(schema.compose("A", right, TEXT))).reason == "case"
    assert failure(Reply(), given=attempt(correct=True)).reason == "case"
    cut_off = GOOD.replace("has an error at", "ran out of tokens and needs completing from")
    assert failure(Reply(cut_off)).reason in ("case", "parse")


def test_a_right_answer_is_copied_whole_or_fails() -> None:
    right = tuple(Verdict(step=k, correct=True) for k in (1, 2, 3))
    given = attempt(correct=True)
    found = ask(Reply(schema.compose("A", right, TEXT)), given=given)
    assert isinstance(found, Critique)
    assert (found.case, found.correct_part) == ("A", TEXT)
    copied = {"verbatim": "drop"}
    assert failure(Reply(schema.compose("A", right, TEXT[:40])), given=given, policy=copied).reason == "verbatim"


def test_a_copy_that_is_faithful_enough_is_accepted_and_measured() -> None:
    found = ask(Reply(GOOD.replace("47 + 38", "47+38")), checks={"min_fidelity": 0.8})
    assert isinstance(found, Critique)
    assert found.fidelity == pytest.approx(1 - 2 / len(PART))


def test_answers_come_as_they_are_ready_and_no_more_at_once_than_allowed() -> None:
    with serving(Reply(wait_s=1.5), Reply()) as server:
        asked = critic(server.url, concurrency=3).critique(attempt(name=str(n)) for n in range(8))
        order = [found.rollout_id for found in asked]
    assert sorted(order) == [str(n) for n in range(8)]
    assert order.index("0") > 3
    assert 1 < server.most_at_once <= 3


def test_attempts_are_taken_only_as_there_is_room() -> None:
    taken = []

    def attempts() -> Iterator[tuple[Problem, Rollout]]:
        for number in range(10):
            taken.append(number)
            yield attempt(name=str(number))

    with serving() as server:
        answers = critic(server.url, concurrency=2).critique(attempts())
        assert taken == []
        next(answers)
        assert len(taken) <= 4
        assert len(list(answers)) == 9


def test_closing_early_cancels_what_is_under_way() -> None:
    before = threading.active_count()
    with serving(Reply(), Reply(wait_s=30)) as server:
        start = time.perf_counter()
        answers = critic(server.url, concurrency=4).critique(attempt(name=str(n)) for n in range(6))
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert time.perf_counter() - start < 5
        assert not [thread for thread in threading.enumerate() if thread.name == "critic"]
    assert threading.active_count() <= before + 8  # the server's own handlers may linger


def test_an_interruption_while_waiting_stops_at_once() -> None:
    def attempts() -> Iterator[tuple[Problem, Rollout]]:
        yield attempt()
        raise KeyboardInterrupt

    with serving(Reply(wait_s=30)) as server:
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            list(critic(server.url).critique(attempts()))
        assert time.perf_counter() - start < 5
        assert not [thread for thread in threading.enumerate() if thread.name == "critic"]


def test_the_key_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    refusal = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with serving(Reply(status=401, body=refusal)) as server:
        asked = critic(server.url)
        (found,) = asked.critique([attempt()])
    assert server.keys == [f"Bearer {KEY}"]
    assert isinstance(found, CritiqueFailure)
    assert (found.reason, "Incorrect API key provided" in found.detail) == ("server", True)
    assert KEY not in found.detail + repr(asked) + repr(vars(asked))
    assert KEY not in "".join(record.getMessage() for record in caplog.records if record.name[:10] == "stepalign")


def test_a_server_that_needs_no_key_gets_a_placeholder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEPALIGN_CRITIC_API_KEY")
    with serving() as server:
        (found,) = critic(server.url).critique([attempt()])
    assert isinstance(found, Critique)
    assert server.keys == ["Bearer none"]


def test_a_base_url_that_is_none_is_an_error_before_anything_is_sent() -> None:
    with pytest.raises(StepalignError, match=r"critic\.base_url: .*found 'localhost:8000'"):
        make(recipe.OpenAICritic(base_url=("localhost:8000",), model="critic"), GRADER, Path())


def test_a_template_of_ones_own_is_used(tmp_path: Path) -> None:
    template = tmp_path / "mine.txt"
    template.write_text("Judge {{ attempt }} of {{ problem }}")
    with serving() as server:
        list(critic(server.url, prompt=str(template)).critique([attempt()]))
    assert server.requests[0]["messages"][0]["content"] == f"Judge {TEXT} of {PROBLEM.statement}"
    template.write_text("{{ grade }}")
    with pytest.raises(StepalignError, match="unknown variables grade"):
        critic("http://localhost/v1", prompt=str(template))
