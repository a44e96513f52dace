import pytest
import torch
from transformers import AutoModelForCausalLM

from stepalign.algorithms.distillation_loss import DistillationExample
from stepalign.collate import collate, micro_batches, split_views
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
