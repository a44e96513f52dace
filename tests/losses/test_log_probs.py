import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stepalign.losses import lm_head as projection
from stepalign.losses.log_probs import scores

TOKENS, HIDDEN, VOCAB = 13, 8, 37


def tensors(tokens=TOKENS, vocab=VOCAB, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    head = torch.randn(vocab, HIDDEN, generator=generator).to(dtype)
    return hidden, head, torch.randint(vocab, (tokens,), generator=generator)


def wanted(hidden, head):
    return (hidden.double() @ head.double().T).log_softmax(-1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
def test_log_probabilities_are_those_of_whole_logits_in_double_precision(dtype, tolerance):
    hidden, head, targets = tensors(dtype=dtype)
    found = scores(hidden, head, targets)
    expected = wanted(hidden, head).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(found.log_probs.double(), expected, rtol=0, atol=tolerance)


def test_a_temperature_divides_the_logits():
    hidden, head, targets = tensors(dtype=torch.bfloat16)
    found = scores(hidden, head, targets, temperature=1.3)
    expected = (hidden.double() @ head.double().T / 1.3).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(found.log_probs.double(), expected, rtol=0, atol=1e-5)


def test_the_likeliest_come_first_and_in_the_same_scale():
    hidden, head, targets = tensors()
    found = scores(hidden, head, targets, top=5)
    expected = wanted(hidden, head).topk(5, -1)
    assert torch.equal(found.top_ids, expected.indices)
    torch.testing.assert_close(found.top_log_probs.double(), expected.values, rtol=0, atol=1e-5)


def test_chunks_and_tiles_change_nothing(monkeypatch):
    hidden, head, targets = tensors()
    whole = scores(hidden, head, targets, top=3)
    monkeypatch.setitem(projection._CHUNK_BYTES, "cpu", 4 * VOCAB * 5)  # five tokens a chunk
    monkeypatch.setitem(projection._TILE_BYTES, "cpu", 1)
    cut = scores(hidden, head, targets, top=3)
    torch.testing.assert_close(cut.log_probs, whole.log_probs)
    assert torch.equal(cut.top_ids, whole.top_ids)


class _Largest(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_more_than_a_chunk_of_logits_ever_exists(monkeypatch):
    hidden, head, targets = tensors(tokens=64)
    monkeypatch.setitem(projection._CHUNK_BYTES, "cpu", 4 * VOCAB * 5)
    with _Largest() as largest:
        scores(hidden, head, targets)
    assert largest.elements <= max(5 * VOCAB, head.numel()) < 64 * VOCAB  # the head is there anyway


def test_no_tokens_have_no_scores():
    hidden, head, targets = tensors()
    found = scores(hidden[:0], head, targets[:0], top=2)
    assert found.log_probs.shape == (0,)
    assert found.top_ids.shape == (0, 2)
