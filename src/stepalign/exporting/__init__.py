"""Results that travel: a run's adapter with its card, merged weights, or its rollouts and critiques as a data set.

stepalign export runs/quickstart                  # adapter, tokenizer, model card, recipe, prompts
stepalign export runs/quickstart --merge          # weights that need no adapter
stepalign export runs/quickstart --dataset        # rollouts and critiques for `datasets`
stepalign push runs/quickstart OWNER/NAME --dry-run
"""

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt

from stepalign import chat, config
from stepalign.arguments import checked
from stepalign.errors import StepalignError
from stepalign.exporting.card import Base, model_card
from stepalign.exporting.merge import Agreement, merge_adapter, sample_ids
from stepalign.io import new_folder, write_atomically
from stepalign.report.run import RunFiles, read_run
from stepalign.rollouts.vllm import served_rank
from stepalign.trainer import checkpoints

_TRAINING_ONLY = {"optimizer.safetensors", "algorithm.safetensors", "state.json", "SHA256SUMS", "README.md"}
"""Files of a checkpoint that resume a run and are of no use elsewhere, and PEFT's card, which is replaced."""


@dataclass(frozen=True)
class Exported:
    """A folder that `export` wrote."""

    folder: Path
    serve: str
    """The command that serves it with vLLM."""
    agreement: Agreement | None = None
    """Agreement of merged weights with the adapter; None where nothing was merged."""


@checked
def export(
    run_folder: Path | str,
    out: Path | str | None = None,
    *,
    step: NonNegativeInt | None = None,
    merge: bool = False,
    base: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    repo: str | None = None,
) -> Exported:
    """Write a checkpoint with tokenizer, model card, recipe and prompts into a folder of its own.

    Args:
        run_folder: the folder of a run.
        out: the folder to write; None is `export`, or `merged`, in the run's folder.
        step: the checkpoint's optimizer step; None is the last one.
        merge: add the adapter to the base's weights, in float32 arithmetic, and write the whole model.
        base: the base's name where others load it from, `owner/model`; None is the recipe's.
        dtype: the dtype of merged weights; None is that of the base's files.
        repo: the repository on the hub where the folder will be, for the card's vLLM line.

    Raises:
        StepalignError: there is no such checkpoint, it is damaged, `out` exists, `dtype` is given without `merge`, or
            merged weights disagree.
    """
    if dtype and not merge:
        raise StepalignError(
            f"dtype = {dtype!r} without merge: it is that of merged weights, an adapter is copied as it is"
        )
    run_folder = Path(run_folder)
    run = read_run(run_folder)
    checkpoint = _checkpoint(run_folder, step)
    checkpoints.verify(checkpoint)
    model = model_of(run)
    adapter, agreement = (checkpoint / "adapter_config.json").exists(), None
    if merge and not adapter:
        raise StepalignError(f"{checkpoint}: a whole model and no adapter: there is nothing to merge")
    out = Path(out or run_folder / ("merged" if merge else "export"))
    with new_folder(out) as folder:
        if merge:
            texts = sample_ids(run, chat.load_tokenizer(model)[0])
            agreement = merge_adapter(model, checkpoint, folder, texts, dtype=dtype)
        else:
            for file in checkpoint.iterdir():
                if file.name not in _TRAINING_ONLY:
                    shutil.copy2(file, folder / file.name)
        _write_tokenizer(run, model, folder)
        if adapter and not merge:
            _name_base(folder / "adapter_config.json", base)
        write_atomically(folder / "recipe.toml", run.recipe_text)
        if (run_folder / "prompts").is_dir():
            shutil.copytree(run_folder / "prompts", folder / "prompts")
        serve = _serve(run.name, folder, base or model.location, str(out))
        write_atomically(folder / "README.md", _card(run, checkpoint, folder, base, repo or ".", agreement))
    return Exported(out, serve, agreement)


def write_cards(run_folder: Path) -> None:
    """Write the model card of each checkpoint of a run, in place of PEFT's, which says nothing of it."""
    run = read_run(run_folder)
    for checkpoint in sorted((run_folder / "checkpoints").glob("step-*")):
        write_atomically(checkpoint / "README.md", _card(run, checkpoint, checkpoint))


def model_of(run: RunFiles) -> config.ModelConfig:
    """Return the base of a run."""
    if "model" not in run.recipe:
        raise StepalignError(f"{run.folder / 'recipe.toml'}: missing, or without a [model]")
    return config.ModelConfig.model_validate(run.recipe["model"])


def _checkpoint(run_folder: Path, step: int | None) -> Path:
    """Return the checkpoint of a step, or the last one."""
    folder = run_folder / "checkpoints"
    found = checkpoints.latest(folder) if step is None else folder / f"step-{step:06d}"
    if found is None or not found.is_dir():
        there = ", ".join(str(_step(path)) for path in sorted(folder.glob("step-*"))) or "none"
        raise StepalignError(
            f"{folder}: no checkpoint{'' if step is None else f' of step {step}'}; steps there: {there}"
        )
    return found


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _write_tokenizer(run: RunFiles, model: config.ModelConfig, folder: Path) -> None:
    """Write the tokenizer with the chat template that the run used, unless the checkpoint has brought it."""
    if (folder / "tokenizer.json").exists():
        return
    tokenizer, _ = chat.load_tokenizer(model)
    template = run.folder / "prompts" / chat.CHAT_TEMPLATE
    if template.exists():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)


def _name_base(path: Path, base: str | None) -> None:
    """Name the base in an adapter's configuration as others find it."""
    if base is not None:
        settings = json.loads(path.read_text(encoding="utf-8"))
        write_atomically(path, json.dumps(settings | {"base_model_name_or_path": base}, indent=2, sort_keys=True))


def _card(
    run: RunFiles,
    checkpoint: Path,
    folder: Path,
    base: str | None = None,
    place: str = ".",
    agreement: Agreement | None = None,
) -> str:
    """Write the card of a folder of weights, which its readers find at `place`."""
    named = Base.of(model_of(run), base)
    serve = _serve(run.name, folder, named.name if named.on_hub else "BASE", place)
    return model_card(run, _step(checkpoint), base=named, serve=serve, agreement=agreement)


def _serve(name: str, folder: Path, base: str, place: str) -> str:
    """Return vLLM's command for a folder of weights, which will be at `place`."""
    path = folder / "adapter_config.json"
    if not path.exists():
        return shlex.join(["vllm", "serve", place])
    rank = served_rank(int(json.loads(path.read_text(encoding="utf-8"))["r"]))
    options = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}={place}"]
    return shlex.join(["vllm", "serve", base, *options])
