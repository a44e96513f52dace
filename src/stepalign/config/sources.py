"""The `[problems]` tables: where problems come from, and which are held out. `source` names the kind."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, SerializeAsAny, model_validator

from stepalign.config.registry import FAMILIES, Share, Table, register


class SourceConfig(Table):
    """Base of every source's table."""

    source: str
    limit: PositiveInt | None = None
    """The most problems to take, in the source's order."""


AnySourceConfig = Annotated[SerializeAsAny[SourceConfig], FAMILIES["source"]]


@register("source", "openmath", implementation="stepalign.data.openmath:candidates")
class OpenMathConfig(SourceConfig):
    """`nvidia/OpenMathReasoning` from the hub (the paper's data)."""

    source: Literal["openmath"] = "openmath"
    split: str = "cot"
    """The split of the data set."""
    min_pass_rate: Share = 0.85
    """Problems with a `pass_rate_72b_tir` above this are kept (paper: 0.85)."""


@register("source", "gsm8k", implementation="stepalign.data.gsm8k:candidates")
class Gsm8kConfig(SourceConfig):
    """`openai/gsm8k` from the hub, or its raw JSONL."""

    source: Literal["gsm8k"] = "gsm8k"
    split: Literal["train", "test"] = "train"
    """The split of the data set."""
    path: Path | None = None
    """A local raw JSONL file; None reads from the hub."""


@register("source", "gsm_symbolic", implementation="stepalign.data.gsm8k:symbolic")
class GsmSymbolicConfig(SourceConfig):
    """`gsm_symbolic` of reasoning-gym: generated word problems with a written derivation."""

    source: Literal["gsm_symbolic"] = "gsm_symbolic"
    count: PositiveInt = 100
    """The number of problems."""
    seed: NonNegativeInt = 0
    """The seed of the generator."""


@register("source", "sums", implementation="stepalign.data.sums:candidates")
class SumsConfig(SourceConfig):
    """Generated sums and differences."""

    source: Literal["sums"] = "sums"
    count: PositiveInt = 100
    """The number of problems."""
    seed: NonNegativeInt = 0
    """The seed of the generator."""
    terms: Annotated[int, Field(ge=2, le=12)] = 4
    """Numbers in a sum."""
    digits: Annotated[int, Field(ge=1, le=6)] = 2
    """The most digits of a number."""
    subtract: bool = False
    """Some terms are subtracted."""


@register("source", "processbench", implementation="stepalign.data.processbench:candidates")
class ProcessBenchConfig(SourceConfig):
    """Problems of a ProcessBench file that a solution in it solves: their answers are known."""

    source: Literal["processbench"] = "processbench"
    path: Path
    """The file, JSONL or Parquet."""


class ColumnsConfig(Table):
    """Columns of a file."""

    statement: str = "statement"
    """The column of the problem's statement."""
    answer: str = "answer"
    """The column of the reference answer."""
    solution: str = "solution"
    """The column of the reference solution; empty where the file has none."""
    id: str | None = None
    """The column of the problem's id; None numbers the rows."""


@register("source", "file", implementation="stepalign.data.files:candidates")
class FileConfig(SourceConfig):
    """Any local JSONL or Parquet file."""

    source: Literal["file"] = "file"
    path: Path
    """The file."""
    columns: ColumnsConfig = ColumnsConfig()
    """The columns that are read."""


class CodeSourceConfig(SourceConfig):
    """Base of sources whose problems have unit tests."""

    shown_tests: NonNegativeInt = 1
    """The number of tests that the statement shows, from the first; the others are hidden."""


@register("source", "mbpp", implementation="stepalign.data.code:mbpp")
class MbppConfig(CodeSourceConfig):
    """`google-research-datasets/mbpp` from the hub, or its raw JSONL."""

    source: Literal["mbpp"] = "mbpp"
    split: Literal["train", "validation", "test", "prompt"] = "train"
    """The split: task ids 601–974, 511–600, 11–510, 1–10."""
    path: Path | None = None
    """A local raw JSONL file, of which the split is taken by `task_id`; None reads from the hub."""


@register("source", "humaneval", implementation="stepalign.data.code:humaneval")
class HumanEvalConfig(SourceConfig):
    """`openai/openai_humaneval` from the hub, or a file of its format. Every test is hidden."""

    source: Literal["humaneval"] = "humaneval"
    path: Path | None = None
    """A local JSONL or Parquet file; None reads from the hub."""


class CodeColumnsConfig(Table):
    """Columns of a file of problems with unit tests. A default column but the first two may be absent."""

    statement: str = "statement"
    """The column of the problem's statement, without its tests."""
    tests: str = "tests"
    """The column of the tests: a list of snippets, or one snippet."""
    hidden_tests: str = "hidden_tests"
    """The column of further tests, all hidden."""
    solution: str = "solution"
    """The column of the reference program."""
    entry_point: str = "entry_point"
    """The column of the function's name."""
    preamble: str = "preamble"
    """The column of the code before the program."""
    setup: str = "setup"
    """The column of the code between the program and the tests."""
    id: str | None = None
    """The column of the problem's id; None numbers the rows."""


@register("source", "code_file", implementation="stepalign.data.code:code_file")
class CodeFileConfig(CodeSourceConfig):
    """Any local JSONL or Parquet file of problems with unit tests."""

    source: Literal["code_file"] = "code_file"
    path: Path
    """The file."""
    columns: CodeColumnsConfig = CodeColumnsConfig()
    """The columns that are read."""


class ProblemsConfig(Table):
    """Training problems and evaluation problems."""

    train: AnySourceConfig
    """The source of the training problems."""
    holdout: NonNegativeInt = 0
    """The number of training problems held out for evaluation (paper: 30)."""
    seed: NonNegativeInt = 0
    """The seed of the hold-out."""
    evaluation: AnySourceConfig | None = None
    """The source of the evaluation problems, in place of held-out ones."""

    @model_validator(mode="after")
    def _one_evaluation_set(self) -> Self:
        if self.evaluation is not None and self.holdout:
            raise ValueError("`holdout` and `evaluation` exclude each other: set holdout = 0, or leave out evaluation")
        return self
