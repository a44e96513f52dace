"""Train the lab's solver from scratch on `corpus`: next-token prediction on the responses alone.

Muon trains the layers' matrices, AdamW the embedding and norms: half as many steps as AdamW alone. Everything follows
from the seed. A stopped training resumes from its last checkpoint with the same texts.

    python -m tools.lab_solver.pretrain --out solver
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from random import Random

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from stepalign.chat import Chat
from stepalign.prompts.conversation import Turn
from stepalign.seeding import derive_seed
from tools.lab_solver import corpus, tokenizer

STEPS = 4500
ALONE_STEPS = 1500
"""First steps without contexts, so that solving is learnt on short texts before the use of contexts."""
BATCH_TOKENS = 2560
"""Padded tokens of a batch."""
POOL = 256
"""Number of examples that are sorted by length together."""
RATE = 5e-3
WARMUP = 100
CHECKPOINT_EVERY = 250


def new_model(vocabulary: int, seed: int) -> Qwen3ForCausalLM:
    """Create a Qwen3 model of four layers, 0.85M parameters, head and embedding tied."""
    torch.manual_seed(derive_seed(seed, "weights"))
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            rope_theta=100.0,  # texts are short, and numbers differ by their places
        )
    )


def new_tokenizer(seed: int, examples: int = 4000) -> PreTrainedTokenizerBase:
    """Build a tokenizer from the corpus."""
    texts = islice(corpus.examples(Random(derive_seed(seed, "tokenizer"))), examples)
    return tokenizer.build(part for example in texts for part in (example.message, example.response))


Encoded = tuple[list[int], int]
"""An example's ids, and the number of prompt ids among them."""


def encode(chat: Chat, example: corpus.Example) -> Encoded:
    """Encode an example; its response ends with the EOS."""
    prompt = chat.prompt_ids([Turn("user", example.message)], thinking=example.thinking)
    # With the switch on, the response itself closes the think block.
    block = chat.tokenizer(corpus.NO_THOUGHTS, add_special_tokens=False)["input_ids"] if example.thinking else []
    response = [*block, *chat.encode_text(example.response), chat.tokenizer.eos_token_id]
    return [*prompt, *response], len(prompt)


def batches(
    chat: Chat, seed: int, terms: tuple[int, int], alone: float = corpus.ALONE_SHARE
) -> Iterator[list[Encoded]]:
    """Generate batches of similar lengths without end, a share `alone` of the examples without a context."""
    pool = 0
    while True:
        random = Random(derive_seed(seed, "pool", pool))
        encoded = [encode(chat, example) for example in islice(corpus.examples(random, terms, alone), POOL)]
        encoded.sort(key=lambda pair: len(pair[0]))
        batched: list[list[Encoded]] = [[]]
        for ids, prompt in encoded:
            if len(ids) * (len(batched[-1]) + 1) > BATCH_TOKENS:
                batched.append([])
            batched[-1].append((ids, prompt))
        random.shuffle(batched)
        yield from batched
        pool += 1


def loss_of(model: Qwen3ForCausalLM, batch: Sequence[Encoded]) -> torch.Tensor:
    """Compute the mean cross-entropy of the responses' tokens."""
    longest = max(len(ids) for ids, _ in batch)
    inputs = torch.zeros(len(batch), longest, dtype=torch.long)
    targets = torch.full((len(batch), longest), -100)
    for row, (ids, prompt) in enumerate(batch):
        inputs[row, : len(ids)] = torch.tensor(ids)
        targets[row, prompt - 1 : len(ids) - 1] = torch.tensor(ids[prompt:])
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    counted = targets >= 0
    return F.cross_entropy(model.lm_head(hidden[counted]), targets[counted])


def optimizers_of(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Create Muon over the layers' matrices and AdamW over the rest, at rates of one scale."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    rest = [parameter for parameter in model.parameters() if parameter not in set(matrices)]
    return [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def train(
    out: Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    peak: float = RATE,
    terms: tuple[int, int] = corpus.TERMS,
    init: Path | None = None,
) -> None:
    """Train, and rewrite the solver's folder at every checkpoint.

    Args:
        out: the folder.
        steps: of this training; the learning rate falls over them.
        seed: of weights and texts.
        peak: the highest learning rate.
        terms: the fewest and the most of a sum.
        init: start from this solver's weights and tokenizer instead of new ones.
    """
    fast = AutoTokenizer.from_pretrained(init) if init else new_tokenizer(seed)
    chat = Chat(fast)
    model = Qwen3ForCausalLM.from_pretrained(init) if init else new_model(len(fast), seed)
    model.train()
    optimizers = optimizers_of(model)
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "training.pt"
    done = 0
    if state_file.exists():
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        done = state["step"]
    stream = chain(islice(batches(chat, seed, terms, 1.0), ALONE_STEPS), batches(chat, seed + 1, terms))
    start, losses, tokens = time.perf_counter(), [], 0
    for step, batch in enumerate(islice(stream, done, steps), start=done + 1):
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        tokens += sum(len(ids) for ids, _ in batch)
        if step % 50 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step}: loss {sum(losses[-50:]) / 50:.4f}, {tokens / seconds:.0f} tokens/s", flush=True)
        if step % CHECKPOINT_EVERY == 0 or step == steps:
            save(model, fast, out)
            states = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"model": model.state_dict(), "optimizers": states, "step": step}, state_file)


def rate(step: int, steps: int) -> float:
    """Compute the learning rate's factor: linear warm-up to 1, then half a cosine down to 0.05."""
    if step < WARMUP:
        return step / WARMUP
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (step - WARMUP) / max(steps - WARMUP, 1))) / 2


def save(model: Qwen3ForCausalLM, fast: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the folder from which transformers and recipes load the solver."""
    model.generation_config = GenerationConfig(eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id)
    model.save_pretrained(out)
    fast.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="start from this solver instead of from scratch")
    parser.add_argument("--peak", type=float, default=RATE, help="the highest learning rate")
    parser.add_argument("--terms", type=int, nargs=2, default=corpus.TERMS, help="the fewest and the most of a sum")
    arguments = parser.parse_args()
    train(
        arguments.out,
        steps=arguments.steps,
        seed=arguments.seed,
        peak=arguments.peak,
        terms=tuple(arguments.terms),
        init=arguments.init,
    )
