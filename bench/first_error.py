"""Measure how often the corrected step leads to the exact character of the error, in three phrasings.

    python bench/first_error.py ../shared/data/gsm8k/model_solutions.jsonl

Slips are planted into correct GSM8K solutions, so that the first wrong character is known. Each corrected step is put
in three phrasings: the correct trace's own, under another heading, and paraphrased by rule (`contexts.paraphrase`).
Beside each share stands that of the common beginning of the two steps, which was used before.
"""

import argparse
from collections import Counter
from dataclasses import replace
from os.path import commonprefix
from pathlib import Path

from stepalign.contexts.paraphrase import paraphrase
from stepalign.critics.first_error import first_error_span
from stepalign.error_injection import sources
from stepalign.error_injection.inject import NotInjectable, inject_error
from stepalign.error_injection.sets import true_critique
from stepalign.records import Grade, Rollout
from stepalign.trace import parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("solutions", type=Path)
    parser.add_argument("--limit", type=int, help="slips, at most")
    arguments = parser.parse_args()
    exact: Counter[str] = Counter()
    before: Counter[str] = Counter()
    count = 0
    for solution in sources.model_solutions(arguments.solutions):
        if not solution.correct or count == arguments.limit:
            continue
        try:
            slip = inject_error(solution.problem, solution.text, rollout_id="r", seed=0)
        except NotInjectable:
            continue
        count += 1
        rollout = Rollout(
            id="r",
            problem_id=solution.problem.id,
            prompt_ids=(0,),
            completion_ids=(0,) * len(slip.text),
            text=slip.text,
            token_starts=tuple(range(len(slip.text))),
            finish="stop",
            grade=Grade(correct=False, outcome="wrong"),
        )
        critique, section = true_critique(solution.problem, rollout, slip), parse(slip.text).section(slip.step)
        corrected = critique.corrected_step
        phrasings = {
            "as it was": corrected,
            "another heading": "### In other words\n" + corrected.partition("\n")[2],
            "paraphrased": paraphrase(corrected),
        }
        for name, phrasing in phrasings.items():
            span = first_error_span(parse(slip.text), replace(critique, corrected_step=phrasing))
            exact[name] += span is not None and span.departure == slip.departure
            prefix = len(commonprefix([slip.text[section.start : section.end], phrasing]))
            before[name] += section.start + prefix == slip.departure
    print(f"{count} slips: share with the exact first wrong character")
    for name in ("as it was", "another heading", "paraphrased"):
        print(f"{name:<18}{exact[name] / count:>7.1%}   common beginning {before[name] / count:>7.1%}")


if __name__ == "__main__":
    main()
