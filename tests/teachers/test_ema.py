"""Moving average of a student: the effect that is averaged, its rank, and when it moves."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stepalign import config
from stepalign.policy import Policy
from stepalign.teachers.ema import EMATeacher, LowRankAverage, nearest_of_rank
from test_policy import batch, load, trained


@pytest.fixture
def policy(tiny_llama: Path) -> Policy:
    return load(tiny_llama)


def ema(policy: Policy, **keys: Any) -> EMATeacher:
    return EMATeacher(config.EMATeacherConfig(**keys), policy=policy)


def products(tensors: dict[str, torch.Tensor], policy: Policy) -> list[torch.Tensor]:
    return [tensors[pair.up].double() @ tensors[pair.down].double() for pair in policy.lora_pairs()]


def of_adapter(policy: Policy) -> list[torch.Tensor]:
    return products({name: parameter.detach() for name, parameter in policy.named_parameters()}, policy)


def test_every_factor_of_the_adapter_is_paired_once(policy: Policy) -> None:
    pairs = policy.lora_pairs()
    wanted = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert {name for pair in pairs for name in pair} == wanted
    assert len(pairs) == len(wanted) // 2 == 2 * 7


def test_the_average_is_of_the_products_not_of_the_factors(policy: Policy) -> None:
    """Against the dense average, at a rank that is wide enough to be exact; the factors' own averages are far off."""
    average, rate = LowRankAverage(policy, rank=64), 0.3
    dense = [torch.zeros_like(product) for product in of_adapter(policy)]
    apart = {name: p.detach().clone() for name, p in policy.named_parameters() if "lora_" in name}
    for _ in range(5):
        trained(policy)
        average.update(policy, rate)
        dense = [torch.lerp(mean, new, rate) for mean, new in zip(dense, of_adapter(policy), strict=True)]
        for name, mean in apart.items():
            mean.lerp_(policy.get_parameter(name).detach(), rate)
    for mine, wanted, other in zip(products(average.tensors, policy), dense, products(apart, policy), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
        assert (other - wanted).norm() > 0.01 * wanted.norm()
    assert average.metrics()["teacher_truncation"] < 1e-5


@pytest.mark.parametrize("rank", [4, 6, 8])
def test_the_distance_from_the_exact_average_is_within_the_measured_bound(rank: int, policy: Policy) -> None:
    average, rate = LowRankAverage(policy, rank), 0.2
    dense = [torch.zeros_like(product) for product in of_adapter(policy)]
    for _ in range(6):
        trained(policy)
        average.update(policy, rate)
        dense = [torch.lerp(mean, new, rate) for mean, new in zip(dense, of_adapter(policy), strict=True)]
    errors = [(mine - wanted).norm() for mine, wanted in zip(products(average.tensors, policy), dense, strict=True)]
    assert all(error <= bound + 1e-5 for error, bound in zip(errors, average.error, strict=True))
    distance = torch.stack(errors).norm() / torch.stack([mean.norm() for mean in dense]).norm()
    assert 1e-4 < distance <= 1.1 * average.metrics()["teacher_truncation"] < 1


def test_after_many_equal_updates_the_teacher_is_the_student(policy: Policy) -> None:
    teacher = ema(trained(policy), update_rate=0.2)
    start = teacher.forward(batch())
    for _ in range(80):
        teacher.after_update(policy)
    assert torch.equal(start, policy.forward_base(batch()))
    torch.testing.assert_close(teacher.forward(batch()), policy.eval()(batch()), rtol=1e-4, atol=1e-4)


def test_one_update_moves_by_the_rate(policy: Policy) -> None:
    """Which is the policy with its adapter's effect times the rate."""
    teacher = ema(trained(policy), update_rate=0.25)
    teacher.after_update(policy)
    scaled = {pair.up: 0.25 * policy.get_parameter(pair.up).detach() for pair in policy.lora_pairs()}
    torch.testing.assert_close(teacher.forward(batch()), policy.forward_with(scaled, batch()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "moves"),
    [
        ({}, [1, 2, 2, 3]),
        ({"update_every": "rollout_batch"}, [0, 0, 1, 1]),
        ({"sync_steps": 2}, [0, 1, 1, 1]),
        ({"update_every": "rollout_batch", "sync_steps": 2}, [0, 0, 0, 0]),
    ],
    ids=["step", "batch", "every second step", "every second batch"],
)
def test_it_moves_when_the_recipe_says(
    keys: dict[str, Any], moves: list[int], policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates and the end of their step, then an update. A step without an update moves nothing."""
    teacher, calls = ema(trained(policy), **keys), []
    monkeypatch.setattr(teacher.average, "update", lambda *_: calls.append(1))
    counts = []
    for hook in (teacher.after_update, teacher.after_update, teacher.after_step, teacher.after_update):
        hook(policy)
        counts.append(len(calls))
    assert counts == moves
    ended = ema(policy, **keys)
    monkeypatch.setattr(ended.average, "update", lambda *_: pytest.fail("moved"))
    ended.after_step(policy)


def test_the_nearest_matrix_is_the_truncated_one() -> None:
    torch.manual_seed(0)
    up, down = torch.randn(3, 10, 6), torch.randn(3, 6, 7)
    cut = nearest_of_rank(up, down, 4)
    u, s, vh = torch.linalg.svd(up @ down)
    torch.testing.assert_close(cut.up @ cut.down, u[:, :, :4] @ (s[:, :4, None] * vh[:, :4]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cut.dropped, s[:, 4:].norm(dim=-1), rtol=1e-4, atol=1e-5)
    wide = nearest_of_rank(up, down, 9)
    assert (wide.up.shape, wide.down.shape) == ((3, 10, 9), (3, 9, 7))
    torch.testing.assert_close(wide.up @ wide.down, up @ down, rtol=1e-4, atol=1e-5)
