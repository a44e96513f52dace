import random

import pytest
import torch

from stepalign.losses.weights import LossAggMode, token_weights


@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "token-mean"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_weights_sum_to_one_over_any_split(mode: LossAggMode, size: int) -> None:
    draw = random.Random(size)
    lengths = [draw.randrange(1, n + 1) for n in (1, 2, 5, 9, 9, 40)] + [0]
    draw.shuffle(lengths)
    tokens, sequences = sum(lengths), len(lengths) - 1
    parts = [
        token_weights(lengths[i : i + size], mode, sequences=sequences, tokens=tokens)
        for i in range(0, len(lengths), size)
    ]
    weights = torch.cat(parts)
    assert len(weights) == tokens
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    for length, part in zip(lengths, weights.split(lengths), strict=True):
        expected = length / tokens if mode == "token-mean" else (length > 0) / sequences
        assert part.sum().item() == pytest.approx(expected)
