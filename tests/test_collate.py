from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepalign.algorithms.distillation_loss import DistillationExample
from stepalign.collate import collate, micro_batches, split_views
from stepalign.policy import Policy
from stepalign.views import View


def view(prompt: int = 3, completion: int = 4, start: int = 0, stop: int | None = None, first: int = 10) -> View:
    ids = tuple(range(first, first + prompt + completion))
    stop = completion if stop is None else stop
    return View(prompt_ids=ids[:prompt], completion_ids=ids[prompt:], loss_start=start, loss_stop=stop)


def test_a_batch_done_by_hand() -> None:
    first = View(prompt_ids=(5, 6), completion_ids=(7, 8, 9), loss_start=0, loss_stop=3)
    second = View(prompt_ids=(5,), completion_ids=(1, 2, 3), loss_start=1, loss_stop=2)
    third = View(prompt_ids=(4, 4, 4), completion_ids=(1, 2), loss_start=0, loss_stop=0)
    batch = collate([first, second, third])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [5, 1, 0, 0], [4, 4, 4, 0]]
    assert batch.rows.tolist() == [0, 0, 0, 1]
    assert batch.columns.tolist() == [1, 2, 3, 1]
    assert batch.targets.tolist() == [7, 8, 9, 2]


@pytest.mark.parametrize("model_folder", ["tiny_llama", "tiny_qwen3"])
@torch.no_grad()
def test_a_row_is_seen_the_same_alone_and_in_a_batch(model_folder: str, request: pytest.FixtureRequest) -> None:
    model = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(model_folder)).eval()
    views = [view(3, 5, 1, 4), view(17, 20, 0, 20, first=40), view(2, 1, first=90), view(9, 13, 6, 13, first=200)]
    batch = collate(views)
    together = model.model(batch.input_ids).last_hidden_state[batch.rows, batch.columns]
    alone = []
    for single in views:
        # The whole of it, without padding and with what comes after: position by position.
        hidden = model.model(torch.tensor([[*single.prompt_ids, *single.completion_ids]])).last_hidden_state[0]
        offset = len(single.prompt_ids) - 1
        alone.append(hidden[offset + single.loss_start : offset + single.loss_stop])
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_micro_batches_hold_every_example_once_the_longest_first_in_a_settled_order() -> None:
    lengths = [4, 9, 1, 9, 7, 3, 2]

    def pair(prompt: int) -> View:
        return View(prompt_ids=(1,) * prompt, completion_ids=(1, 1), loss_start=0, loss_stop=2)

    examples = [
        DistillationExample(rollout_id=f"r{i}", student=pair(1), teacher=pair(n))
        for i, n in enumerate(lengths)
        for view in [
            lambda p, c, first=10: View(prompt_ids=(first,) * p, completion_ids=(1,) * c, loss_start=0, loss_stop=c)
        ]
    ]
    batches = list(micro_batches(examples, 3))
    assert [[example.rollout_id for example in batch] for batch in batches] == [
        ["r1", "r3", "r4"],
        ["r0", "r5", "r6"],
        ["r2"],
    ]
    assert list(micro_batches(examples[::-1], 3)) == batches


def test_micro_batches_keep_the_student_s_padded_tokens_within_their_bound() -> None:
    lengths = [40, 12, 12, 11, 3, 3, 3, 2]
    examples = [
        DistillationExample(
            rollout_id=f"r{i}",
            student=View(prompt_ids=(1,) * (n - 1), completion_ids=(2, 3), loss_start=0, loss_stop=2),
            teacher=View(prompt_ids=(1,) * (100 - i), completion_ids=(2, 3), loss_start=0, loss_stop=2),
        )
        for i, n in enumerate(lengths)
    ]
    batches = [[example.rollout_id for example in batch] for batch in micro_batches(examples, 3, 24)]
    assert batches == [["r0"], ["r1", "r2"], ["r3", "r4"], ["r5", "r6", "r7"]], "40 tokens are alone, 3 × 11 too many"
    assert [len(batch) for batch in micro_batches(examples, 100, 24)] == [1, 2, 2, 3]
    assert [len(batch) for batch in micro_batches(examples, 100, 1)] == [1] * 8
    assert list(micro_batches([], 3, 24)) == []


def test_views_are_split_in_their_order_within_the_bound() -> None:
    views = [view(1, n) for n in (3, 9, 2, 2, 40, 1)]
    assert [len(part) for part in split_views(views, None)] == [6]
    assert [len(part) for part in split_views(views, 18)] == [2, 2, 1, 1]
    assert [each for part in split_views(views, 18) for each in part] == views
    assert list(split_views([], 18)) == []


# ── views that begin alike ────────────────────────────────────────────────────────────────────────────────────


def ids(count: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


EXAMPLES = ids(40, 0)
ONE, OTHER = EXAMPLES + ids(9, 1), EXAMPLES + ids(5, 2)
ALIKE = [
    View(prompt_ids=ONE, completion_ids=ids(12, 3), loss_start=0, loss_stop=12),
    View(prompt_ids=ONE, completion_ids=ids(12, 3), loss_start=2, loss_stop=7),  # the same ids, a part of them
    View(prompt_ids=ONE, completion_ids=ids(7, 4), loss_start=0, loss_stop=7),
    View(prompt_ids=OTHER, completion_ids=ids(20, 5), loss_start=3, loss_stop=20),
    View(prompt_ids=ids(25, 6), completion_ids=ids(30, 7), loss_start=0, loss_stop=30),
    View(prompt_ids=OTHER[:35], completion_ids=ids(4, 8), loss_start=0, loss_stop=0),
]


def test_only_sdpa_over_whole_sequences_takes_a_mask_of_any_shape(tiny_llama: Path, tiny_qwen3: Path) -> None:
    def shares(folder: Path, attention: str) -> bool:
        return Policy(AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)).shares_prefixes

    assert shares(tiny_llama, "sdpa")
    assert not shares(tiny_llama, "eager")
    assert not shares(tiny_qwen3, "sdpa"), "it has layers with a sliding window"


def test_views_in_one_row_have_the_values_and_gradients_of_rows_of_their_own(tiny_llama: Path) -> None:
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_llama))
    results = []
    for share in (False, True):
        batch = collate(ALIKE, share_prefixes=share)
        hidden = policy(batch)
        policy.zero_grad()
        (hidden * torch.linspace(-1, 1, hidden.numel()).reshape(hidden.shape)).sum().backward()
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        results.append((batch, hidden.detach(), gradients))
    (alone, own, own_gradients), (together, shared, shared_gradients) = results
    assert (alone.input_ids.shape[0], together.input_ids.shape[0]) == (6, 3)
    assert torch.equal(alone.targets, together.targets)
    torch.testing.assert_close(shared, own, rtol=1e-4, atol=1e-5)
    for name, gradient in own_gradients.items():
        torch.testing.assert_close(shared_gradients[name], gradient, rtol=1e-3, atol=1e-4)


def test_a_row_holds_common_ids_once_and_each_id_sees_its_ancestors_alone() -> None:
    views = [
        View(prompt_ids=EXAMPLES, completion_ids=completion, loss_start=0, loss_stop=3)
        for completion in ((1, 2, 3), (1, 5, 6), (7, 8, 9))
    ]
    batch = collate(views, share_prefixes=True)
    assert batch.input_ids.tolist() == [[*EXAMPLES, 1, 2, 5, 7, 8]]  # the last id of each predicts nothing
    assert batch.position_ids is not None
    assert batch.attention_mask is not None
    assert batch.position_ids[0, 39:].tolist() == [39, 40, 41, 41, 40, 41]
    seen = [row.nonzero()[:, 0].tolist() for row in batch.attention_mask[0, 0]]
    assert seen[39] == list(range(40))
    assert [row[40:] for row in seen[40:]] == [[40], [40, 41], [40, 42], [43], [43, 44]]
    assert all(row[:40] == list(range(40)) for row in seen[40:])


def test_few_common_ids_or_a_long_row_are_not_worth_sharing() -> None:
    short = [View(prompt_ids=EXAMPLES[:31], completion_ids=ids(5, n), loss_start=0, loss_stop=5) for n in range(3)]
    long = [View(prompt_ids=EXAMPLES, completion_ids=ids(900, n), loss_start=0, loss_stop=900) for n in range(2)]
    for views in (short, long):
        batch = collate(views, share_prefixes=True)
        assert batch.attention_mask is None
        assert torch.equal(batch.input_ids, collate(views).input_ids)


def test_micro_batches_keep_views_of_a_prompt_together_and_count_common_ids_once() -> None:
    examples = [
        DistillationExample(rollout_id=str(n), student=view, teacher=view)
        for n, view in enumerate(
            View(prompt_ids=(ONE, OTHER)[n % 2], completion_ids=ids(10, n), loss_start=0, loss_stop=10)
            for n in range(8)
        )
    ]
    batches = list(micro_batches(examples, 4, share_prefixes=True))
    assert [{example.student.prompt_ids for example in batch} for batch in batches] in (
        [{ONE}, {OTHER}],
        [{OTHER}, {ONE}],
    )
    # 49 + 8 × 9 + 5 ids in one row, where rows of their own would take 8 × 58.
    assert [len(batch) for batch in micro_batches(examples, 8, 126, share_prefixes=True)] == [8]
    assert [len(batch) for batch in micro_batches(examples, 8, 126)] == [2, 2, 2, 2]
