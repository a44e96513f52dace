"""Training with a sampler that has weights of its own, and the check that they are the policy's."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stepalign.config import Recipe
from stepalign.errors import StepalignError
from stepalign.rollouts import Request
from stepalign.rollouts import vllm_server as servers
from stepalign.rollouts.generate import make_sampler
from stepalign.trainer.build import build_trainer
from stepalign.trainer.loop import Trainer
from stepalign.trainer.run_folder import RunFolder
from stepalign.trainer.weight_sync import NotSyncedError, check_synced
from tests.rollouts.served import BASE, Served, serve

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def served(tiny_llama: Path) -> Iterator[Served]:
    with serve(tiny_llama) as server:
        yield server


def over(*servers: Served) -> str:
    urls = [server.url for server in servers]
    return f'sampler={{ kind = "vllm-server", base_url = {urls}, model = "{BASE}", max_outage_s = 1 }}'


def run(settings: Recipe) -> Path:
    with ExitStack() as stack:
        opened = RunFolder(settings)
        stack.callback(opened.close)
        build_trainer(settings, opened, stack).train()
    return settings.folder


def sampled(folder: Path) -> list[list[int]]:
    files = sorted([*(folder / "rollouts").glob("*.jsonl"), *(folder / "evaluations").glob("*.jsonl")])
    return [json.loads(line)["completion_ids"] for path in files for line in path.read_text().splitlines()]


# ── whole runs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_sampled_by_servers_is_that_sampled_in_process(
    finished_run: Recipe, make_recipe: MakeRecipe, served: Served, tiny_llama: Path
) -> None:
    with serve(tiny_llama) as second:
        folder = run(make_recipe(over(served, second)))
        assert sampled(folder) == sampled(finished_run.folder)
        for server in (served, second):
            paths = [path for path, _ in server.requests]
            assert paths.count("/v1/load_lora_adapter") == 5, "each version once, the first included"
            assert paths.count("/v1/completions") > 12, "the load is shared"
            assert len(server.adapters) == 1, "older versions are unloaded"
    recorded = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(values["weight_sync_difference"] < 1e-5 for values in recorded)
    assert all(values["weight_sync_projection"] == pytest.approx(1, abs=0.05) for values in recorded[1:])
    assert {values["weight_sync_reloads"] for values in recorded} == {0}
    assert not (folder / "version").exists()


@pytest.mark.slow
def test_a_server_that_was_started_anew_is_given_the_adapter_again(
    finished_run: Recipe, make_recipe: MakeRecipe, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._rollouts

    def after_a_restart(trainer: Trainer, *args: object) -> object:
        trainer.weight_sync.sync(trainer.step)
        served.restart()
        return original(trainer, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_rollouts", after_a_restart)
    compare = servers.ServerSampler.prompt_logprobs

    def after_another(sampler: servers.ServerSampler, *args: Any, **options: Any) -> Any:
        served.restart()
        return compare(sampler, *args, **options)

    monkeypatch.setattr(servers.ServerSampler, "prompt_logprobs", after_another)
    assert sampled(run(make_recipe(over(served)))) == sampled(finished_run.folder)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "drop"])
def test_a_server_that_does_not_answer_is_left_out(
    fault: str, finished_run: Recipe, make_recipe: MakeRecipe, served: Served, tiny_llama: Path
) -> None:
    with serve(tiny_llama) as broken:
        broken.fault = fault
        assert sampled(run(make_recipe(over(broken, served)))) == sampled(finished_run.folder)


def test_when_no_server_answers_the_run_stops_and_can_go_on(
    finished_run: Recipe, make_recipe: MakeRecipe, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_COOLDOWN_S", 0.05)
    served.fault = "drop"
    with pytest.raises(
        StepalignError, match=r"no sampler endpoint has answered for 1 s \(http://127.*same command goes on"
    ):
        run(make_recipe(over(served)))
    served.fault = "once"
    assert sampled(run(make_recipe(over(served)))) == sampled(finished_run.folder)


@pytest.mark.slow
def test_a_server_lost_amid_a_long_completion_is_waited_for(
    finished_run: Recipe, make_recipe: MakeRecipe, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_COOLDOWN_S", 0.1)
    served.fault = "late"
    settings = make_recipe(over(served).replace("max_outage_s = 1", "max_outage_s = 0.4"))
    assert sampled(run(settings)) == sampled(finished_run.folder)
    assert not served.fault, "it happened"


@pytest.mark.parametrize("status", [400, 401, 403, 422])
def test_a_refusal_ends_the_run_at_once(make_recipe: MakeRecipe, served: Served, status: int) -> None:
    served.fault = str(status)
    start = time.perf_counter()
    with pytest.raises(StepalignError, match=rf"sampler: http://127.* answers {status} .*out of luck.*sampler\.model"):
        run(make_recipe(over(served).replace("max_outage_s = 1", "max_outage_s = 600")))
    assert time.perf_counter() - start < 30
    assert len(served.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 422])
def test_a_refusal_of_a_completion_ends_the_run_at_once(make_recipe: MakeRecipe, served: Served, status: int) -> None:
    settings = make_recipe(over(served).replace("max_outage_s = 1", "max_outage_s = 600"))
    sampler = make_sampler(settings, lambda: None, torch.float32, eos_ids=frozenset({1}))  # type: ignore[arg-type,return-value]
    assert isinstance(sampler, servers.ServerSampler)
    served.fault = str(status)
    with pytest.raises(StepalignError, match=rf"answers {status} .*out of luck"):
        list(sampler.sample([Request(id="r", prompt_ids=(5, 6), seed=0)], settings.sampling, adapter=None))
    sampler.close()


def test_a_server_that_loads_no_adapters_is_named_with_what_it_needs(make_recipe: MakeRecipe, served: Served) -> None:
    served.fault = "/load_lora_adapter 404"
    with pytest.raises(StepalignError, match=r"answers 404 .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"):
        run(make_recipe(over(served)))


@pytest.mark.slow
def test_unseeded_requests_have_no_seed(make_recipe: MakeRecipe, served: Served) -> None:
    run(make_recipe(over(served).replace("max_outage_s = 1", "seeded = false")))
    assert not [body for path, body in served.requests if path.endswith("completions") and "seed" in body]


@pytest.mark.slow
def test_rollouts_carry_the_samplers_log_probabilities_which_are_the_trainers(
    make_recipe: MakeRecipe, served: Served
) -> None:
    lines = (run(make_recipe(over(served))) / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert all(0 <= step["sampler_mismatch"] <= step["sampler_mismatch_max"] < 1e-4 for step in steps)


def test_a_sampler_with_other_probabilities_is_warned_of(
    make_recipe: MakeRecipe, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    served.fault = "off"
    folder = run(make_recipe(over(served), "training.max_steps=1"))
    recorded = json.loads((folder / "metrics.jsonl").read_text())
    assert recorded["sampler_mismatch"] == pytest.approx(0.5, abs=1e-3)
    shown = " ".join(capsys.readouterr().err.split())
    assert "the sampler's log-probabilities of a rollout differ from the trainer's by 0.5 nats a token" in shown


def test_a_sampler_without_log_probabilities_stops_the_run(make_recipe: MakeRecipe, served: Served) -> None:
    served.fault = "no logprobs"
    with pytest.raises(StepalignError, match="no log-probabilities in a server's answer"):
        run(make_recipe(over(served), "training.max_steps=1"))


# ── the check of a sync ───────────────────────────────────────────────────────────────────────────────────────


def test_a_stale_adapter_stops_the_run(make_recipe: MakeRecipe, served: Served) -> None:
    served.fault = "stale"
    with pytest.raises(
        StepalignError,
        match=r"does not sample from the policy of step 1, .* it answers like the base\. "
        r"On \d+ tokens .* by [\d.e-]+ nats on average",
    ):
        run(make_recipe(over(served)))
    assert [path for path, _ in served.requests].count("/v1/load_lora_adapter") == 3, "the second one was loaded twice"


@pytest.mark.slow
def test_an_adapter_that_arrives_at_the_second_attempt_is_loaded_again(
    finished_run: Recipe, make_recipe: MakeRecipe, served: Served
) -> None:
    served.fault = "stale once"
    folder = run(make_recipe(over(served)))
    assert sampled(folder) == sampled(finished_run.folder)
    recorded = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert recorded[-1]["weight_sync_reloads"] == 1
    assert len(served.adapters) == 1


def test_a_step_below_the_tolerance_is_noticed_all_the_same(make_recipe: MakeRecipe, served: Served) -> None:
    served.fault = "stale"
    settings = make_recipe(over(served).replace("max_outage_s = 1", "tolerance = 100"), "optimizer.lr=1e-5")
    with pytest.raises(StepalignError, match=r"answers like the base\. .*by 0\.000\d+ nats"):
        run(settings)


def test_a_missing_adapter_stops_the_run(make_recipe: MakeRecipe, served: Served) -> None:
    served.fault = "missing"
    with pytest.raises(StepalignError, match="the policy of step 1, which it loaded: it answers like the base"):
        run(make_recipe(over(served)))


def test_a_wrong_adapter_stops_the_run(make_recipe: MakeRecipe, served: Served) -> None:
    served.fault = "wrong"
    with pytest.raises(StepalignError, match="it answers like nothing the trainer has"):
        run(make_recipe(over(served)))


def check(served: Tensor, new: Tensor, **older: Tensor) -> dict[str, float]:
    """The decided projections."""
    return check_synced(served, new, older, 0.05, "it")[1]


@pytest.mark.parametrize("size", [0.002, 0.003, 0.005, 0.01, 0.02, 0.05])
def test_a_step_below_the_samplers_noise_is_told_from_none(size: float) -> None:
    generator = torch.Generator().manual_seed(int(size * 1e6))
    for _ in range(200):
        old, step, noise = (scale * torch.randn(2000, generator=generator) for scale in (3.0, size, 0.01))
        new = old + step
        assert check(new + noise, new, old=old)["old"] > 0.5
        with pytest.raises(NotSyncedError, match="it: it answers like old"):
            check(old + noise, new, old=old)


@pytest.mark.parametrize("size", [0.0, 1e-5, 1e-4, 5e-4, 0.001, 0.002])
def test_noise_on_both_sides_raises_no_false_alarm(size: float) -> None:
    # In half precision the trainer's own rounding is part of the step that is measured.
    generator = torch.Generator().manual_seed(int(size * 1e6))
    for _ in range(200):
        true = 3.0 * torch.randn(2000, generator=generator)
        step = size * torch.randn(2000, generator=generator)
        served, old, new = (0.01 * torch.randn(2000, generator=generator) for _ in range(3))
        check(true + step + served, true + step + new, old=true + old)


def test_the_error_names_the_nearest_version_and_an_unchanged_policy_decides_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    base, first, second = (scale * torch.randn(2000, generator=generator) for scale in (3.0, 0.01, 0.01))
    with pytest.raises(NotSyncedError, match="it answers like one"):
        check(base + first, base + first + second, base=base, one=base + first)
    assert check(base, base, base=base) == {}
    with pytest.raises(NotSyncedError, match="it answers like nothing"):
        check(base + 0.3 * torch.randn(2000, generator=generator), base, base=base)
