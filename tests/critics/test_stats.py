import json

from stepalign.critics.stats import Prices, summarize, table
from stepalign.io import to_json
from stepalign.records import Check, Critique, CritiqueFailure, Verdict


def critique(name: str, *, verbatim: float = 1.0, case: str = "D", **more: object) -> Critique:
    checks = (
        Check(name="verbatim", measure=verbatim, passed=verbatim >= 0.98),
        Check(name="answer", measure=1.0, passed=True),
    )
    return Critique(
        rollout_id=name,
        critic="c",
        case=case,
        verdicts=(Verdict(step=1, correct=case == "A"),),
        correct_part="",
        text="text",
        checks=checks,
        prompt_tokens=1000,
        completion_tokens=200,
        seconds=0.5,
        **more,
    )


FAILED = CritiqueFailure(
    rollout_id="x",
    critic="c",
    reason="answer",
    checks=(Check(name="answer", measure=0.0, passed=False, detail="ends in 5"),),
    retried=("parse",),
    prompt_tokens=2000,
    completion_tokens=100,
)
ANSWERS = [
    critique("a", case="A"),
    critique("b"),
    critique("c", verbatim=0.5, repaired=("verbatim",), retried=("parse", "case")),
    FAILED,
]


def test_everything_is_counted_as_the_critic_wrote_it() -> None:
    report = summarize(ANSWERS, Prices(prompt=1.0, completion=10.0))
    assert (report.answers, report.critiques) == (4, 3)
    assert (report.cases, report.failures) == ({"D": 2, "A": 1}, {"answer": 1})
    assert report.checks == {
        "case": {"retried": 1},
        "verbatim": {"passed": 2, "repaired": 1},
        "answer": {"passed": 3, "fell back": 1},
        "parse": {"retried": 2},
    }
    assert report.fidelity["exact"] == 2 / 3
    assert (report.fidelity["min"], report.fidelity["median"]) == (0.5, 1.0)
    assert (report.prompt_tokens, report.completion_tokens, report.seconds) == (5000, 700, 1.5)
    assert report.cost == 0.012
    assert summarize(ANSWERS).cost is None


def test_the_table_shows_it_and_the_file_is_json() -> None:
    report = summarize(ANSWERS, Prices(prompt=1.0, completion=10.0))
    shown = table(report)
    for line in (
        "critiques     3  (2 D, 1 A)",
        "failures      1  (1 answer)",
        "fidelity      66.7% exact; mean 0.8333, min 0.5000, ",
        "tokens        5,000 read, 700 written; cost 0.0120",
        "                   passed   repaired    retried    ignored  fell back",
        "verbatim                2          1",
        "answer                  3                                           1",
    ):
        assert line in shown
    assert json.loads(to_json(report))["failures"] == {"answer": 1}


def test_no_answers_are_no_fault() -> None:
    report = summarize([])
    assert (report.answers, report.fidelity) == (0, {})
    assert "tokens        0 read, 0 written" in table(report)
