"""Merging of an adapter into its base: float32 arithmetic, one cast at the end, and a check of what was written.

Two comparisons on the run's own texts. In float32 the merged model must give the adapter's logits, up to rounding. The
files, loaded again in the dtype that they have, must give nearly the adapter's distributions: that cast costs more.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from stepalign import config, models
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl
from stepalign.records import Problem
from stepalign.report.run import RunFiles

MAX_DIFFERENCE = 1e-3
"""Of merged and adapter's logits in float32, as a share of the largest logit."""
MAX_KL = 0.02
"""Mean KL(adapter in float32 ‖ written files) in nats a token."""
_NUM_TEXTS, _MAX_TOKENS = 4, 512
"""Texts that are compared, and the tokens of each."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of merged weights with the adapter."""

    tokens: int
    difference: float
    """The largest difference of logits in float32, as a share of the largest logit."""
    dtype: str
    kl: float
    """Mean KL(adapter in float32 ‖ written files) in nats a token."""
    same_first: float
    """The share of tokens for which both give the same entry the most probability."""


def sample_ids(run: RunFiles, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return a few texts as ids: rollouts of the last step, else problems.

    Raises:
        StepalignError: the run has neither.
    """
    ids = [[*example.rollout.prompt_ids, *example.rollout.completion_ids] for example in run.examples]
    if not ids:
        path = run.folder / "problems" / "train.jsonl"
        problems = read_jsonl(path, Problem)[:_NUM_TEXTS] if path.exists() else []
        ids = [tokenizer(f"{problem.statement}\n{problem.solution}").input_ids for problem in problems]
    if not ids:
        raise StepalignError(
            f"{run.folder}: neither rollouts nor problems to compare merged weights with the adapter on"
        )
    return [each[:_MAX_TOKENS] for each in ids[:_NUM_TEXTS]]


@torch.no_grad()
def merge_adapter(
    model: config.ModelConfig,
    adapter: Path,
    out: Path,
    texts: list[list[int]],
    *,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
) -> Agreement:
    """Write a base with an adapter merged into it, in the base's dtype unless another is named.

    Raises:
        StepalignError: the merged weights, or the written files, disagree with the adapter.
    """
    exact = {
        "dtype": "float32",
        "load_in_4bit": False,
        "float32_matmul_precision": "highest",
        "attn_implementation": "sdpa",
    }
    loaded = models.load_model(model.model_copy(update=exact), adapter, torch.device("cpu"))
    assert isinstance(loaded, PeftModel)
    stored = getattr(torch, dtype) if dtype else models.load_config(model).dtype or torch.float32
    wanted = _logits(loaded, texts)
    merged = loaded.merge_and_unload(safe_merge=True)
    differences = [(a - b).abs().max() / a.abs().max() for a, b in zip(wanted, _logits(merged, texts), strict=True)]
    difference = float(torch.stack(differences).max())  # Python's `max` would lose NaN
    if not difference <= MAX_DIFFERENCE:
        raise StepalignError(
            f"{adapter}: merged weights differ from the adapter by {difference:.1e} of the largest logit, more than "
            f"{MAX_DIFFERENCE:g}: nothing was written"
        )
    merged.to(stored).save_pretrained(out)
    del merged, loaded
    written = _logits(AutoModelForCausalLM.from_pretrained(out, dtype=stored), texts)
    pairs = [(a.log_softmax(-1), b.log_softmax(-1)) for a, b in zip(wanted, written, strict=True)]
    kl = float(torch.cat([F.kl_div(b, a, reduction="none", log_target=True).sum(-1) for a, b in pairs]).mean())
    same = float(torch.cat([(a.argmax(-1) == b.argmax(-1)).float() for a, b in pairs]).mean())
    name = str(stored).removeprefix("torch.")
    if not kl <= MAX_KL:
        raise StepalignError(
            f"{adapter}: merged and cast to {name}, KL from the adapter is {kl:.3f} nats a token, more than "
            f"{MAX_KL:g}: nothing was written. Another dtype?"
        )
    return Agreement(
        tokens=sum(map(len, texts)),
        difference=difference,
        dtype=name,
        kl=max(0.0, kl),  # rounding may carry it below
        same_first=same,
    )


def _logits(model: torch.nn.Module, texts: list[list[int]]) -> list[torch.Tensor]:
    model.eval()
    return [model(input_ids=torch.tensor([ids])).logits[0].float() for ids in texts]
