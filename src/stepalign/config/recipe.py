"""The tables of a recipe: every key with its type, its range, its default and one sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stepalign.config.algorithms import AnyAlgorithmConfig, DistillationConfig
from stepalign.config.contexts import AnyContextConfig, TemplateContextConfig
from stepalign.config.critics import AnyCriticConfig
from stepalign.config.gates import CanariesConfig, PreflightConfig
from stepalign.config.graders import AnyGraderConfig, MathGraderConfig
from stepalign.config.keywords import expand, plain
from stepalign.config.locators import AnyLocatorConfig, CriticLocatorConfig
from stepalign.config.model import ModelConfig
from stepalign.config.registry import (
    FAMILIES,
    ONE_OR_MORE,
    RUNTIME,
    TEMPLATE,
    Decay,
    Probability,
    Share,
    Table,
    lay_over,
    register,
)
from stepalign.config.samplers import AnySamplerConfig, TransformersConfig
from stepalign.config.sources import ProblemsConfig
from stepalign.config.teachers import AnyTeacherConfig, BaseTeacherConfig

VERSION: Final = 2
"""The format of recipes this release reads and writes."""

_NEED_AN_ADAPTER = ("bfloat16", "float16", "flash_attention_2", "flash_attention_3", "vllm", "vllm-server", "scaled")
"""Values that are refused where all weights are trained."""


class SelectionConfig(Table):
    """`stepalign select`: the paper's filter by the solver's own attempts."""

    num_attempts: PositiveInt = 16
    """The number of attempts at each problem."""
    max_accuracy: Share = 5 / 16
    """Problems with an accuracy below this are kept."""
    min_format_accuracy: Share = 0.9
    """Problems with a format accuracy above this are kept."""


class SamplingConfig(Table):
    """Sampling of completions."""

    temperature: NonNegativeFloat = 1.0
    """The temperature; 0 is greedy."""
    top_p: Probability = 1.0
    """The probability mass of the nucleus."""
    top_k: NonNegativeInt = 0
    """The number of likeliest tokens to sample from; 0 is off."""
    max_new_tokens: PositiveInt = 1024
    """The most tokens of a completion."""
    enable_thinking: bool = False
    """The chat template's thinking switch."""


class ExampleConfig(Table):
    """A worked example, shown as a turn of its own before the problem."""

    problem: str
    """The user's turn."""
    solution: str
    """The assistant's turn."""


class PromptsConfig(Table):
    """The solver's prompt."""

    solver: Annotated[str, TEMPLATE] = "solver"
    """The name of a template that ships with the package, or a file."""
    system: str = ""
    """The system message; empty is none."""
    examples: tuple[ExampleConfig, ...] = ()
    """Worked examples, for solvers too small to follow the format by instruction (the paper has none)."""


class LoraConfig(Table):
    """The LoRA adapter (PEFT's names)."""

    r: PositiveInt = 16
    """The rank."""
    lora_alpha: PositiveFloat = 32.0
    """The scale, over the rank."""
    lora_dropout: Decay = 0.0
    """The dropout of the adapter's inputs."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """The names of the linear layers that have adapters."""


class OptimizerConfig(Table):
    """AdamW."""

    lr: PositiveFloat = 5e-6
    """The learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """The decay rates of the moments."""
    eps: PositiveFloat = 1e-8
    """The term added to the denominator."""
    weight_decay: NonNegativeFloat = 0.0
    """The decoupled weight decay."""
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """The learning rate after the warm-up: constant, or falling to 0 over `training.max_steps`."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up from 0."""
    warmup_ratio: Decay = 0.0
    """The warm-up as a share of `training.max_steps`, in place of `warmup_steps`."""
    max_grad_norm: NonNegativeFloat = 0.1
    """The global norm to which gradients are clipped; 0 is off."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps and self.warmup_ratio:
            pair = f"warmup_steps = {self.warmup_steps} and warmup_ratio = {self.warmup_ratio}"
            raise ValueError(f"{pair}: set one of them")
        if self.lr_scheduler_type == "constant" and (warmup := self.warmup_steps or self.warmup_ratio):
            key = "warmup_steps" if self.warmup_steps else "warmup_ratio"
            raise ValueError(f"{key} = {warmup}: lr_scheduler_type = 'constant' has none, set constant_with_warmup")
        return self

    @property
    def depends_on_max_steps(self) -> bool:
        """True where the rate of a step depends on the length of the run."""
        return self.lr_scheduler_type in ("linear", "cosine") or self.warmup_ratio > 0


class TrainingConfig(Table):
    """Steps, batches, checkpoints and evaluations."""

    use_peft: bool = True
    """Train a LoRA adapter (`[lora]`); false trains all weights (TRL's name)."""
    max_steps: Annotated[PositiveInt, RUNTIME] = 100
    """The number of steps."""
    rollouts_per_step: PositiveInt = 32
    """Rollouts of one step, over all processes."""
    num_generations: PositiveInt = 1
    """Rollouts of each problem (the paper's G)."""
    micro_batch_size: Annotated[PositiveInt, RUNTIME] = 2
    """The most rollouts in one forward and backward pass."""
    max_tokens_per_micro_batch: Annotated[PositiveInt | None, RUNTIME] = None
    """The most padded student tokens in one pass; a longer rollout has a pass of its own, None is no bound."""
    gradient_checkpointing: Annotated[bool, RUNTIME] = False
    """Activations are computed again in the backward pass, to save memory."""
    overlap: Annotated[bool, RUNTIME] = True
    """Rollouts are critiqued while others are sampled, and learning begins with a remote critic's first critiques."""
    save_steps: Annotated[PositiveInt, RUNTIME] = 10
    """Steps between checkpoints."""
    eval_steps: NonNegativeInt = 10
    """Steps between evaluations; 0 evaluates before the first and after the last step only."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.rollouts_per_step % self.num_generations:
            rollouts, group = self.rollouts_per_step, self.num_generations
            raise ValueError(f"rollouts_per_step = {rollouts} is not a multiple of num_generations = {group}")
        return self


def _strategy(name: str) -> str:
    return name if name == "auto" else FAMILIES["strategy"].check(name)


@register("strategy", "data_parallel", implementation="stepalign.distributed.strategy:DataParallel")
@register("strategy", "fsdp2", implementation="stepalign.distributed.strategy:FSDP2")
@register("strategy", "zero2", implementation="stepalign.distributed.zero2:ZeRO2")
class DistributedConfig(Table):
    """Training in several processes, started by `accelerate launch` or `torchrun`."""

    strategy: Annotated[str, AfterValidator(_strategy)] = "auto"
    """`data_parallel` (copies), `fsdp2` (base sharded), `zero2` (optimizer sharded; paper), `auto` (the launcher's)."""
    offload_optimizer: bool = False
    """`zero2` keeps the optimizer's state in the host's memory (as in the paper)."""
    num_processes: NonNegativeInt = 0
    """The number of processes that must have started; 0 is any number."""

    def extras(self) -> Iterator[tuple[str, str]]:
        """Yield the need of DeepSpeed."""
        if self.strategy == "zero2":
            yield "strategy = 'zero2'", "deepspeed"


class EvaluationConfig(Table):
    """Evaluation on the held-out problems (paper: n 12, T 1.0, top-p 0.95, 38,912 tokens)."""

    num_samples: PositiveInt = 12
    """Samples of each problem (n of Avg@n)."""
    sampling: SamplingConfig = SamplingConfig(temperature=1.0, top_p=0.95)
    """Sampling of the evaluation's completions."""
    num_bootstrap: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """Bootstrap resamples of every interval."""


class ProbeConfig(Table):
    """Probe of a run at every checkpoint; without this table there is none."""

    contexts: Annotated[tuple[str, ...], TEMPLATE] = ()
    """Contexts by name or file; none means the run's own."""
    rollouts: Path | None = None
    """A file or folder as of `stepalign probe --rollouts`; None samples from the initial policy."""
    num_rollouts: PositiveInt = 16
    """The number of rollouts: the first ones given, or sampled, one a problem (a group where siblings are shown)."""


class TrackingConfig(Table):
    """Experiment trackers."""

    report_to: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], ONE_OR_MORE] = ()
    """The tracker of Accelerate that receives the metrics, or a list of trackers."""
    project: str = "stepalign"
    """The project's name in the trackers."""

    def extras(self) -> Iterator[tuple[str, str]]:
        """Yield the need of each tracker, which Accelerate would leave out in silence."""
        yield from (("report_to", tracker) for tracker in self.report_to)


class Recipe(Table):
    """A whole run, from a file (`load`) or from keywords (`config.keywords`)."""

    if TYPE_CHECKING:

        def __init__(self, **keywords: Any) -> None: ...

    version: Literal[2] = VERSION
    """The format of the recipe."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """The run's name."""
    seed: NonNegativeInt = 0
    """The seed of rollouts, problem order and adapter."""
    output_dir: Annotated[Path, RUNTIME] = Path("runs")
    """The folder of runs; this run's is `output_dir/name`."""
    model: ModelConfig
    problems: ProblemsConfig
    selection: SelectionConfig = SelectionConfig()
    prompts: PromptsConfig = PromptsConfig()
    sampler: AnySamplerConfig = TransformersConfig()
    sampling: SamplingConfig = SamplingConfig()
    grader: AnyGraderConfig = MathGraderConfig()
    critic: AnyCriticConfig | None = None
    context: AnyContextConfig = TemplateContextConfig()
    teacher: AnyTeacherConfig = BaseTeacherConfig()
    algorithm: AnyAlgorithmConfig = DistillationConfig()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    distributed: Annotated[DistributedConfig, RUNTIME] = DistributedConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    probe: ProbeConfig | None = None
    locator: Annotated[AnyLocatorConfig, RUNTIME] = CriticLocatorConfig()
    preflight: Annotated[PreflightConfig, RUNTIME] = PreflightConfig()
    canaries: Annotated[CanariesConfig, RUNTIME] = CanariesConfig()
    tracking: Annotated[TrackingConfig, RUNTIME] = TrackingConfig()

    @classmethod
    def from_keywords(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the recipe's values from the arguments with which it is made in Python."""
        return expand(cls, values, {})

    def replace(self, **keywords: Any) -> "Recipe":
        """Return this recipe with the keywords' values laid over it."""
        values = plain(self)
        lay_over(values, expand(Recipe, keywords, values), Recipe)
        return Recipe(**values)

    @property
    def adapter(self) -> LoraConfig | None:
        """The adapter's table; None where all weights are trained."""
        return self.lora if self.training.use_peft else None

    @model_validator(mode="after")
    def _all_weights_can_be_trained(self) -> Self:
        if self.training.use_peft:
            return self
        for key, value, reason in (
            ("model.dtype", self.model.dtype, "updates below 1/256 of a weight would be lost: set 'float32' or 'auto'"),
            (
                "model.attn_implementation",
                self.model.attn_implementation,
                "all weights are trained in float32, and FlashAttention takes half precision only: set 'sdpa'",
            ),
            ("model.load_in_4bit", self.model.load_in_4bit, "4-bit weights have no gradients: train an adapter"),
            ("sampler.kind", self.sampler.kind, "its weight sync sends adapters: set 'transformers'"),
            ("teacher.kind", self.teacher.kind, "there is no adapter to scale: set 'trust-region' or 'ema'"),
        ):
            if value is True or value in _NEED_AN_ADAPTER:
                raise ValueError(f"training.use_peft = false with {key} = {value!r}: {reason}")
        if self.critic and self.critic.needs_own_model:
            fault = f"training.use_peft = false with critic.kind = {self.critic.kind!r}"
            raise ValueError(f"{fault}: its model is the solver's base, which no sampler holds then")
        return self

    @model_validator(mode="after")
    def _algorithm_can_learn(self) -> Self:
        self.algorithm.check(
            num_generations=self.training.num_generations,
            temperature=self.sampling.temperature,
            dropout=self.adapter.lora_dropout if self.adapter else 0.0,
            remote_sampler=self.sampler.is_remote,
        )
        return self

    def runtime_keys(self) -> Iterator[str]:
        """Yield the keys that may change on resume. The run's length may not where learning rates depend on it."""
        fixed = "training.max_steps" if self.optimizer.depends_on_max_steps else None
        yield from (key for key in super().runtime_keys() if key != fixed)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.output_dir / self.name
