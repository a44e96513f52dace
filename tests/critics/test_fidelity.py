import random
import time

import pytest

from stepalign.critics.fidelity import MAX_EXACT, fidelity


def test_fidelity_is_the_share_of_the_original_that_the_copy_has_in_order() -> None:
    assert fidelity("  abc\n", "abc") == 1.0
    assert fidelity("axbxc", "abc") == 1.0
    assert fidelity("acb", "abc") == pytest.approx(2 / 3)
    assert fidelity("", "abc") == 0.0
    assert fidelity("anything", "") == 1.0
    text = "The quick brown fox jumps over the lazy dog. " * 50
    assert fidelity(text.replace("brown ", "", 1), text) == pytest.approx(1 - 6 / len(text.strip()))


def test_a_long_copy_is_compared_by_pieces_that_find_no_more() -> None:
    rng = random.Random(0)
    text = " ".join(rng.choice(["alpha", "beta", "gamma", "delta"]) for _ in range(2 * MAX_EXACT // 5))
    copy = "Z" + text.replace("beta", "bega", 40) + "Y"
    assert len(text) > MAX_EXACT
    assert 0.98 < fidelity(copy, text) <= 1 - 40 / len(text)
    assert fidelity(text[1:], text) >= 1 - 8 / len(text)


@pytest.mark.parametrize("alphabet", ["ab ", "0123456789", "+-*/=.", "a\n"])
def test_any_two_texts_of_125_000_characters_are_compared_in_time(alphabet: str) -> None:
    rng = random.Random(0)
    one, other = ("".join(rng.choices(alphabet, k=125_000)) for _ in range(2))
    start = time.process_time()
    assert 0 <= fidelity(one, other) <= 1
    assert time.process_time() - start < 2
