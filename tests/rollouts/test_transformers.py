"""Sampled tokens against transformers' own distributions, and whole completions against `model.generate`."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stepalign.config import SamplingConfig
from stepalign.errors import StepalignError
from stepalign.rollouts import Completion, Request
from stepalign.rollouts import transformers as transformers_sampler
from stepalign.rollouts.transformers import TransformersSampler, sample_tokens

LENGTHS = (3, 41, 17, 8, 60, 1, 25, 12, 33, 5)
NO_EOS: frozenset[int] = frozenset()


def expected(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """The distribution that transformers would draw from."""
    logits = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(None, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    return logits.softmax(dim=-1)


def shares(logits: Tensor, sampling: SamplingConfig, points: int) -> Tensor:
    """How often each token is drawn over an even grid of noise, as a share."""
    noise = (torch.arange(points) + 0.5) / points
    tokens = sample_tokens(logits.expand(points, -1), noise, sampling)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / points


# ── one token ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("vocab", "settings"),
    [
        (40, {}),
        (40, {"temperature": 0.6}),
        (40, {"temperature": 1.7, "top_k": 5}),
        (40, {"top_p": 0.8}),
        (40, {"top_p": 0.01}),
        (40, {"temperature": 0.7, "top_k": 12, "top_p": 0.9}),
        (40, {"top_k": 100, "top_p": 0.5}),
        (40, {"top_k": 1}),
        (1300, {"top_p": 0.9}),  # a nucleus within the candidates that are sorted first
        (1300, {"temperature": 3.0, "top_p": 0.95}),  # and one that is wider
        (1300, {"temperature": 3.0, "top_k": 700, "top_p": 0.95}),
    ],
)
def test_noise_inverts_exactly_the_distribution_of_transformers(vocab: int, settings: dict[str, float]) -> None:
    sampling = SamplingConfig.model_validate(settings)
    logits = 3 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(vocab))
    points = 4000
    wanted = expected(logits, sampling)[0]
    # An interval of length p holds p·points grid points, one more or one less.
    assert ((shares(logits, sampling, points) - wanted).abs() * points).max() < 1.5


def test_the_wide_nucleus_of_this_test_is_wider_than_the_candidates() -> None:
    logits = 3 * torch.randn(1, 1300, generator=torch.Generator().manual_seed(1300))
    kept = (expected(logits, SamplingConfig(temperature=3.0, top_p=0.95)) > 0).sum()
    assert kept > transformers_sampler._CANDIDATES > (expected(logits, SamplingConfig(top_p=0.9)) > 0).sum()


def test_a_row_with_a_wide_nucleus_leaves_its_neighbours_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 1300, generator=generator) * torch.tensor([9.0, 0.1, 9.0, 0.1, 5.0, 1.0])[:, None]
    noise = torch.rand(6, generator=generator)
    sampling = SamplingConfig(top_p=0.97)
    alone = [int(sample_tokens(logits[[row]], noise[[row]], sampling)) for row in range(6)]
    assert sample_tokens(logits, noise, sampling).tolist() == alone


def test_temperature_zero_takes_the_best_token_whatever_the_noise() -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    greedy = SamplingConfig(temperature=0, top_k=3, top_p=0.5)
    for noise in (torch.zeros(8), torch.full((8,), 0.999)):
        assert torch.equal(sample_tokens(logits, noise, greedy), logits.argmax(dim=-1))


@pytest.mark.parametrize("settings", [{}, {"top_k": 8}, {"top_p": 0.999}, {"top_k": 8, "top_p": 0.999}])
@pytest.mark.parametrize("noise", [0.0, 1 - 2**-24, 1.0])  # the least and the most of float32, and rounded up
def test_a_token_without_probability_is_never_sample(settings: dict[str, float], noise: float) -> None:
    logits = torch.full((200, 1000), float("-inf"))
    possible = 3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    logits[:, 400:405] = possible
    tokens = sample_tokens(logits, torch.full((200,), noise), SamplingConfig.model_validate(settings))
    assert set(tokens.tolist()) <= set(range(400, 405))


def test_shapes_are_checked_at_run_time() -> None:
    sample_tokens(torch.zeros(2, 5), torch.zeros(2), SamplingConfig())
    with pytest.raises(TypeCheckError):
        sample_tokens(torch.zeros(2, 5), torch.zeros(3), SamplingConfig())


def test_tests_run_on_one_thread() -> None:
    assert torch.get_num_threads() == 1


# ── whole completions ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["llama", "llama eager", "qwen3"])
def model(request: pytest.FixtureRequest, tiny_llama: Path, tiny_qwen3: Path) -> Any:
    folder = tiny_qwen3 if request.param == "qwen3" else tiny_llama
    attention = "eager" if "eager" in request.param else "sdpa"
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)


@pytest.fixture
def llama(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


def requests(lengths: tuple[int, ...] = LENGTHS, vocab: int = 300) -> list[Request]:
    draws = random.Random(0)
    return [
        Request(id=f"request {i}", prompt_ids=tuple(draws.randrange(3, vocab) for _ in range(length)), seed=i)
        for i, length in enumerate(lengths)
    ]


def generated(model: Any, request: Request, new_tokens: int, eos_ids: frozenset[int]) -> tuple[int, ...]:
    """What `generate` writes greedily."""
    ids = torch.tensor([request.prompt_ids])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=sorted(eos_ids) or -1,
        pad_token_id=0,
    )
    return tuple(output[0, ids.shape[1] :].tolist())


def sample(
    model: Any,
    asked: list[Request],
    sampling: SamplingConfig,
    *,
    eos_ids: frozenset[int] = NO_EOS,
    batch_size: int = 4,
    adapter: str | None = None,
) -> dict[str, Completion]:
    sampler = TransformersSampler(model, eos_ids=eos_ids, batch_size=batch_size)
    completions = list(sampler.sample(asked, sampling, adapter=adapter))
    assert len(completions) == len(asked)
    return {completion.id: completion for completion in completions}


def staggered_eos(model: Any, asked: list[Request], new_tokens: int) -> frozenset[int]:
    """Token ids that end some of the greedy completions, each at another place."""
    places = {1: 2, 2: 7, 4: 12}
    return frozenset(generated(model, asked[row], new_tokens, NO_EOS)[place] for row, place in places.items())


def test_greedy_completions_equal_generate(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, new_tokens = requests(), 32
    eos_ids = staggered_eos(model, asked, new_tokens)
    wanted = {request.id: generated(model, request, new_tokens, eos_ids) for request in asked}
    assert len({len(ids) for ids in wanted.values()}) >= 4, "rows must end at different times"
    sampling = SamplingConfig(temperature=0, max_new_tokens=new_tokens)
    # Alone, with refills (and the cache moved to its front again and again), and all at once.
    for batch_size, compact_every in ((1, 1), (3, 256), (3, 1), (4, 7), (10, 1)):
        monkeypatch.setattr(transformers_sampler, "_COMPACT_EVERY", compact_every)
        got = sample(model, asked, sampling, eos_ids=eos_ids, batch_size=batch_size)
        assert {name: completion.ids for name, completion in got.items()} == wanted


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
def test_a_shared_prefix_and_equal_prompts_are_read_once(
    model: Any, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = requests((40,))[0].prompt_ids
    prompts = [examples + request.prompt_ids for request in requests((3, 70, 17, 17, 1))]
    asked = [Request(id=str(n), prompt_ids=prompts[n % 5], seed=n) for n in range(12)]
    read = []
    forward = model.get_decoder().forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] > 1:
            read.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    wanted = {request.id: generated(model, request, 12, NO_EOS) for request in asked}
    monkeypatch.setattr(model.get_decoder(), "forward", counted)
    got = sample(model, asked, SamplingConfig(temperature=0, max_new_tokens=12), batch_size=batch_size)
    assert {name: completion.ids for name, completion in got.items()} == wanted
    assert read[0] == 40
    if batch_size == 16:
        assert read == [40, 5 * 70]  # the suffixes, padded


def test_equal_requests_get_equal_completions_whatever_is_drawn_beside(llama: Any) -> None:
    asked = requests()
    sampling = SamplingConfig(temperature=0.8, top_p=0.95, max_new_tokens=20)
    alone = sample(llama, asked, sampling, eos_ids=frozenset({7, 9, 280}), batch_size=1)
    for batch_size, order in ((3, asked), (10, asked[::-1]), (4, asked[5:] + asked[:5])):
        assert sample(llama, order, sampling, eos_ids=frozenset({7, 9, 280}), batch_size=batch_size) == alone
    assert sample(llama, asked[4:5], sampling, eos_ids=frozenset({7, 9, 280}))["request 4"] == alone["request 4"]


def test_another_seed_draws_another_completion(llama: Any) -> None:
    prompt = requests()[3].prompt_ids
    asked = [Request(id=str(seed), prompt_ids=prompt, seed=seed) for seed in range(5)]
    got = sample(llama, asked, SamplingConfig(max_new_tokens=12))
    assert len({completion.ids for completion in got.values()}) == 5


@pytest.mark.parametrize("family", ["llama", "granite", "cohere"])
def test_tokens_are_drawn_from_the_models_distribution(
    family: str, tiny_llama: Path, with_head: Callable[[str], Path]
) -> None:
    llama = AutoModelForCausalLM.from_pretrained(tiny_llama if family == "llama" else with_head(family))
    prompt, sampling = requests()[2].prompt_ids, SamplingConfig(temperature=0.7, top_k=4, max_new_tokens=1)
    asked = [Request(id=str(seed), prompt_ids=prompt, seed=seed) for seed in range(1500)]
    first = [got.ids[0] for got in sample(llama, asked, sampling, batch_size=500).values()]
    with torch.no_grad():
        wanted = expected(llama(torch.tensor([prompt])).logits[:, -1], sampling)[0]
    shares = torch.bincount(torch.tensor(first), minlength=len(wanted)) / len(first)
    assert (shares - wanted).abs().max() < 0.05


def test_logits_of_a_half_precision_model_are_not_rounded(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the trainer's: another rounding would be another policy."""
    model, seen = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16), []

    def watched(logits: Tensor, *arguments: Any) -> Tensor:
        seen.append(logits)
        return sample_tokens(logits, *arguments)

    monkeypatch.setattr(transformers_sampler, "sample_tokens", watched)
    (request,) = requests((12,))
    sample(model, [request], SamplingConfig(max_new_tokens=1))
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=torch.tensor([request.prompt_ids])).last_hidden_state[:, -1]
    wanted = hidden.double() @ model.get_output_embeddings().weight.double().T
    torch.testing.assert_close(seen[0].double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_sampled_eos_is_kept_and_a_capped_row_has_none(llama: Any) -> None:
    asked, new_tokens = requests(), 24
    eos_ids = staggered_eos(llama, asked, new_tokens)
    assert len(eos_ids) == 3
    got = sample(llama, asked, SamplingConfig(temperature=0, max_new_tokens=new_tokens), eos_ids=eos_ids)
    ends = set()
    for completion in got.values():
        assert eos_ids.isdisjoint(completion.ids[:-1])
        if completion.finish == "stop":
            ends.add(completion.ids[-1])
        else:
            assert completion.ids[-1] not in eos_ids
            assert len(completion.ids) == new_tokens
    assert ends == eos_ids
    assert "length" in {completion.finish for completion in got.values()}


def test_an_eos_as_the_last_allowed_token_is_a_stop(llama: Any) -> None:
    asked = requests()[:1]
    ids = generated(llama, asked[0], 6, NO_EOS)
    place = next(i for i in range(1, 6) if ids[i] not in ids[:i])
    sampling = SamplingConfig(temperature=0, max_new_tokens=place + 1)
    got = sample(llama, asked, sampling, eos_ids=frozenset({ids[place]}))["request 0"]
    assert (got.finish, got.ids) == ("stop", ids[: place + 1])


def test_no_requests_draw_nothing(llama: Any) -> None:
    assert sample(llama, [], SamplingConfig()) == {}


def test_completions_come_as_they_end(llama: Any) -> None:
    asked = requests()
    eos_ids = staggered_eos(llama, asked, 24)
    sampler = TransformersSampler(llama, eos_ids=eos_ids, batch_size=10)
    lengths = [
        len(completion.ids)
        for completion in sampler.sample(asked, SamplingConfig(temperature=0, max_new_tokens=24), adapter=None)
    ]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2


# ── what a model carries and how it is left ───────────────────────────────────────────────────────────────────


@pytest.fixture
def adapted(llama: Any) -> Any:
    """The model with an adapter that has an effect, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(llama, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def test_adapter_none_samples_from_the_base(adapted: Any, tiny_llama: Path) -> None:
    asked, sampling = requests(), SamplingConfig(temperature=0, max_new_tokens=12)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for adapter, reference in ((None, base), ("default", adapted.eval())):
        got = sample(adapted, asked, sampling, adapter=adapter)
        for request in asked:
            assert got[request.id].ids == generated(reference, request, 12, NO_EOS)
    assert sample(adapted, asked, sampling, adapter=None) != sample(adapted, asked, sampling, adapter="default")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("adapter", [None, "default"])
def test_a_sampler_closed_early_leaves_the_model_as_it_was(adapted: Any, training: bool, adapter: str | None) -> None:
    adapted.train(training)
    before = adapted(torch.tensor([[5, 6, 7]])).logits
    wanted = [(name, p.requires_grad) for name, p in adapted.named_parameters()]
    sampler = TransformersSampler(adapted, eos_ids=NO_EOS, batch_size=2)
    completions = sampler.sample(requests(), SamplingConfig(max_new_tokens=3), adapter=adapter)
    next(completions)
    assert torch.is_grad_enabled(), "the sampler's no_grad must not leak to its caller"
    completions.close()
    assert all(module.training == training for module in adapted.modules())
    assert torch.equal(adapted(torch.tensor([[5, 6, 7]])).logits, before)
    assert [(name, p.requires_grad) for name, p in adapted.named_parameters()] == wanted


def test_sampling_runs_in_evaluation_mode_and_builds_no_graph(adapted: Any) -> None:
    seen = []

    def watch(module: Any, inputs: Any, output: Any) -> None:
        seen.append((module.training, torch.is_grad_enabled()))

    adapted.get_base_model().get_decoder().layers[0].register_forward_hook(watch)
    sample(adapted, requests(), SamplingConfig(max_new_tokens=3), adapter="default")
    assert set(seen) == {(False, False)}


def test_an_adapter_that_is_not_there_is_an_error(adapted: Any) -> None:
    with pytest.raises(StepalignError, match=r"'other' is not the active one"):
        sample(adapted, requests(), SamplingConfig(max_new_tokens=4), adapter="other")


def test_a_model_without_adapters_has_none_to_use(llama: Any) -> None:
    with pytest.raises(StepalignError, match="no adapters"):
        sample(llama, requests(), SamplingConfig(max_new_tokens=4), adapter="default")


def test_a_prompt_without_room_names_the_request(llama: Any) -> None:
    fits, too_long = requests((1020, 1021))
    sampling = SamplingConfig(max_new_tokens=4)
    assert len(sample(llama, [fits], sampling)["request 0"].ids) == 4
    with pytest.raises(StepalignError, match=r"request 1: .*1021 tokens.*need 1025 positions, the model has 1024"):
        sample(llama, [fits, too_long], sampling)


def test_an_empty_prompt_names_the_request(llama: Any) -> None:
    with pytest.raises(StepalignError, match="request 0: an empty prompt"):
        sample(llama, requests((0,)), SamplingConfig(max_new_tokens=4))


def test_layers_without_a_time_axis_are_refused(llama: Any) -> None:
    llama.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(StepalignError, match=r"layers of type linear_attention, allowed are full_attention"):
        TransformersSampler(llama, eos_ids=NO_EOS, batch_size=1)
