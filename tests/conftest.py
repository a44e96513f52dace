"""What the tests share: run-time shape checks, and tiny real models with a real tokenizer."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

from stepalign import config
from stepalign.config import Recipe

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # torch is not imported yet: its sums are then added in one order everywhere
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Every shape in a signature of these modules, the ones with tensors in them, is checked at every call of a test.
install_import_hook(
    [
        "stepalign.losses",
        "stepalign.probing",
        "stepalign.views",
        "stepalign.rollouts.transformers",
        "stepalign.trainer",
        "stepalign.algorithms",
        "stepalign.distributed",
        "stepalign.policy",
        "stepalign.models",
        "stepalign.teachers",
    ],
    "beartype.beartype",
)


def pytest_configure(config: pytest.Config) -> None:
    # PEFT asks transformers by a name that transformers has renamed.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_THINK = ["<think>", "</think>"]
# ChatML with the switch of Qwen3: thinking off closes an empty think block in the prompt.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_SENTENCES = [
    "### Step 1: Add 12 and 25\n12 + 25 = 37\n\n### Step 2: Add 37 and 31\n37 + 31 = 68",
    "### Final Answer:\n\n\\boxed{68}",
    "Compute 47 + 38 - 15 + 62. Solve the problem step by step.",
    "Here is step-by-step feedback on an earlier attempt of yours at this problem:",
]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of two layers, random weights, and a byte-level tokenizer of about 400 tokens."""
    from transformers import LlamaConfig

    return _save(tmp_path_factory.mktemp("tiny-llama"), LlamaConfig, num_key_value_heads=2)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a Qwen3 whose second layer attends to a sliding window of 12 tokens, head and embedding tied."""
    from transformers import Qwen3Config

    return _save(
        tmp_path_factory.mktemp("tiny-qwen3"),
        Qwen3Config,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["full_attention", "sliding_attention"],
        use_sliding_window=True,
        sliding_window=12,
        tie_word_embeddings=True,
    )


HEADS: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.25},
    "gemma2": {"final_logit_softcapping": 1.0, "head_dim": 8},
    "phi": {},  # a bias
}
"""Families whose logits are more than hidden · headᵀ."""


@pytest.fixture
def with_head(tiny_llama: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function: a folder with a tiny model of a family of `HEADS`, and the tiny tokenizer."""

    def make(family: str) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        built = AutoConfig.for_model(
            family,
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            initializer_range=0.5,
            pad_token_id=0,
            **HEADS[family],
        )
        model = AutoModelForCausalLM.from_config(built)
        if family == "phi":
            model.lm_head.bias.data.fill_(1.0)[:40] = -1.0
        model.save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
        return tmp_path / family

    return make


@pytest.fixture(scope="session")
def recipe_in(tiny_llama: Path) -> Callable[..., Recipe]:
    """A function: the recipe of a short run on the tiny model, sums and the program critic, kept in a folder."""

    def make(folder: Path, *overrides: str) -> Recipe:
        file = folder / "recipe.toml"
        file.write_text(_RECIPE, encoding="utf-8")
        return config.load(file, [f"model.name_or_path={tiny_llama}", f"output_dir={folder / 'runs'}", *overrides])

    return make


@pytest.fixture
def make_recipe(recipe_in: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Recipe]:
    """The same in the test's own folder: only overrides are wanted."""
    return lambda *overrides: recipe_in(tmp_path, *overrides)


@pytest.fixture(scope="session")
def finished_run(recipe_in: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The recipe of a run that was done once, undisturbed. Its folder is to be read only."""
    from stepalign.launch import train

    settings = recipe_in(tmp_path_factory.mktemp("finished"))
    train(settings)
    return settings


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports and probes without their figures, which take seconds to draw. `finished_run` has some."""
    monkeypatch.setattr("stepalign.report._write_figures", lambda *_: None)
    monkeypatch.setattr("stepalign.report._inline", lambda _: [])
    monkeypatch.setattr("stepalign.report.figures.draw_timeline", lambda *_: None)
    monkeypatch.setattr("stepalign.probing.figures.write", lambda *_: {})


_RECIPE = """
name = "tiny"
seed = 5

[model]
name_or_path = "given by the fixture"

[problems]
holdout = 3
train = { source = "sums", terms = 3, digits = 1, count = 12 }

[sampling]
max_new_tokens = 24

[sampler]
max_num_seqs = 6

[grader]
num_workers = 1

[critic]
kind = "program"

[context]
template = "stepalign"

[lora]
r = 4
lora_alpha = 8

[optimizer]
lr = 1e-2
max_grad_norm = 1.0

[training]
max_steps = 4
rollouts_per_step = 4
num_generations = 2
micro_batch_size = 2
save_steps = 2
eval_steps = 3

[evaluation]
num_samples = 2
sampling = { max_new_tokens = 16 }
num_bootstrap = 50
"""


def _save(folder: Path, config: Any, **options: Any) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = _tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            config(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=1024,
                # Ten times the usual range: attention is sharp, so a wrong position or mask changes what is drawn.
                initializer_range=0.2,
                **options,
            )
        )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(sentences: Sequence[str] = _SENTENCES) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=380,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=_CONTROL,
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _THINK])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=_TEMPLATE
    )


@pytest.fixture
def policy(make_recipe: Callable[..., Recipe]) -> Any:
    """A policy whose adapter already has an effect."""
    import torch

    from stepalign import models

    settings = make_recipe()
    policy = models.load_policy(settings.model, settings.lora, 0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture(scope="session")
def own_model() -> Callable[..., Any]:
    """A function: the solver's base as a critic, of a chat and a sampler; its weights where they are given."""
    from stepalign.config import PromptsConfig
    from stepalign.critics.own_model import OwnModel
    from stepalign.prompts.conversation import SolverPrompt

    def build(chat: Any, sampler: Any = None, limit: int | None = None, policy: Any = None) -> OwnModel:
        return OwnModel(chat, sampler, SolverPrompt(PromptsConfig()), limit, limit, lambda: policy)

    return build


_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium without a window; tests that need one are skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    chrome = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chrome is None or driver is None:
        pytest.skip("no Chromium with its chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in (*_FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture
def in_window(browser: Any) -> Callable[[int], AbstractContextManager[None]]:
    """A function: the browser's window has so many pixels of width for a while."""

    @contextmanager
    def resized(width: int) -> Iterator[None]:
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            yield
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    return resized
