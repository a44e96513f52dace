"""Training texts of the lab's solver: shares, contexts, and nothing that depends on more than the seed."""

from collections import Counter
from itertools import islice
from random import Random

from tools.lab_solver import corpus


def test_contexts_have_equal_shares() -> None:
    found = Counter(example.context for example in islice(corpus.examples(Random(0)), 400))
    assert 0.4 < found[None] / 400 < 0.6
    assert {name: 0.07 < found[name] / 400 < 0.19 for name in corpus.CONTEXTS} == dict.fromkeys(corpus.CONTEXTS, True)


def test_the_same_seed_gives_the_same_texts() -> None:
    first, second = (list(islice(corpus.examples(Random(3)), 20)) for _ in range(2))
    assert first == second


def test_each_context_shows_what_the_loop_will_show() -> None:
    random = Random(1)
    shown = {name: corpus.example(random, 5, name).message for name in corpus.CONTEXTS}
    assert "Reference:\n### Step 1: Add " in shown["refsol"]
    assert "Feedback:\n### Summary\nStep 1: " in shown["stepalign"]
    assert "Attempt:\n### Step 1: Add " in shown["quoted"]
    assert "Feedback:\nStep 1: This step is " in shown["verdicts"]
    assert "=" not in shown["verdicts"]


def test_behind_feedback_solutions_are_mostly_right_and_behind_verdicts_as_ever() -> None:
    def right(context: str | None) -> float:
        random = Random(5)
        texts = [corpus.example(random, 5, context) for _ in range(120)]
        answers = [
            sum(map(int, text.message.partition(".")[0].removeprefix("Compute ").split(" + "))) for text in texts
        ]
        ends = (text.response.endswith(f"\\boxed{{{answer}}}") for text, answer in zip(texts, answers, strict=True))
        return sum(ends) / 120

    alone, verdicts, feedback = right(None), right("verdicts"), right("stepalign")
    assert 0.35 < alone < 0.65
    assert abs(alone - verdicts) < 0.15
    assert feedback > alone + 0.15
