"""The `[model]` table: the weights of a causal language model."""

from pathlib import Path
from typing import Literal

from stepalign.assets import SOLVER
from stepalign.config.registry import Table


class ModelConfig(Table):
    """The solver's base weights."""

    name_or_path: str
    """A directory, a name on the Hugging Face hub, or `lab`: the solver that ships with the package."""
    revision: str | None = None
    """A commit, branch or tag on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The precision of the weights; `auto` is bfloat16 on a GPU that supports it, else float32."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """The attention implementation of transformers."""
    chat_template_path: Path | None = None
    """A Jinja file, for a tokenizer that has no chat template of its own."""

    @property
    def location(self) -> str:
        """The directory or hub name of the weights."""
        return str(SOLVER) if self.name_or_path == "lab" else self.name_or_path
