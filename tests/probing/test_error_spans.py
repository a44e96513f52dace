from stepalign.probing.error_spans import mark_from_critique, mark_from_slip, token_regions
from stepalign.records import Critique, Mark, PlantedSlip, Rollout, Verdict

TEXT = "### Step 1: Add\n2 + 3 = 5\n\n### Step 2: Add 41\n5 + 41 = 48\n\n### Final Answer:\n\\boxed{48}"


def rollout(text: str = TEXT) -> Rollout:
    """One token a character, and an EOS."""
    ids = (*(ord(character) % 300 for character in text), 0)
    return Rollout(
        id="r", problem_id="p", completion_ids=ids, text=text, token_starts=tuple(range(len(ids))), finish="stop"
    )


def critique(first_error: int | None, corrected: str = "", case: str = "D") -> Critique:
    verdicts = [Verdict(step=k, correct=k != first_error) for k in range(1, 4)]
    return Critique(
        rollout_id="r", critic="c", case=case, verdicts=verdicts, correct_part="", corrected_step=corrected, text="t"
    )


def test_a_slip_is_marked_where_it_was_planted() -> None:
    start = TEXT.index("48")
    slip = PlantedSlip(
        rollout_id="r", problem_id="p", kind="arithmetic", step=2, start=start, end=start + 2, text=TEXT,
        correct_text=TEXT.replace("48", "46"),
    )  # fmt: skip
    mark = mark_from_slip(slip)
    assert (TEXT[mark.start : mark.end], mark.step, mark.source) == ("48", 2, "planted")
    assert mark.departure == start + 1


def test_a_critique_marks_the_whole_number_in_which_the_steps_part() -> None:
    mark = mark_from_critique(rollout(), critique(2, "### Step 2: Add 41\n5 + 41 = 46"))
    assert mark is not None
    assert (TEXT[mark.start : mark.end], mark.step, mark.source) == ("48", 2, "critique")
    assert (mark.start, mark.departure) == (TEXT.index("48"), TEXT.index("48") + 1)


def test_a_correction_in_other_words_marks_the_same_number_and_one_without_a_difference_the_whole_step() -> None:
    mark = mark_from_critique(rollout(), critique(2, "### Step 2: Take all together\n46"))
    assert mark is not None
    assert (TEXT[mark.start : mark.end], mark.departure) == ("48", TEXT.index("48") + 1)
    mark = mark_from_critique(rollout(), critique(2, "### Step 2: Take all together\nSo we have 5 plus 41 = 48"))
    assert mark is not None
    assert TEXT[mark.start : mark.end].startswith("### Step 2")
    assert mark.end == TEXT.index("### Final")
    assert mark.departure is None


def test_what_is_right_or_only_unfinished_or_missing_has_no_mark() -> None:
    assert mark_from_critique(rollout(), critique(None)) is None
    assert mark_from_critique(rollout(), critique(2, "### Step 2: Add 41\n", case="C")) is None
    short = rollout(TEXT[: TEXT.index("### Final")])
    assert mark_from_critique(short, critique(3)) is None
    assert mark_from_critique(rollout("no steps at all"), critique(1)) is None


def test_parts_are_the_steps_in_tokens_and_what_is_before_at_and_after() -> None:
    start = TEXT.index("48")
    mark = Mark(rollout_id="r", step=2, start=start, end=start + 2, departure=start + 1, source="planted")
    regions = token_regions(rollout(), mark)
    second, answer = TEXT.index("### Step 2"), TEXT.index("### Final")
    assert regions.steps == ((0, second), (second, answer), (answer, len(TEXT) + 1))
    assert regions.departure == start + 1
    assert (regions.error, regions.wrong_step) == ((start, start + 2), 2)
    unmarked = token_regions(rollout(), None)
    assert (unmarked.error, unmarked.wrong_step) == (None, None)
