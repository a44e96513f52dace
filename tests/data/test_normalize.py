import subprocess
import sys

import pytest

from stepalign.data import normalize
from stepalign.data.normalize import Candidate, collect
from stepalign.errors import StepalignError


def candidate(number: int, statement: str = "", answer: str = "1", **more: object) -> Candidate:
    return Candidate(
        where=f"line {number}",
        id=f"p-{number}",
        statement=statement or f"Problem {number}",
        answer=answer,
        **more,
    )


def test_what_is_left_out_is_counted_and_named() -> None:
    result = collect(
        "rows",
        [
            candidate(1, "What is 1 + 1?", "2"),
            candidate(2, " \n"),
            candidate(3, answer=" "),
            candidate(4, "What  is\n1 + 1? ", "2"),
            candidate(5, rejected="pass rate"),
            candidate(6),
        ],
    )
    assert [problem.id for problem in result.problems] == ["p-1", "p-6"]
    assert result.dropped == {"empty statement": 1, "missing answer": 1, "duplicate": 1, "pass rate": 1}
    assert result.places == {
        "empty statement": ["line 2"],
        "missing answer": ["line 3"],
        "duplicate": ["line 4 (as line 1)"],
        "pass rate": ["line 5"],
    }


def test_the_same_letters_in_another_unicode_form_are_a_duplicate_but_another_case_is_not() -> None:
    result = collect("rows", [candidate(1, "caf\u00e9"), candidate(2, "cafe\u0301"), candidate(3, "CAF\u00c9")])
    assert [problem.id for problem in result.problems] == ["p-1", "p-3"]


def test_a_rejected_problem_counts_once_however_many_solutions_it_has() -> None:
    rows = [candidate(number, "Same", rejected="pass rate") for number in range(3)]
    result = collect("rows", [*rows, candidate(9)])
    assert result.dropped == {"pass rate": 1, "duplicate": 2}


def test_a_complete_row_is_kept_after_an_incomplete_one_of_the_same_problem() -> None:
    result = collect("rows", [candidate(1, "Same", answer=""), candidate(2, "Same", answer="7")])
    assert [problem.answer for problem in result.problems] == ["7"]


def test_no_row_is_read_after_the_limit_is_full() -> None:
    read = []

    def rows() -> object:
        for number in range(10):
            read.append(number)
            yield candidate(number)

    assert len(collect("rows", rows(), limit=3).problems) == 3  # type: ignore[arg-type]
    assert read == [0, 1, 2]


def test_nothing_left_is_an_error_with_the_counts() -> None:
    with pytest.raises(StepalignError, match=r"a\.jsonl: no problems left: 2 missing answer, 1 empty statement"):
        collect("a.jsonl", [candidate(1, answer=""), candidate(2, answer=""), candidate(3, " ")])
    with pytest.raises(StepalignError, match=r"a\.jsonl: no problems left: it is empty"):
        collect("a.jsonl", [])


def test_two_problems_of_one_id_are_an_error_that_names_both_places() -> None:
    twice = [Candidate(where=f"line {number}", id="x", statement=f"Problem {number}", answer="1") for number in (1, 2)]
    with pytest.raises(StepalignError, match="line 2: id 'x' is already that of line 1"):
        collect("rows", twice)


def test_text_that_no_file_can_hold_is_an_error_that_names_the_row() -> None:
    with pytest.raises(StepalignError, match="line 4: not a problem"):
        collect("rows", [candidate(4, "half a surrogate pair: \ud800")])


def test_rows_beyond_the_bound_are_counted_but_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalize, "NAMED", 2)
    result = collect("rows", [candidate(0), *(candidate(number, "Same") for number in range(1, 6))])
    assert result.dropped == {"duplicate": 4}
    assert len(result.places["duplicate"]) == 2


def test_the_room_loads_nothing_heavy_before_a_source_is_read() -> None:
    check = (
        "import sys, stepalign.data, stepalign.data.selection; "
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'reasoning_gym'} & sys.modules.keys(); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
