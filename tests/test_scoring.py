import random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepalign import scoring
from stepalign.collate import Batch
from stepalign.policy import Policy
from stepalign.scoring import log_odds, score_views
from stepalign.views import View


def views(count: int = 9) -> list[View]:
    draws = random.Random(1)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draws.randrange(300) for _ in range(length))

    made = []
    for _ in range(count):
        completion = ids(draws.randrange(1, 20))
        made.append(
            View(
                prompt_ids=ids(draws.randrange(1, 30)),
                completion_ids=completion,
                loss_start=0,
                loss_stop=len(completion),
            )
        )
    return made


@pytest.fixture(params=["tiny_llama", "tiny_qwen3"])
def policy(request: pytest.FixtureRequest) -> Policy:
    return Policy(AutoModelForCausalLM.from_pretrained(request.getfixturevalue(request.param))).eval()


@torch.no_grad()
def plain(policy: Policy, view: View) -> torch.Tensor:
    """Log-probabilities of one completion from whole logits, all in float64, without our batches or chunks."""
    model = policy.base.double()
    ids = torch.tensor([[*view.prompt_ids, *view.completion_ids]])
    logits = model(ids).logits[0, len(view.prompt_ids) - 1 : -1]
    policy.base.float()
    return logits.log_softmax(-1)


def test_every_token_is_seen_as_a_plain_computation_in_double_precision_sees_it(policy: Policy) -> None:
    seen = score_views(policy, views(), top=4)
    for view, one in zip(views(), seen, strict=True):
        whole = plain(policy, view)
        expected = whole.gather(-1, torch.tensor(view.completion_ids)[:, None]).squeeze(-1)
        torch.testing.assert_close(torch.tensor(one.log_probs).double(), expected, rtol=0, atol=1e-4)
        best = whole.topk(4, -1)
        assert [[token for token, _ in top] for top in one.top] == best.indices.tolist()
        for top, values in zip(one.top, best.values.tolist(), strict=True):
            assert [value for _, value in top] == pytest.approx(values, abs=1e-4)


def test_a_view_alone_is_seen_as_among_others(policy: Policy) -> None:
    together = score_views(policy, views())
    for view, one in zip(views(), together, strict=True):
        (alone,) = score_views(policy, [view])
        assert alone.log_probs == pytest.approx(one.log_probs, abs=1e-4)


def test_batches_are_of_similar_length_and_within_the_budget(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[torch.Size] = []

    def forward(batch: Batch) -> torch.Tensor:
        sizes.append(batch.input_ids.shape)
        return policy(batch)

    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", 80)
    score_views(SimpleNamespace(forward=forward, head=policy.head, shares_prefixes=False), views())
    assert sum(rows for rows, _ in sizes) == 9
    assert len(sizes) > 1
    assert all(rows * longest <= 80 for rows, longest in sizes)
    assert [longest for _, longest in sizes] == sorted((longest for _, longest in sizes), reverse=True)


def test_nothing_to_see_is_nothing_seen(policy: Policy) -> None:
    assert score_views(policy, []) == []


def test_log_odds_compare_words_at_the_end_of_prompts_that_share_their_beginning(policy: Policy) -> None:
    start = tuple(range(7, 60))
    prompts = [(*start[:40], 5), (*start, 5, 6), start[:50], (3, 4)]
    found = log_odds(policy, prompts, [8, 9], [11])
    for ids, one in zip(prompts, found, strict=True):
        view = View(prompt_ids=ids, completion_ids=(8,), loss_start=0, loss_stop=1)
        row = plain(policy, view)[0]
        assert one == pytest.approx(float(row[[8, 9]].logsumexp(0) - row[11]), abs=1e-4)
