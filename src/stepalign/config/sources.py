"""The `[problems]` tables: where problems come from, and which are held out. `source` names the kind."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, SerializeAsAny, model_validator

from stepalign.config.python import PYTHON, PythonObject
from stepalign.config.registry import FAMILIES, Share, Table, register


class SourceConfig(Table):
    """Base of every source's table."""

    source: str
    limit: PositiveInt | None = None
    """The most problems to take, in the source's order."""


class HubSourceConfig(SourceConfig):
    """Base of the tables of data sets on the Hugging Face hub."""

    revision: str | None = None
    """A commit, branch or tag on the hub. A run keeps the commit in its manifest, and resumes with that one."""

    @property
    def repository(self) -> tuple[str, str | None] | None:
        """The data set's name and configuration; None for a local file."""
        raise NotImplementedError


AnySourceConfig = Annotated[SerializeAsAny[SourceConfig], FAMILIES["source"]]


@register("source", "openmath", implementation="stepalign.data.openmath:candidates")
class OpenMathConfig(HubSourceConfig):
    """`nvidia/OpenMathReasoning` from the hub (the paper's data)."""

    source: Literal["openmath"] = "openmath"
    dataset: str = "nvidia/OpenMathReasoning"
    """The data set, or a folder laid out like it."""
    split: str = "cot"
    """The split of the data set."""
    min_pass_rate: Share = 0.85
    """Problems with a `pass_rate_72b_tir` above this are kept (paper: 0.85)."""

    @property
    def repository(self) -> tuple[str, str | None]:
        """The data set."""
        return self.dataset, None


@register("source", "gsm8k", implementation="stepalign.data.gsm8k:candidates")
class Gsm8kConfig(HubSourceConfig):
    """`openai/gsm8k` from the hub, or its raw JSONL."""

    source: Literal["gsm8k"] = "gsm8k"
    split: Literal["train", "test"] = "train"
    """The split of the data set."""
    path: Path | None = None
    """A local raw JSONL file; None reads from the hub."""

    @property
    def repository(self) -> tuple[str, str | None] | None:
        """The data set; None where `path` names a file."""
        return None if self.path else ("openai/gsm8k", "main")


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
    """Columns of a file, a data set or rows from Python."""

    statement: str = "statement"
    """The column of the problem's statement: text, or a conversation whose last user turn is the problem."""
    template: str | None = None
    """Jinja text that makes the statement of a row's columns, such as `{{ question }} {{ choices }}`."""
    system: Literal["refuse", "prepend", "drop"] = "refuse"
    """A conversation's system turn: an error, put before the statement, or left out."""
    answer: str = "answer"
    """The column of the reference answer: text, a number, or a list of values that are one answer together."""
    solution: str = "solution"
    """The column of the reference solution; empty where the file has none."""
    id: str | None = None
    """The column of the problem's id; None numbers the rows."""
    meta: tuple[str, ...] = ()
    """Columns kept in the problem's `meta`, for a grader or critic of your own; `["*"]` keeps all others."""


@register("source", "file", implementation="stepalign.data.files:candidates")
class FileConfig(SourceConfig):
    """Any local JSONL or Parquet file."""

    source: Literal["file"] = "file"
    path: Path
    """The file."""
    columns: ColumnsConfig = ColumnsConfig()
    """The columns that are read."""


@register("source", "hub", implementation="stepalign.data.files:hub_candidates")
class HubConfig(HubSourceConfig):
    """Any data set of the Hugging Face hub, or a local folder laid out like one."""

    source: Literal["hub"] = "hub"
    dataset: str
    """The data set's name, `owner/name`, or a folder."""
    config: str | None = None
    """The data set's configuration; None takes the only one."""
    split: str = "train"
    """The split of the data set."""
    streaming: bool = False
    """Rows are read over the network on demand, instead of downloading all splits first."""
    columns: ColumnsConfig = ColumnsConfig()
    """The columns that are read."""

    @property
    def repository(self) -> tuple[str, str | None]:
        """Data set and configuration."""
        return self.dataset, self.config


@register("source", "python", implementation="stepalign.data.python:candidates")
class PythonSourceConfig(SourceConfig):
    """Rows from Python."""

    source: Literal["python"] = "python"
    function: Annotated[PythonObject, PYTHON]
    """`module:name` of a function without parameters that returns a list, a DataFrame or a data set's split."""
    columns: ColumnsConfig = ColumnsConfig(meta=("*",))
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
