"""The `[model]` table: the weights of a causal language model."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stepalign.assets import SOLVER
from stepalign.config.registry import TEMPLATE, Table
from stepalign.errors import StepalignError
from stepalign.io import home_expanded


def is_local(name: str) -> bool:
    """Return whether a name is plainly a path, because a name on the hub is `owner/name` or `name`."""
    return name.startswith(("/", ".", "~")) or len(Path(name).parts) > 2


class ModelConfig(Table):
    """The solver's base weights."""

    name_or_path: str
    """A directory, a name on the Hugging Face hub, or `lab`: the solver that ships with the package."""
    revision: str | None = None
    """A commit, branch or tag on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The precision of weights: `auto` is bfloat16 on a GPU that has it, else float32. float16 cannot be trained."""
    float32_matmul_precision: Literal["highest", "medium", "auto"] = "highest"
    """torch's precision of float32 products: `medium` multiplies in bfloat16; `auto` measures both on the CPU."""
    load_in_4bit: bool = False
    """Keep the layers' weights in 4-bit NormalFloat (QLoRA; needs `stepalign[qlora]`), but not the head."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """The attention implementation of transformers."""
    chat_template_path: Annotated[Path | None, TEMPLATE] = None
    """A Jinja file, for a tokenizer that has no chat template of its own."""
    chat_template_date: Annotated[date, Field(strict=False)] | None = None
    """The date that a chat template shows; None is the day on which the folder of results was begun."""

    @model_validator(mode="after")
    def _attention_takes_the_dtype(self) -> Self:
        if self.dtype == "float32" and self.attn_implementation.startswith("flash"):
            raise ValueError(
                f"attn_implementation = {self.attn_implementation!r} with dtype = 'float32': FlashAttention takes half "
                "precision only; set attn_implementation = 'sdpa'"
            )
        return self

    def extras(self) -> Iterator[tuple[str, str]]:
        """Yield the need of 4-bit weights."""
        if self.load_in_4bit:
            yield "load_in_4bit = true", "qlora"

    @property
    def location(self) -> str:
        """The directory or hub name of the weights (`locate`)."""
        return self.locate("model.name_or_path")

    def locate(self, key: str) -> str:
        """Return the directory or hub name of the weights. `key` is that of the name, for messages.

        Raises:
            StepalignError: a directory is missing (the hub is not asked), or holds an adapter.
        """
        if self.name_or_path == "lab":
            return str(SOLVER)
        folder, where = home_expanded(self.name_or_path), f"{key} = {self.name_or_path!r}"
        if folder.is_dir():
            if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
                raise StepalignError(f"{where}: a PEFT adapter; name its base here, and the adapter with --adapter")
            return str(folder)
        if (
            is_local(self.name_or_path)
            or self.name_or_path.startswith(("models/", "runs/"))
            or (folder.parent.name and folder.parent.is_dir())
        ):
            makes = f"; `python scripts/smollm2.py {folder}` makes it" if folder.name == "SmolLM2-135M-Instruct" else ""
            raise StepalignError(f"{where}: no such folder{makes}")
        return self.name_or_path
