"""Training with an engine that has weights of its own, and the guard that notices when they are not the policy's."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rollouts.served import BASE, Served, serve

from stepalign.config import Recipe
from stepalign.errors import StepalignError
from stepalign.rollouts import vllm_server as servers
from stepalign.trainer.build import build_trainer
from stepalign.trainer.loop import Trainer
from stepalign.trainer.run_folder import RunFolder
from stepalign.trainer.weight_sync import guard

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


def drawn(folder: Path) -> list[list[int]]:
    files = sorted([*(folder / "rollouts").glob("*.jsonl"), *(folder / "evaluations").glob("*.jsonl")])
    return [json.loads(line)["completion_ids"] for path in files for line in path.read_text().splitlines()]


# ── whole runs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_sampled_by_servers_is_that_sampled_in_process(
    finished_run: Recipe, make_recipe: MakeRecipe, served: Served, tiny_llama: Path
) -> None:
    with serve(tiny_llama) as second:
        folder = run(make_recipe(over(served, second)))
        assert drawn(folder) == drawn(finished_run.folder)
        for server in (served, second):
            paths = [path for path, _ in server.requests]
            assert paths.count("/v1/load_lora_adapter") == 5, "each version once, the first included"
            assert paths.count("/v1/completions") > 12, "the load is shared"
            assert len(server.adapters) == 1, "older versions are unloaded"
    recorded = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(values["handover_difference"] < 1e-5 for values in recorded)
    assert not (folder / "handover").exists()


def test_a_server_that_was_started_anew_is_given_the_adapter_again(
    finished_run: Recipe, make_recipe: MakeRecipe, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._rollouts

    def after_a_restart(trainer: Trainer, *args: object) -> object:
        trainer.weight_sync.sync(trainer.step)
        served.restart()
        return original(trainer, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_rollouts", after_a_restart)
    compare = servers.ServerSampler.sample_logprobs

    def after_another(sampler: servers.ServerSampler, *args: Any, **options: Any) -> Any:
        served.restart()
        return compare(sampler, *args, **options)

    monkeypatch.setattr(servers.ServerSampler, "sample_logprobs", after_another)
    assert drawn(run(make_recipe(over(served)))) == drawn(finished_run.folder)


@pytest.mark.parametrize("fault", ["500", "drop"])
def test_a_server_that_does_not_answer_is_left_out(
    fault: str, finished_run: Recipe, make_recipe: MakeRecipe, served: Served, tiny_llama: Path
) -> None:
    with serve(tiny_llama) as broken:
        broken.fault = fault
        assert drawn(run(make_recipe(over(broken, served)))) == drawn(finished_run.folder)


def test_when_no_server_answers_the_run_stops_and_can_go_on(
    finished_run: Recipe, make_recipe: MakeRecipe, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_REST_S", 0.05)
    served.fault = "drop"
    with pytest.raises(StepalignError, match=r"no server has answered for 1 s \(http://127.*goes on once one does"):
        run(make_recipe(over(served)))
    served.fault = "once"
    assert drawn(run(make_recipe(over(served)))) == drawn(finished_run.folder)


def test_a_server_lost_amid_a_long_completion_is_waited_for(
    finished_run: Recipe, make_recipe: MakeRecipe, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_REST_S", 0.1)
    monkeypatch.setattr(servers, "_ALIVE_S", 0.3)
    served.fault = "late"
    settings = make_recipe(over(served).replace("max_outage_s = 1", "max_outage_s = 0.4"))
    assert drawn(run(settings)) == drawn(finished_run.folder)
    assert not served.fault, "it happened"


# ── the guard ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stale_adapter_stops_the_run(make_recipe: MakeRecipe, served: Served) -> None:
    served.fault = "stale"
    with pytest.raises(
        StepalignError,
        match=r"does not sample from the policy of step 1, .* it answers like (the base|the policy of step 0)\. "
        r"On \d+ tokens .* by [\d.e-]+ nats on average",
    ):
        run(make_recipe(over(served)))


def test_a_step_below_the_tolerance_is_noticed_all_the_same(make_recipe: MakeRecipe, served: Served) -> None:
    served.fault = "stale"
    settings = make_recipe(over(served).replace("max_outage_s = 1", "tolerance = 100"), "optimizer.lr=1e-5")
    with pytest.raises(StepalignError, match=r"answers like (the base|the policy of step 0)\. .*by 0\.000\d+ nats"):
        run(settings)


def test_a_missing_adapter_stops_the_run(make_recipe: MakeRecipe, served: Served) -> None:
    served.fault = "missing"
    with pytest.raises(StepalignError, match="the policy of step 1, which it was handed: it answers like the base"):
        run(make_recipe(over(served)))


def test_a_wrong_adapter_stops_the_run(make_recipe: MakeRecipe, served: Served) -> None:
    served.fault = "wrong"
    with pytest.raises(StepalignError, match="it answers like nothing the trainer knows"):
        run(make_recipe(over(served)))


def test_noise_larger_than_the_step_alarms_nobody_and_tells_no_lie() -> None:
    generator = torch.Generator().manual_seed(0)
    old, step, noise = (scale * torch.randn(500, generator=generator) for scale in (3.0, 0.001, 0.02))
    now = old + step
    assert guard(now + noise, now, {"the base": old}, 0.05, "it") == pytest.approx(0.016, rel=0.1)
    assert guard(now, now, {"the base": now}, 0.05, "it") == 0, "nothing has changed yet"
    with pytest.raises(StepalignError, match="it: it answers like the base"):
        guard(old + noise * 0.01, now, {"the base": old}, 0.05, "it")
