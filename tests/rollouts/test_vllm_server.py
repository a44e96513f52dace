"""Completions of vLLM servers, one at a time."""

from pathlib import Path

import pytest

from stepalign import config
from stepalign.rollouts import Completion, Request, vllm_server
from tests.rollouts.served import BASE, Served, serve


def complete(served: Served) -> Completion:
    settings = config.VllmServerConfig(base_url=(served.url,), model=BASE)
    model = config.ModelConfig(name_or_path=BASE)
    sampler = vllm_server.ServerSampler(settings, model=model, eos_ids=frozenset({1}))
    try:
        request = Request(id="r", prompt_ids=(5, 6), seed=0)
        (completion,) = sampler.sample([request], config.SamplingConfig(max_new_tokens=8), adapter=None)
    finally:
        sampler.close()
    return completion


def test_a_completion_that_was_cut_off_is_sampled_again(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "_COOLDOWN_S", 0.01)
    with serve(tiny_llama) as served:
        whole = complete(served)
        assert len(whole.ids) > 1
        served.fault = "abort once"
        assert complete(served) == whole
        assert len(served.requests) == 3
