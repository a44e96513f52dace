import random

import pytest
import torch

from stepalign.losses.weights import LossAggMode, part_scales, token_weights


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


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_a_part_of_the_tokens_has_a_mean_of_its_own(mode: LossAggMode) -> None:
    part, whole = [2, 0, 3], [4, 5, 3]
    weights = token_weights(whole, mode, sequences=3, tokens=12)
    values = torch.arange(12.0)
    scales = part_scales(part, whole, mode)
    parts = torch.split(weights * values, whole)
    found = sum(scale * one[:count].sum() for scale, one, count in zip(scales, parts, part, strict=True))
    kept = [values[:2], values[9:12]]
    expected = torch.cat(kept).mean() if mode == "token-mean" else torch.stack([one.mean() for one in kept]).mean()
    torch.testing.assert_close(found, expected)
    assert part_scales([0, 0, 0], whole, mode) == [0, 0, 0]
