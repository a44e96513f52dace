"""What is rehearsed is what a step does, and what is made of it. Seconds themselves are `bench/plan.py`'s business."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stepalign import config, models
from stepalign.config import Recipe
from stepalign.planning import rehearsal
from stepalign.planning.estimate import Lengths, occupancy
from stepalign.planning.rehearsal import Rehearsed, rehearse
from stepalign.planning.shape import shape
from stepalign.rollouts import Request
from stepalign.rollouts.transformers import TransformersSampler

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")
# Short, since the counter of operations does not know the CPU's attention.
SHORT = Lengths(prompt=4, completion=12, teacher_prompt=8, critic_prompt=0, critique=0, evaluation=12)


def test_rows_that_end_make_room_as_in_the_sampler(tiny_llama: Path) -> None:
    base = models.load_base(config.ModelConfig(name_or_path=str(tiny_llama)), CPU)
    sampler = TransformersSampler(base, eos_ids=frozenset(range(0, 400, 20)), batch_size=8)
    decoded: list[int] = []
    base.get_decoder().register_forward_pre_hook(
        lambda _, args, given: decoded.append(len(given["input_ids"])) if given["input_ids"].shape[1] == 1 else None,
        with_kwargs=True,
    )
    requests = [Request(id=str(n), prompt_ids=(1, 2, 3), seed=n) for n in range(40)]
    drawn = sampler.sample(requests, config.SamplingConfig(max_new_tokens=60), adapter=None)
    lengths = [float(len(completion.ids)) for completion in drawn]
    assert min(lengths) < 10 < max(lengths), "they end at different times"
    estimated = list(occupancy(lengths, 8))
    assert sum(rows * times for rows, times in estimated) == pytest.approx(sum(lengths))
    assert sum(times for _, times in estimated) == pytest.approx(len(decoded), rel=0.25)


def test_rows_of_one_batch_are_alive_as_long_as_they_write() -> None:
    assert [(rows, times) for rows, times in occupancy([2, 4, 4], 8) if times] == [(3, 2), (2, 2)]
    assert list(occupancy([], 8)) == []


@pytest.mark.parametrize("overrides", [(), ("training.gradient_checkpointing=true",), ('algorithm={kind="grpo"}',)])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_the_update_that_is_rehearsed_has_the_operations_its_rate_is_taken_from(
    overrides: tuple[str, ...], make_recipe: MakeRecipe
) -> None:
    settings = make_recipe("lora.r=1", *overrides)  # the adapters' own products are left out
    sizes = shape(settings.model, settings.lora, gpu=False)
    scene = rehearsal._Scene(settings, sizes, SHORT, 0, sizes.layers)
    policy = models.load_policy(settings.model, settings.lora, 0, CPU)
    with FlopCounterMode(display=False) as counter:
        taken = scene._learn(policy)
    rounds = 1 + rehearsal._ROUNDS
    assert rounds * sum(scene.flops.values()) == pytest.approx(counter.get_total_flops(), rel=0.25)
    assert set(scene.flops) | {"optimizer"} == set(taken), "each stage has its seconds"


def test_what_takes_too_long_is_rehearsed_smaller(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_recipe()
    sizes = shape(settings.model, settings.lora, gpu=False)
    whole = rehearsal._Scene(settings, sizes, SHORT.times(20), 64, sizes.layers)
    monkeypatch.setattr(rehearsal, "_FLOPS", sum(whole.flops.values()) / 10)
    short = rehearsal._Scene(settings, sizes, SHORT.times(20), 64, sizes.layers)
    assert sum(short.flops.values()) <= 1.25 * rehearsal._FLOPS
    assert short.rows[-1] * short.context * 2 * sizes.projections <= rehearsal._FLOPS


def test_layers_that_were_not_rehearsed_cost_what_the_others_cost(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_recipe()
    sizes = shape(settings.model, settings.lora, gpu=False)

    def measured(scene: rehearsal._Scene, layers: int) -> dict[str, float]:
        pieces = ("teacher", "student", "optimizer", "read", "short tick", *(f"tick {rows}" for rows in scene.rows))
        return {"empty": 7e9, "learning": 9e9, "sampling": 8e9, **dict.fromkeys(pieces, 3.0 + 2.0 * layers)}

    monkeypatch.setattr(rehearsal, "_apart", measured)
    monkeypatch.setattr(rehearsal, "_LAYERS", 1)
    monkeypatch.setattr(rehearsal, "_CACHE_BYTES", 1)
    deep = sizes.__class__(**{**vars(sizes), "layers": 10, "projections": 5 * sizes.projections})
    found = rehearse(settings, deep, SHORT, 0)
    assert found.optimizer == pytest.approx(3 + 2 * 10)
    assert found.tick(1, found.context) == pytest.approx(3 + 2 * 10)
    assert found.process["learning"] == pytest.approx(9e9, rel=0.01), "beside tensors, which are small here"


def test_a_token_for_more_rows_takes_longer_and_more_context_too() -> None:
    rates = {"reading": 1.0, "frozen": 1.0, "student": 1.0, "optimizer": 0.0, "memory": 1.0}
    device = Rehearsed(ticks={1: 1.0, 5: 3.0}, context=10, attending=0.1, process={}, **rates)  # type: ignore[arg-type]
    assert device.tick(3, 10) == pytest.approx(2.0)
    assert device.tick(10, 10) == pytest.approx(6.0), "beyond what was measured as much a row"
    assert device.tick(5, 12) == pytest.approx(3.0 + 0.1 * 5 * 2)


@pytest.mark.slow
def test_a_rehearsal_measures_time_and_memory(make_recipe: MakeRecipe) -> None:
    settings = make_recipe()
    sizes = shape(settings.model, settings.lora, gpu=False)
    found = rehearse(settings, sizes, SHORT, 6)
    assert min(found.reading, found.frozen, found.student, found.optimizer, *found.ticks.values()) > 0
    assert sorted(found.ticks) == [1, 2, 4, 6]
    assert 0.1e9 < found.process["sampling"] < 3e9
