import pytest
import torch

from stepalign.objectives.weights import token_weights

COUNTED = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()


def test_per_sequence_every_sequence_with_a_counted_token_has_the_same_say():
    weights = token_weights(COUNTED, "sequence", denominator=2)
    expected = torch.tensor([[1, 1, 1, 1], [0, 4, 0, 0], [0, 0, 0, 0]]) / 8
    torch.testing.assert_close(weights, expected)


def test_per_token_every_counted_token_has_the_same_say():
    weights = token_weights(COUNTED, "token", denominator=5)
    torch.testing.assert_close(weights, COUNTED / 5)


@pytest.mark.parametrize(("normalize", "denominator"), [("sequence", 2), ("token", 5)])
def test_how_rows_are_cut_into_micro_batches_changes_nothing(normalize, denominator):
    whole = token_weights(COUNTED, normalize, denominator=denominator)
    parts = [token_weights(COUNTED[row : row + 1], normalize, denominator=denominator) for row in range(3)]
    assert torch.cat(parts).equal(whole)
    assert whole.sum() == pytest.approx(1)


@pytest.mark.parametrize(("normalize", "found"), [("sequence", 2), ("token", 5)])
def test_a_denominator_of_the_wrong_window_is_refused(normalize, found):
    with pytest.raises(ValueError, match=f"this micro-batch alone has {found}"):
        token_weights(COUNTED, normalize, denominator=1)


@pytest.mark.parametrize("normalize", ["sequence", "token"])
def test_nothing_counted_weighs_nothing(normalize):
    assert token_weights(torch.zeros(2, 3).bool(), normalize, denominator=0).equal(torch.zeros(2, 3))
