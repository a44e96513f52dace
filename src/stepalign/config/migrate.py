"""Rewrite recipes of format 1 in format 2. Comments and layout stay.

    stepalign migrate OLD.toml --out NEW.toml

`KEYS` is the whole difference between the formats, with `VALUES` for the values that changed with their key.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepalign.arguments import checked
from stepalign.errors import StepalignError
from stepalign.io import write_atomically


def _names(text: str) -> dict[str, str]:
    """Read old and new names: `a → b, c → d`."""
    return dict(pair.split(" → ") for pair in text.split(", "))


_SAMPLING = _names("thinking → enable_thinking")
_SAMPLER = _names(
    "batch_size → max_num_seqs, memory → gpu_memory_utilization, max_tokens → max_model_len, eager → enforce_eager, "
    "sleep → enable_sleep_mode, outage_s → max_outage_s"
)
KEYS: Mapping[str, Mapping[str, str]] = {
    "": _names(
        "output → output_dir, adapter → lora, objective → algorithm, grading → grader, distribution → distributed"
    ),
    "model": _names("path → name_or_path, attention → attn_implementation, chat_template → chat_template_path"),
    "selection": _names("attempts → num_attempts, min_format → min_format_accuracy"),
    "sampling": _SAMPLING,
    "evaluation": _names("samples → num_samples, bootstrap → num_bootstrap"),
    "evaluation.sampling": _SAMPLING,
    "grader": _names("workers → num_workers"),
    "sampler": _SAMPLER,
    "critic": _names(
        "policy → validation, asks → max_attempts, thinking → enable_thinking, batch_size → max_num_seqs, "
        "retries → max_retries, rest_s → cooldown_s, outage_s → max_outage_s, concurrency → max_concurrency"
    ),
    "critic.checks": _names("max_echo → max_reference_overlap"),
    "critic.validation": _names(
        "verbatim → exact_copy, wording → normalized_copy, withheld → error_not_quoted, answer → final_answer, "
        "echo → reference_overlap"
    ),
    "teacher": _names("policy → kind, thinking → enable_thinking, max_tokens → max_length"),
    "algorithm": _names(
        "clip_at → clip_value, normalize → loss_agg_mode, horizon → loss_span, skip_first → num_loss_tokens_to_skip, "
        "clip_high → epsilon_high, updates → num_iterations, kl → kl_coef"
    ),
    "lora": _names("rank → r, alpha → lora_alpha, dropout → lora_dropout, targets → target_modules"),
    "training": _names(
        "steps → max_steps, group → num_generations, micro_batch → micro_batch_size, "
        "micro_batch_tokens → max_tokens_per_micro_batch, checkpoint_every → save_steps, evaluate_every → eval_steps"
    ),
    "distributed": _names("engine → strategy, offload → offload_optimizer, processes → num_processes"),
    "probe": _names("count → num_rollouts"),
    "tracking": _names("trackers → report_to"),
}
"""New names of keys, by the table that holds them (under its new name)."""
VALUES: Mapping[str, Mapping[str, str]] = {
    "algorithm.loss_agg_mode": {"sequence": "seq-mean-token-mean", "token": "token-mean"},
    "algorithm.loss_span": {"first_error": "until_first_error"},
    "distributed.strategy": {"replicated": "data_parallel"},
}
"""New values of keys whose values changed as well."""


def old_keys(values: Mapping[str, Any], old: str = "", new: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key of format 1 in a recipe's values, and its name in format 2; `old` and `new` name a table."""
    for key, value in values.items():
        name = _renamed(new, key, value)
        if name != key:
            yield _join(old, key), _join(new, name)
        if isinstance(value, Mapping):
            yield from old_keys(value, _join(old, key), _join(new, name))


@checked
def migrate(file: Path | str, out: Path | str | None = None) -> list[tuple[str, str]]:
    """Rewrite a recipe in format 2, and return each renamed key with its new name.

    Args:
        file: the recipe. What it extends is a file of its own.
        out: the new file; None rewrites the recipe in place.

    Raises:
        StepalignError: the file cannot be read, or is no TOML.
    """
    import tomlkit
    from tomlkit.exceptions import ParseError

    try:
        document = tomlkit.parse(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise StepalignError(f"{file}: {error.strerror}") from None
    except (ParseError, UnicodeDecodeError) as error:
        raise StepalignError(f"{file}: not valid TOML: {error}") from None
    renamed = list(old_keys(document.unwrap()))
    _rewrite(document.body, "")
    write_atomically(Path(out or file), tomlkit.dumps(document))
    return renamed


def _rewrite(body: list[tuple[Any, Any]], table: str) -> None:
    """Rename keys and values of a tomlkit container, in place, with their comments, quotes and spaces."""
    from tomlkit.items import Integer, SingleKey, String, StringType

    for place, (key, item) in enumerate(body):
        if key is None:  # a comment, or white space
            continue
        name = _renamed(table, key.key, item.unwrap())
        path = _join(table, name)
        if hasattr(item, "invalidate_display_name"):
            item.invalidate_display_name()  # a header is written from the keys again
        if hasattr(item.value, "body"):
            _rewrite(item.value.body, path)
        new_key, new_item = key, item
        if name != key.key:
            new_key = SingleKey(name, sep=key.sep, original=key.as_string().replace(key.key, name))
            new_key._dotted = key.is_dotted()
        if path == "version":
            new_item = Integer(2, item.trivia, "2")
        elif isinstance(item, String) and (value := VALUES.get(path, {}).get(item.value)):
            new_item = String(StringType.SLB, value, value, item.trivia)
        body[place] = (new_key, new_item)


def _renamed(table: str, key: str, value: object) -> str:
    if (table, key) == ("algorithm", "clip"):  # one key of two types: an enum for distillation, GRPO's number
        return "clip_mode" if isinstance(value, str) else "epsilon"
    return KEYS.get(table, {}).get(key, key)


def _join(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key
