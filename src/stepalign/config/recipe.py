"""The tables of a recipe: every key with its type, its range, its default and one sentence. The reference."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from stepalign.assets import SOLVER
from stepalign.config.algorithms import AnyAlgorithmConfig, DistillationConfig
from stepalign.config.critics import AnyCriticConfig
from stepalign.config.registry import FAMILIES, register
from stepalign.config.samplers import AnySamplerConfig, TransformersConfig
from stepalign.config.table import Decay, Probability, Share, Table

VERSION = 2
"""The format of recipes this release reads and writes."""


class ModelConfig(Table):
    """The solver's base weights."""

    name_or_path: str
    """A directory, a name on the Hugging Face hub, or `lab`: the solver that ships with the package."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a GPU that has it, float32 on the CPU."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    chat_template_path: Path | None = None
    """A Jinja file, for a tokenizer that has no chat template of its own."""

    @property
    def location(self) -> str:
        """Where the weights are."""
        return str(SOLVER) if self.name_or_path == "lab" else self.name_or_path


# ── problems ──────────────────────────────────────────────────────────────────────────────────────────────────


class SourceConfig(Table):
    """Base of every source's table."""

    source: str
    limit: PositiveInt | None = None
    """Take at most this many problems, in the source's order."""


AnySourceConfig = Annotated[SerializeAsAny[SourceConfig], FAMILIES["source"]]


@register("source", "openmath", implementation="stepalign.data.openmath:candidates")
class OpenMathConfig(SourceConfig):
    """`nvidia/OpenMathReasoning` from the hub (the paper's data)."""

    source: Literal["openmath"] = "openmath"
    split: str = "cot"
    min_pass_rate: Share = 0.85
    """Keep problems whose `pass_rate_72b_tir` is above this (paper: 0.85)."""


@register("source", "gsm8k", implementation="stepalign.data.gsm8k:candidates")
class Gsm8kConfig(SourceConfig):
    """`openai/gsm8k` from the hub, or its raw JSONL."""

    source: Literal["gsm8k"] = "gsm8k"
    split: Literal["train", "test"] = "train"
    path: Path | None = None


@register("source", "gsm_symbolic", implementation="stepalign.data.gsm_symbolic:candidates")
class GsmSymbolicConfig(SourceConfig):
    """`gsm_symbolic` of reasoning-gym: generated word problems with a written derivation."""

    source: Literal["gsm_symbolic"] = "gsm_symbolic"
    count: PositiveInt = 100
    seed: NonNegativeInt = 0


@register("source", "sums", implementation="stepalign.data.sums:candidates")
class SumsConfig(SourceConfig):
    """Generated sums: `terms` numbers of up to `digits` digits, added and taken away."""

    source: Literal["sums"] = "sums"
    count: PositiveInt = 100
    seed: NonNegativeInt = 0
    terms: Annotated[int, Field(ge=2, le=12)] = 4
    digits: Annotated[int, Field(ge=1, le=6)] = 2
    subtract: bool = False
    """Whether some terms are taken away instead of added."""


class ColumnsConfig(Table):
    """Which columns of a file hold a problem's parts."""

    statement: str = "statement"
    answer: str = "answer"
    solution: str = "solution"
    """Empty where there is none."""
    id: str | None = None


@register("source", "file", implementation="stepalign.data.files:candidates")
class FileConfig(SourceConfig):
    """Any local JSONL or Parquet file."""

    source: Literal["file"] = "file"
    path: Path
    columns: ColumnsConfig = ColumnsConfig()


class ProblemsConfig(Table):
    """What is trained on, and what is held out of it."""

    train: AnySourceConfig
    holdout: NonNegativeInt = 0
    """Problems split off for evaluation, by `seed` (paper: 30)."""
    seed: NonNegativeInt = 0
    evaluation: AnySourceConfig | None = None
    """Evaluate on these problems instead of on held-out ones."""

    @model_validator(mode="after")
    def _one_evaluation_set(self) -> Self:
        if self.evaluation is not None and self.holdout:
            raise ValueError("`holdout` and `evaluation` exclude each other: set holdout = 0, or leave out evaluation")
        return self


class SelectionConfig(Table):
    """`stepalign select`: the paper's filter by the solver's own attempts."""

    num_attempts: PositiveInt = 16
    max_accuracy: Share = 5 / 16
    """Keep problems whose accuracy over the attempts is below this."""
    min_format_accuracy: Share = 0.9
    """… and whose format accuracy is above this."""


# ── the solver's side ─────────────────────────────────────────────────────────────────────────────────────────


class SamplingConfig(Table):
    """How tokens are drawn."""

    temperature: NonNegativeFloat = 1.0
    """0 is greedy."""
    top_p: Probability = 1.0
    top_k: NonNegativeInt = 0
    """0 is off."""
    max_new_tokens: PositiveInt = 1024
    enable_thinking: bool = False
    """The chat template's thinking switch."""


class ExampleConfig(Table):
    """A worked example, shown as a turn of its own before the problem."""

    problem: str
    solution: str


class PromptsConfig(Table):
    """The solver's prompt."""

    solver: str = "solver"
    """The name of a template that ships with the package, or a file."""
    system: str = ""
    examples: tuple[ExampleConfig, ...] = ()
    """For solvers too small to follow the format by instruction alone (the paper shows none)."""


class GraderConfig(Table):
    """Base of every grader's table: worker processes that judge completions."""

    kind: str = "math"
    num_workers: PositiveInt = 2
    timeout_s: PositiveFloat = 10.0
    """For one rollout; a worker that exceeds it is killed and the rollout counts as wrong."""


AnyGraderConfig = Annotated[SerializeAsAny[GraderConfig], FAMILIES["grader"]]


@register("grader", "math", implementation="stepalign.rewards.math:Grader")
class MathGraderConfig(GraderConfig):
    """Final answers compared by math-verify."""

    kind: Literal["math"] = "math"


# ── the teacher's side ────────────────────────────────────────────────────────────────────────────────────────


def _fallback_beside(values: Mapping[str, Any]) -> str:
    return "lab/refsol" if str(values.get("template", "")).startswith("lab/") else "refsol"


class ContextConfig(Table):
    """What the teacher is shown beyond the problem: one template file."""

    template: str = "refsol"
    """`refsol`, `stepalign`, `quoted`, `verdicts`, or the path of a file of your own."""
    fallback_template: str = Field(default_factory=_fallback_beside)
    """The template in place of a missing critique, where the critic's fallback is `refsol`. By default `refsol`, and
    `lab/refsol` where `template` is one of the lab's."""
    shuffled: bool = False
    """Show another problem's critique: a control that must not help. The horizon stays the rollout's own."""


class TeacherConfig(Table):
    """Who teaches, and how its prompt ends."""

    kind: Literal["base"] = "base"
    """`base`: the initial policy, the same weights with the adapter disabled."""
    enable_thinking: bool = False
    """The chat template's thinking switch for the teacher's prompt (paper: on)."""
    close_think: bool = False
    """End a thinking-on prompt with an empty think block, so that the teacher does not expect `<think>` first."""
    max_length: PositiveInt = 20_000
    """Teacher prompt and completion together. A longer context is cut, never the problem or the header."""


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────


class LoraConfig(Table):
    """LoRA."""

    r: PositiveInt = 16
    lora_alpha: PositiveFloat = 32.0
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class OptimizerConfig(Table):
    """AdamW."""

    lr: PositiveFloat = 5e-6
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    """Linear from 0, then constant."""
    max_grad_norm: NonNegativeFloat = 0.1
    """The global norm that gradients are clipped to; 0 is off."""


class TrainingConfig(Table):
    """How long, how much at once, and what is kept."""

    max_steps: PositiveInt = 100
    """Optimizer steps."""
    rollouts_per_step: PositiveInt = 32
    num_generations: PositiveInt = 1
    """Rollouts a problem (the paper's G)."""
    micro_batch_size: PositiveInt = 2
    """Rollouts in one forward and backward pass, at most."""
    max_tokens_per_micro_batch: PositiveInt | None = None
    """The student's padded tokens in one pass, at most (a longer rollout has one to itself); None is no bound."""
    gradient_checkpointing: bool = False
    overlap: bool = True
    """A critic is asked while other rollouts are drawn, and learning begins with the first answers of a served one."""
    save_steps: PositiveInt = 10
    eval_steps: NonNegativeInt = 10
    """0 evaluates before the first and after the last step only."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.rollouts_per_step % self.num_generations:
            raise ValueError(
                f"rollouts_per_step = {self.rollouts_per_step} is not a multiple of "
                f"num_generations = {self.num_generations}"
            )
        return self


@register("strategy", "data_parallel", implementation="stepalign.distributed.strategy:DataParallel")
@register("strategy", "fsdp2", implementation="stepalign.distributed.strategy:FSDP2")
@register("strategy", "zero2", implementation="stepalign.distributed.zero2:ZeRO2")
class DistributedConfig(Table):
    """Training in several processes, started by `accelerate launch` or `torchrun`."""

    strategy: str = "auto"
    """`data_parallel`: the whole model on each; `fsdp2`: the base sharded; `zero2`: the optimizer's state sharded by
    DeepSpeed (the paper's); `auto`: what the launcher's configuration asks for, else `data_parallel`."""
    offload_optimizer: bool = False
    """`zero2`: the optimizer's state in the host's memory (the paper's)."""
    num_processes: NonNegativeInt = 0
    """How many there must be; 0 takes as many as were started."""

    @field_validator("strategy")
    @classmethod
    def _is_registered(cls, strategy: str) -> str:
        if strategy != "auto" and strategy not in FAMILIES["strategy"].tables:
            raise FAMILIES["strategy"].refusal(strategy)
        return strategy


class EvaluationConfig(Table):
    """How a checkpoint is judged on the held-out problems (paper: n 12, T 1.0, top-p 0.95, 38,912 tokens)."""

    num_samples: PositiveInt = 12
    """n: attempts a problem."""
    sampling: SamplingConfig = SamplingConfig(temperature=1.0, top_p=0.95)
    num_bootstrap: PositiveInt = 2000
    """Resamples behind every interval."""


class ProbeConfig(Table):
    """Rollouts that a run looks at under several contexts at every checkpoint; without this table it does not."""

    contexts: tuple[str, ...] = ()
    """Designs by name or file; none means the run's own."""
    rollouts: Path | None = None
    """A file or folder as `stepalign probe --rollouts` takes it; None draws from the initial policy."""
    num_rollouts: PositiveInt = 16
    """The first so many rollouts, or problems to draw one of each."""


class TrackingConfig(Table):
    """Trackers of Accelerate that metrics are also sent to."""

    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    project: str = "stepalign"


class Recipe(Table):
    """A whole run."""

    version: int = VERSION
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: NonNegativeInt = 0
    output_dir: Path = Path("runs")
    """The run's folder is `output_dir/name`."""
    model: ModelConfig
    problems: ProblemsConfig
    selection: SelectionConfig = SelectionConfig()
    prompts: PromptsConfig = PromptsConfig()
    sampler: AnySamplerConfig = TransformersConfig()
    sampling: SamplingConfig = SamplingConfig()
    grader: AnyGraderConfig = MathGraderConfig()
    critic: AnyCriticConfig | None = None
    context: ContextConfig = ContextConfig()
    teacher: TeacherConfig = TeacherConfig()
    algorithm: AnyAlgorithmConfig = DistillationConfig()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    distributed: DistributedConfig = DistributedConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    probe: ProbeConfig | None = None
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _algorithm_can_learn(self) -> Self:
        self.algorithm.check(num_generations=self.training.num_generations, temperature=self.sampling.temperature)
        return self

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return self.output_dir / self.name
