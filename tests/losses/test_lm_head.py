import pytest
import torch

from stepalign.losses.lm_head import chunk_tokens


@pytest.mark.parametrize(("device", "budget"), [("cpu", 96 * 2**20), ("cuda", 512 * 2**20)])
@pytest.mark.parametrize("vocab", [49_152, 151_936])
def test_a_chunk_stays_within_its_budget_and_chunks_are_even(device, budget, vocab):
    for tokens in (1, 100, 2048, 8192, 100_000):
        chunk = chunk_tokens(tokens, vocab, torch.device(device))
        assert 1 <= chunk <= tokens
        assert chunk * vocab * 4 <= budget
        chunks = -(-tokens // chunk)
        assert chunks * chunk - tokens < chunks  # the last chunk is no stub


def test_a_vocabulary_beyond_the_budget_goes_token_by_token():
    assert chunk_tokens(5, 10**9, torch.device("cpu")) == 1


def test_no_tokens_need_no_chunk():
    assert chunk_tokens(0, 49_152, torch.device("cpu")) == 0
