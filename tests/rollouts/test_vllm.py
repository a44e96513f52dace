"""Requests to vLLM in process and the reading of its answers, against a stand-in for its interface."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stepalign import config
from stepalign.distributed.process import SINGLE
from stepalign.errors import StepalignError
from stepalign.rollouts import AdapterVersion, RemoteSampler, Request
from stepalign.rollouts.vllm import VllmSampler


class Engine:
    """Completes every prompt with 7, 8 and its end."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any, Any]] = []
        self.waiting: list[str] = []
        self.loaded: list[int] = []

    def add_request(self, name: str, prompt: Any, params: Any, lora_request: Any) -> None:
        self.requests.append((name, params, lora_request))
        self.waiting.append(name)

    def step(self) -> list[Any]:
        scored = [{token: SimpleNamespace(logprob=-0.5), 9: SimpleNamespace(logprob=-0.1)} for token in (7, 8, 2)]
        output = SimpleNamespace(token_ids=[7, 8, 2], logprobs=scored, finish_reason="stop")
        return [SimpleNamespace(finished=True, request_id=self.waiting.pop(0), outputs=[output])]

    def abort_request(self, names: list[str]) -> None:
        self.waiting = [name for name in self.waiting if name not in names]

    def add_lora(self, adapter: Any) -> None:
        self.loaded.append(adapter.lora_int_id)

    def remove_lora(self, number: int) -> None:
        self.loaded.remove(number)

    def reset_prefix_cache(self) -> None:
        pass


class LLM:
    def __init__(self, **options: Any) -> None:
        self.options, self.llm_engine = options, Engine()
        self.model_config = SimpleNamespace(max_model_len=16)

    def generate(self, prompts: Any, params: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
        assert (params.prompt_logprobs, params.max_tokens) == (1, 1)
        return [
            SimpleNamespace(
                prompt_logprobs=[None, *({token: SimpleNamespace(logprob=-float(token))} for token in ids[1:])]
            )
            for ids in (prompt["prompt_token_ids"] for prompt in prompts)
        ]


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def lora_request(name: str, number: int, path: str) -> Any:
        return SimpleNamespace(lora_name=name, lora_int_id=number, path=path)

    modules = {"vllm": {"LLM": LLM, "SamplingParams": SimpleNamespace}, "vllm.lora": {}}
    for name, content in {**modules, "vllm.lora.request": {"LoRARequest": lora_request}}.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def sampler(**changed: Any) -> VllmSampler:
    settings, model = config.VllmConfig(**changed), config.ModelConfig(name_or_path="somewhere")
    dtype = "torch.float32"
    return VllmSampler(settings, model=model, dtype=dtype, rank=5, eos_ids=frozenset({2}), world=SINGLE, seed=3)


REQUESTS = [Request(id=name, prompt_ids=(4, 5), seed=number) for number, name in enumerate("abc")]
SAMPLING = config.SamplingConfig(max_new_tokens=4)


def test_completions_carry_ids_and_log_probabilities() -> None:
    vllm = sampler()
    assert isinstance(vllm, RemoteSampler)
    completions = list(vllm.sample(REQUESTS, SAMPLING, adapter=None))
    assert [completion.id for completion in completions] == ["a", "b", "c"]
    assert {(one.ids, one.finish, one.logprobs) for one in completions} == {((7, 8, 2), "stop", (-0.5,) * 3)}
    assert (vllm._llm.options["dtype"], vllm._llm.options["max_lora_rank"]) == ("float32", 8)


@pytest.mark.parametrize(("seeded", "seeds"), [(True, [0, 1, 2]), (False, [None] * 3)])
def test_requests_have_seeds_where_the_recipe_says_so(seeded: bool, seeds: list[int | None]) -> None:
    vllm = sampler(seeded=seeded)
    list(vllm.sample(REQUESTS, SAMPLING, adapter=None))
    assert [params.seed for _, params, _ in vllm._llm.llm_engine.requests] == seeds


def test_prompts_are_scored_but_for_their_first_tokens() -> None:
    assert sampler().prompt_logprobs([(4, 5, 6), (7, 8)], adapter=None) == {"vLLM": [[-5.0, -6.0], [-8.0]]}


def test_each_adapter_replaces_the_one_before() -> None:
    vllm = sampler()
    with pytest.raises(StepalignError, match="'default' was never loaded"):
        list(vllm.sample(REQUESTS, SAMPLING, adapter="default"))
    for number in (1, 2):
        vllm.load_adapter(AdapterVersion(name=f"v{number}", number=number, folder=Path("there")))
    assert vllm._llm.llm_engine.loaded == [2]
    list(vllm.sample(REQUESTS[:1], SAMPLING, adapter="default"))
    assert vllm._llm.llm_engine.requests[-1][2].lora_name == "v2"


def test_a_caller_that_stops_early_aborts_what_waits() -> None:
    vllm = sampler()
    completions = vllm.sample(REQUESTS, SAMPLING, adapter=None)
    next(completions)
    completions.close()  # type: ignore[attr-defined]
    assert vllm._llm.llm_engine.waiting == []


def test_a_prompt_without_room_names_the_request() -> None:
    long = Request(id="long", prompt_ids=(4,) * 13, seed=0)
    with pytest.raises(StepalignError, match=r"long: a prompt of 13 tokens .* exceed the engine's 16 positions"):
        list(sampler().sample([long], SAMPLING, adapter=None))
