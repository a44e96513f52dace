import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from stepalign.errors import StepalignError
from stepalign.records import Grade, Problem, Rollout
from stepalign.rewards import math
from stepalign.rewards.math import MAX_CHARACTERS, MAX_MEMORY_BYTES, MathGrader
from stepalign.trace import final_answers

MODEL_SOLUTIONS = Path(__file__).parents[2] / "../shared/data/gsm8k/model_solutions.jsonl"

HANGING = "9^{9^{9^9}}"


@pytest.fixture(scope="module")
def grader():
    with MathGrader(num_workers=1, timeout_s=20) as grader:
        yield grader


def problem(answer: str) -> Problem:
    return Problem(id=answer, statement="?", answer=answer)


def rollout(name: str, problem_id: str, text: str) -> Rollout:
    return Rollout(id=name, problem_id=problem_id, completion_ids=(1,), text=text, token_starts=(0,), finish="stop")


def grades(grader: MathGrader, reference: str, *texts: str) -> list[Grade]:
    rollouts = [rollout(str(i), reference, text) for i, text in enumerate(texts)]
    graded = grader.grade(rollouts, {reference: problem(reference)})
    assert [r.id for r in graded] == [r.id for r in rollouts]
    return [r.grade for r in graded if r.grade is not None]


def boxes(*answers: str) -> list[str]:
    return [rf"So \boxed{{{answer}}}." for answer in answers]


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def children() -> set[int]:
    """The child processes, without `ps` and the process that counts multiprocessing's semaphores."""
    with subprocess.Popen(["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], stdout=subprocess.PIPE, text=True) as listing:
        lines = [line.split(maxsplit=2) for line in listing.communicate()[0].splitlines()]
    own = {int(pid): command for pid, parent, *command in lines if int(parent) == os.getpid()}
    return {pid for pid, command in own.items() if pid != listing.pid and "resource_tracker" not in str(command)}


@contextmanager
def started(workers: int, timeout_s: float = 10) -> Iterator[tuple[MathGrader, Callable[[], set[int]]]]:
    """A grader whose workers are up, and a way to list them."""
    others = children()
    with MathGrader(num_workers=workers, timeout_s=timeout_s) as grader:
        assert grader.same([("1", "1.0"), ("1", "2")]) == [True, False]
        yield grader, lambda: children() - others


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def eventually(condition, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


# ── what is equal ─────────────────────────────────────────────────────────────────────────────────

EQUAL = [
    ("72", "72"), ("72", "72.0"), ("72", r"\textbf{72}"), ("72", "72."), ("72", " 72\n"), ("72", r"$72$"),
    ("72", r"\$72"), ("18", r"18\text{ dollars}"), ("12", r"12\text{ cm}^2"), ("-3", "-3"),
    ("1/2", r"\frac{1}{2}"), ("1/2", "0.5"), (r"\frac{1}{2}", r"\dfrac12"), ("1/2", r"\frac{2}{4}"),
    ("3 1/2", "3.5"), ("1/3", "0.333333"), (".5", "1/2"), ("$5.00", "5"), (r"\$5.00", "5.0"), ("5", r"5.00"),
    ("1,234", "1234"), ("1234", "1{,}234"), ("5000", r"5\,000"), ("1 234 567", "1234567"),
    (r"10\%", "10%"), ("10%", "0.1"), (r"10\%", "10"), ("x=3", "3"), ("x=3", "x = 3"), ("3", "x=3"),
    ("(1,2)", r"\left(1, 2\right)"), (r"\{1,2\}", r"\{2,1\}"), ("1, 2", "2,1"), ("[0,1)", "[0, 1)"),
    (r"\sqrt{8}", r"2\sqrt{2}"), ("x^2+2x+1", "(x+1)^2"), (r"\pi/2", r"\frac{\pi}{2}"), ("1024", "2^{10}"),
    ("f(n) = 1", "f(n)=1"), ("90", r"90^\circ"), (r"\boxed{5}", "5"), (r"\(5\)", "5"), ("A", r"\text{(A)}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("Infinitely many", r"\text{Infinitely many}"), (r"\text{Infinitely many}", "infinitely many."),
    ("Yes", r"\text{yes}"), ("Monday", r"\textbf{\text{Monday}}"), ("无穷多", r"\text{无穷多}"),
]  # fmt: skip
DIFFERENT = [
    ("72", "73"), ("72", "-72"), ("72", "720"), ("1/2", "0.51"), ("1/3", "0.333"), ("1,234", "1.234"),
    ("x=3", "x=4"), ("x=3", "y=3"), ("(1,2)", "(2,1)"), (r"\{1,2\}", r"\{1,3\}"), ("[0,1)", "[0,1]"),
    ("x^2", "2x"), ("72", ""), ("72", r"\text{seventy-two}"), ("72", "x^"), ("72", "}{"),
    ("72", r"\frac{1"), ("Infinitely many", "127"), ("Infinitely many", r"\text{Finitely many}"),
    ("listen", "silent"), ("3 1/2", "2"), ("1/2", "1/0"), ("A", "B"),
]  # fmt: skip


def test_equal_answers_are_equal_however_they_are_written(grader):
    assert [pair for pair, same in zip(EQUAL, grader.same(EQUAL), strict=True) if not same] == []


def test_different_answers_are_different(grader):
    assert [pair for pair, same in zip(DIFFERENT, grader.same(DIFFERENT), strict=True) if same] == []


def test_a_reference_that_cannot_be_parsed_is_compared_as_text(grader):
    assert grader.same([("a^ {b", "a^{b"), ("a^ {b", "a^{c"), (r"\foo{", r"\foo {")]) == [True, False, True]


# ── what counts as the answer ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (r"### Step 1: a" "\n" r"\boxed{3}" "\n" r"### Final Answer:" "\n" r"\boxed{5}", ("5",)),
        ("### Final Answer:\n" r"\boxed{4}, no, \boxed{5}", ("5",)),
        ("### Final Answer:\n" r"\boxed{4}\boxed{ }", ("4",)),
        ("### Final Answer:\nfive, as " r"**Step 2** says", ()),
        (r"\boxed{5}" "\n### Final Answer:\n5", ("5",)),
        ("### Final Answer:\n\\boxed{5}\n### Step 2: again\n\\boxed{6}", ("5", "6")),
        (r"\boxed{5}, that is \boxed{5}", ("5",)),
        (r"\boxed{4} or \boxed{5}", ("4", "5")),
        ("<think>\\boxed{4}</think>\\boxed{5}", ("5",)),
        ("<think>\\boxed{4}", ()),
        ("The answer is 5.", ()),
        (r"\boxed{5", ()),
        ("", ()),
    ],
)
def test_the_answer_is_the_last_box_of_the_final_section_or_the_only_one(text, answers):
    assert final_answers(rollout("r", "5", text)) == answers


def test_a_rollouts_own_format_says_what_its_answer_is(grader):
    """Paragraphs need no box; steps do."""
    answer = replace(rollout("r", "5", "Three and two make\n\n5"), trace_format="paragraphs")
    boxes = replace(answer, text=r"\boxed{4} or \boxed{5}")
    cut = [replace(one, finish="length") for one in (answer, boxes)]
    graded = grader.grade([answer, replace(answer, trace_format="steps"), boxes, *cut], {"5": problem("5")})
    assert [r.grade.outcome for r in graded] == ["correct", "missing", "correct", "missing", "correct"]


def test_each_way_to_answer_has_its_outcome(grader):
    final = "\n### Final Answer:\n"
    found = grades(
        grader,
        "5",
        r"\boxed{4}" + final + r"\boxed{5}",
        r"\boxed{5}" + final + r"\boxed{4}",
        r"\boxed{4} or \boxed{5}",
        r"\boxed{5} or \boxed{5.0} or \boxed{\frac{10}{2}}",
        "5",
        r"\boxed{" + "1" * (MAX_CHARACTERS + 1) + "}",
    )
    assert [grade.outcome for grade in found] == [
        "correct",
        "wrong",
        "ambiguous",
        "correct",
        "missing",
        "error",
    ]
    assert [grade.correct for grade in found] == [True, False, False, True, False, False]


def test_equal_answers_are_one_string(grader):
    right = grades(grader, "1/2", *boxes("1/2", "0.5", r"\frac{2}{4}", r"50\%"))
    assert {(grade.outcome, grade.final_answer) for grade in right} == {("correct", "1/2")}
    near = grades(grader, "1/3", *boxes("1/3", "0.333333"))
    assert {(grade.outcome, grade.final_answer) for grade in near} == {("correct", "1/3")}
    wrong = grades(grader, "1/2", *boxes("72", "72.0", r"\textbf{72}", "x = 72", r"8 \cdot 9"))
    assert {(grade.outcome, grade.final_answer) for grade in wrong} == {("wrong", "72")}
    words = grades(grader, "127", *boxes(r"\text{Infinitely many}", "infinitely many"))
    assert {(grade.outcome, grade.final_answer) for grade in words} == {("wrong", "infinitely many")}


def test_a_wrong_answer_never_shares_the_references_string(grader):
    (right,), (wrong,) = grades(grader, "x=3", *boxes("3")), grades(grader, "x=3", *boxes("y=3"))
    assert (right.outcome, wrong.outcome) == ("correct", "wrong")
    assert right.final_answer != wrong.final_answer


def test_a_number_too_long_to_be_written_out_keeps_its_text(grader):
    (grade,) = grades(grader, "72", *boxes("2^{100000}"))
    assert (grade.outcome, grade.final_answer) == ("wrong", "2^{100000}")


def test_feedback_names_what_was_extracted_and_never_the_reference(grader):
    reference = "4711"
    texts = [*boxes("5", r"5} or \boxed{6", "9" * 3000), "No box.", *boxes(reference)]
    assert [grade.feedback for grade in grades(grader, reference, *texts)] == [
        "The final answer 5 is wrong.",
        "The solution gives several different final answers: 5; 6.",
        f"The final answer {'9' * 200}… could not be compared with the reference.",
        r"The solution has no final answer in \boxed{…}.",
        "The final answer 4711 is correct.",
    ]


def test_an_unknown_problem_is_named(grader):
    with pytest.raises(StepalignError, match="rollout r7: there is no problem 'p'"):
        grader.grade([rollout("r7", "p", "")], {})


def test_nothing_to_compare_starts_nothing():
    others = children()
    with MathGrader() as grader:
        assert grader.grade([], {}) == []
        assert grader.same([]) == []
        assert grades(grader, "5", "no answer")[0].outcome == "missing"
        assert children() == others


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────


def test_a_hanging_answer_costs_one_timeout():
    ordinary = [str(n) for n in range(60)]
    texts = boxes(*ordinary[:20], HANGING, *ordinary[20:], HANGING)
    with started(workers=2, timeout_s=1) as (grader, _):
        began = time.monotonic()
        found = grades(grader, "7", *texts)
        took = time.monotonic() - began
    outcomes = [grade.outcome for grade in found]
    assert [i for i, outcome in enumerate(outcomes) if outcome == "timeout"] == [20, 61]
    assert [i for i, outcome in enumerate(outcomes) if outcome == "correct"] == [7]
    assert [i for i, outcome in enumerate(outcomes) if outcome == "wrong"] == [
        i for i in range(62) if i not in (7, 20, 61)
    ]
    assert found[20].feedback == f"The final answer {HANGING} could not be compared with the reference in time."
    assert 1 <= took < 5


def test_every_answer_has_the_whole_time_to_itself():
    pairs = [(rf"{k}\sqrt{{3}}", rf"\sqrt{{{3 * k * k}}}") for k in range(2, 302)]  # about two seconds of work
    with started(workers=1, timeout_s=1) as (grader, _):
        assert grader.same(pairs) == [True] * 300


def test_a_call_that_was_interrupted_does_not_answer_the_next():
    class Interruption(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with started(workers=1) as (grader, _):
            threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGUSR1]).start()
            with pytest.raises(Interruption):
                grader.same([("1", HANGING), ("1", "1.0")])
            assert grader.same([("5", "5.0"), ("5", "6")]) == [True, False]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_exploding_latex_is_bounded_and_the_others_are_graded():
    texts = [
        *boxes("7"),
        r"\boxed{" + "{" * 1_000_000,
        r"\boxed{" + "{" * 500_000 + "}" * 500_000 + "}",
        *boxes(r"\frac{1}{" * 190 + "2" + "}" * 190, "{" * 900 + "}" * 900, "7.0"),
    ]
    with started(workers=1, timeout_s=1) as (grader, _):
        found = grades(grader, "7", *texts)
    assert [grade.correct for grade in found] == [True, False, False, False, False, True]
    assert [grade.outcome for grade in found[1:3]] == ["missing", "error"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's address space")
def test_a_workers_memory_is_bounded():
    with started(workers=1) as (_, workers):
        (worker,) = workers()
        limits = Path(f"/proc/{worker}/limits").read_text()
    assert re.search(rf"Max address space +{MAX_MEMORY_BYTES} ", limits)


def test_an_idle_worker_that_is_killed_is_replaced():
    with started(workers=1) as (grader, workers):
        (killed,) = workers()
        os.kill(killed, signal.SIGKILL)
        assert grader.same([("1", "1.0"), ("1", "2")]) == [True, False]
        assert killed not in workers()


def test_a_worker_killed_at_work_loses_no_answer():
    pairs = [(str(n), f"{n}.0") for n in range(1000)]
    with started(workers=2) as (grader, workers):
        killed = workers()
        assert len(killed) == 2
        killer = threading.Timer(0.1, lambda: [os.kill(worker, signal.SIGKILL) for worker in killed])
        killer.start()
        assert grader.same(pairs) == [True] * 1000
        killer.join()
        assert workers().isdisjoint(killed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what a process is doing from /proc")
def test_an_answer_that_kills_its_worker_twice_is_an_error():
    with started(workers=1, timeout_s=30) as (grader, workers):

        def kill_what_hangs() -> None:
            for _ in range(2):
                (worker,) = workers()
                assert eventually(lambda pid=worker: cpu_seconds(pid) > 0.5 + startup, seconds=10)
                os.kill(worker, signal.SIGKILL)
                assert eventually(lambda pid=worker: workers() not in ({pid}, set()), seconds=10)

        (worker,) = workers()
        startup = cpu_seconds(worker)
        killer = threading.Thread(target=kill_what_hangs)
        killer.start()
        found = grades(grader, "7", *boxes(HANGING, "7"))
        killer.join()
    assert [grade.outcome for grade in found] == ["error", "correct"]


def test_workers_that_cannot_start_are_an_error():
    multiprocessing.set_executable(str(shutil.which("false")))
    try:
        with MathGrader() as grader, pytest.raises(StepalignError, match=r"no grading process can be started"):
            grader.same([("1", "2")])
    finally:
        multiprocessing.set_executable(sys.executable)


def test_threads_take_turns():
    with started(workers=1) as (grader, _):
        results = {}

        def work(n: int) -> None:
            results[n] = grader.same([(str(n), f"{n}.0"), (str(n), str(n + 1))])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {n: [True, False] for n in range(6)}


def test_closing_leaves_no_process():
    with started(workers=2) as (_, list_workers):
        workers = list_workers()
        assert len(workers) == 2
    assert not any(map(running, workers))


@contextmanager
def program(body: str) -> Iterator[subprocess.Popen[str]]:
    """A program that grades. `show()` in it prints the ids of its workers."""
    source = """
        import multiprocessing, os, signal, threading, time
        from stepalign.rewards.math import MathGrader
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        def show():
            print(*sorted(child.pid for child in multiprocessing.active_children()), flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source) + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running_program:
        try:
            yield running_program
        finally:
            running_program.kill()


def shown(running_program: subprocess.Popen[str]) -> list[int]:
    assert running_program.stdout is not None
    return [int(pid) for pid in running_program.stdout.readline().split()]


def test_ctrl_c_ends_the_workers_and_keeps_them_silent():
    with program(
        rf"""
        with MathGrader(num_workers=2, timeout_s=30) as grader:
            grader.same([("1", "2"), ("1", "3")])
            show()
            threading.Timer(0.3, show).start()
            grader.same([("1", r"{HANGING}"), ("1", r"2+{HANGING}")])
        """
    ) as interrupted:
        workers = shown(interrupted)
        assert len(workers) == 2
        assert shown(interrupted) == workers  # they hang now
        os.killpg(interrupted.pid, signal.SIGINT)
        _, errors = interrupted.communicate(timeout=10)
    assert errors.count("Traceback") == 1
    assert "KeyboardInterrupt" in errors
    assert not any(map(running, workers))


def test_idle_workers_die_with_their_parent():
    with program(
        """
        grader = MathGrader(num_workers=2)
        grader.same([("1", "2"), ("1", "3")])
        show()
        time.sleep(60)
        """
    ) as killed:
        workers = shown(killed)
        assert len(workers) == 2
        killed.kill()
        assert eventually(lambda: not any(map(running, workers)), seconds=10)


@pytest.mark.slow
def test_a_hanging_worker_outlives_its_parent_by_seconds_only():
    with program(
        rf"""
        grader = MathGrader(num_workers=1, timeout_s=0.8)
        grader.same([("1", "1")])
        show()
        threading.Timer(0.3, os._exit, [0]).start()
        grader.same([("1", r"{HANGING}")])
        """
    ) as gone:
        (worker,) = shown(gone)
        assert gone.wait(timeout=10) == 0
        assert running(worker)
        assert eventually(lambda: not running(worker), seconds=10)


def test_a_forked_child_grades_without_disturbing_its_parent():
    with program(
        """
        right, wrong = [[(str(n), f"{n + d}.0") for n in range(60)] for d in (0, 1)]
        with MathGrader(num_workers=1) as grader:
            grader.same([("1", "2")])
            show()
            child = os.fork()
            if child == 0:
                with grader:
                    assert grader.same(wrong) == [False] * 60
                os._exit(0)
            assert grader.same(right) == [True] * 60
            assert os.waitpid(child, 0)[1] == 0
            show()
        """
    ) as forked:
        out, errors = forked.communicate(timeout=30)
    before, after = out.splitlines()
    assert before == after
    assert (forked.returncode, errors) == (0, "")


def test_a_forked_child_that_ends_leaves_its_parents_workers_alone():
    with program(
        """
        with MathGrader(num_workers=1) as grader:
            grader.same([("1", "2")])
            show()
            child = os.fork()
            if child == 0:
                raise SystemExit
            assert os.waitpid(child, 0)[1] == 0
            assert grader.same([("1", "1.0")]) == [True]
            show()
        """
    ) as forked:
        out, errors = forked.communicate(timeout=30)
    before, after = out.splitlines()
    assert before == after
    assert (forked.returncode, errors) == (0, "")


def test_a_script_without_a_guard_is_not_run_again_by_workers_and_their_prints_stay_apart(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from stepalign.rewards import math\n"
        "print('once')\n"
        "with math.MathGrader(num_workers=1) as grader:\n"
        "    pool = grader._schedule(('1', ('1',))) and grader._pool\n"
        "    pool.schedule(print, ('from a parser',)).result()\n"
        "    print(grader.same([('1', '1.0')]))\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert result.stdout == "once\n[True]\n"
    assert result.stderr == "from a parser\n"


def test_a_pool_whose_lock_died_with_a_worker_is_replaced(monkeypatch):
    with started(workers=2, timeout_s=1) as (grader, workers):
        before = workers()
        monkeypatch.setattr(math, "_STALL_S", 0.5)
        assert grader._pool._pool_manager.worker_manager.workers_channel.mutex.acquire()
        monkeypatch.setattr(math, "_START_S", 60)
        assert grader.same([("5", "5.0"), ("5", "6")]) == [True, False]
        assert workers().isdisjoint(before)


def test_a_worker_that_ran_out_of_memory_ends():
    source = (
        "from stepalign.rewards import math\n"
        "def judge(*_): raise MemoryError\n"
        "math.judge = judge\n"
        "math._work(('1', ('2',)), 60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")  # it neither replied nor raised


def test_a_worker_imports_no_torch():
    source = (
        "import sys\n"
        "from stepalign.rewards.math import _work\n"
        "_work(('1/2', ('2',)), 60)\n"
        "print('torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


# ── real solutions ────────────────────────────────────────────────────────────────────────────────


def test_real_solutions_are_graded_as_their_labels_say(grader):
    if not MODEL_SOLUTIONS.exists():
        pytest.skip("GSM8K's model solutions are not beside this repository")
    pairs, labels = [], []
    for line in MODEL_SOLUTIONS.read_text().splitlines()[:150]:
        row = json.loads(line)
        reference = row["ground_truth"].rpartition("A:")[2].strip()
        for model in ("6b_finetuning", "175b_verification"):
            answer = row[model]["solution"].rpartition("A:")[2].strip()
            pairs.append((reference, rf"So \boxed{{{answer}}}"))
            labels.append(row[model]["is_correct"])
    problems = {reference: problem(reference) for reference, _ in pairs}
    graded = grader.grade([rollout(str(i), ref, text) for i, (ref, text) in enumerate(pairs)], problems)
    wrongly = [
        (pair, label, r.grade) for pair, label, r in zip(pairs, labels, graded, strict=True) if r.correct != label
    ]
    assert wrongly == []
